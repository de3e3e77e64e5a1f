"""The program selects what tcpdump selects: same expression, same capture, same packets.

tcpdump is the oracle. Each pair is compared by the bytes of the packets selected, not by number.
OPENCLAW_FULL=1 compares every expression with every Ethernet capture; the short form takes those
that an expression's hint names, and some in turn.
"""

from __future__ import annotations

import os
import re
import subprocess

import numpy as np
import pytest

from appliance import capture as captures_module
from appliance.steering import matches
from tests.conftest import CAPTURES, ethernet_captures
from tests.steering.expressions import EXPRESSIONS

FULL = os.environ.get("OPENCLAW_FULL") == "1"
TELLING, IN_TURN = 3, 3  # captures per expression in the short form

pytestmark = [pytest.mark.root, pytest.mark.slow]


def chosen(place: int, hint: str) -> list:
    paths = ethernet_captures()
    if FULL:
        return paths
    telling = [path for path in paths if re.search(hint, str(path.relative_to(CAPTURES)))]
    # A different part of each list for each expression, the same in every run.
    some = [telling[(place * 5 + i) % len(telling)] for i in range(TELLING)] if telling else []
    turn = [paths[(place * 37 + i * 101) % len(paths)] for i in range(IN_TURN)] if paths else []
    return list(dict.fromkeys(some + turn))


def selected_by_tcpdump(path, expression: str, into) -> list[bytes]:
    """What `tcpdump -r path -w into expression` writes. It may complain of the file's end."""
    command = ["tcpdump", "-nn", "-r", str(path), "-w", str(into), expression]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not into.exists() or into.stat().st_size == 0:
        pytest.fail(f"{path.name}: tcpdump: {done.stderr.strip()}")
    return [bytes(packet) for packet in captures_module.read_capture(into)]


@pytest.mark.parametrize(
    ("place", "expression", "hint"),
    [(place, *pair) for place, pair in enumerate(EXPRESSIONS)],
    ids=[expression or "everything" for expression, _ in EXPRESSIONS],
)
def test_the_program_selects_what_tcpdump_selects(
    place, expression, hint, captures, needs_tcpdump, tmp_path
):
    wrong = []
    pairs = 0
    for path in chosen(place, hint):
        capture = captures_module.read_capture(path)
        ours = matches(expression, capture)
        selected = [bytes(capture.packet(i)) for i in np.flatnonzero(ours)]
        theirs = selected_by_tcpdump(path, expression, tmp_path / "selected.pcap")
        pairs += 1
        if selected != theirs:
            wrong.append(f"{path.name}: {len(selected)} against {len(theirs)} of {len(capture)}")
    assert pairs > 0
    assert not wrong, f"{expression!r} disagrees: {wrong[:10]}"


def test_the_list_is_as_long_as_promised(captures):
    pairs = sum(len(chosen(place, hint)) for place, (_, hint) in enumerate(EXPRESSIONS))
    assert len({expression for expression, _ in EXPRESSIONS}) >= 25
    assert pairs >= 200
