"""Filter expressions to classic BPF, within a time limit.

Owns the check of the text and the choice where libpcap works. Its optimizer's time grows with the
third power of the alternatives, and nothing interrupts it: 100 hosts 0.07 s, 400 hosts 4 s,
2,000 hosts many minutes (measured, libpcap 1.10.3). So a long expression is compiled in a child
that is ended when it takes too long, and a short one, for which it cannot, here.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

from appliance.dataplane import pcap
from appliance.errors import ConfigError, HostError
from appliance.limits import MATCH_LENGTH_MAX, RULES_MAX
from appliance.steering.translate import Instruction, translate

CHILD = Path(__file__).with_name("filter_child.py")
# The slowest text of this length that was found (220 networks) takes 0.5 s.
INLINE_CHARACTERS = 2_048
COMPILE_S = 20
QUOTED_MAX = 60  # a message must stay readable beside a match of 60 kB


def compile_match(match: str, where: str = "match") -> list[Instruction]:
    """Classic BPF of an expression; ConfigError names the place and carries libpcap's words."""
    if not isinstance(match, str):
        raise ConfigError(f"{where}: {match!r}: a pcap filter expression is text")
    if len(match) > MATCH_LENGTH_MAX:
        raise ConfigError(f"{where}: {len(match)} characters: at most {MATCH_LENGTH_MAX}")
    try:
        return list(_compiled(match))
    except (ValueError, ConfigError) as error:
        quoted = match if len(match) <= QUOTED_MAX else match[:QUOTED_MAX] + "..."
        raise ConfigError(f"{where}: {quoted!r}: {error}") from None


def compile_foreign(match: str, where: str = "match") -> list[Instruction]:
    """The same for a stranger's text: in a child whatever its length, and nothing of it is kept."""
    if len(match) > MATCH_LENGTH_MAX:
        raise ConfigError(f"{where}: {len(match)} characters: at most {MATCH_LENGTH_MAX}")
    try:
        return _in_child(match)
    except (ValueError, ConfigError) as error:
        quoted = match if len(match) <= QUOTED_MAX else match[:QUOTED_MAX] + "..."
        raise ConfigError(f"{where}: {quoted!r}: {error}") from None


@functools.lru_cache(maxsize=RULES_MAX)
def _compiled(match: str) -> tuple[Instruction, ...]:
    """Kept, so that a swap does not wait again for the rules that stay."""
    short = len(match) <= INLINE_CHARACTERS
    code = pcap.compile_filter(match) if short else _in_child(match)
    translate(code, "r", "")  # says here, with the place, what it could not do
    return tuple(code)


def _in_child(match: str) -> list[Instruction]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(CHILD)],
            input=json.dumps(match).encode(),
            capture_output=True,
            timeout=COMPILE_S,
            check=False,
        )
        reply = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"libpcap needs more than {COMPILE_S} s for it; write fewer alternatives, "
            "or several rules"
        ) from None
    except ValueError:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"]
        raise HostError(f"libpcap's child ended with {done.returncode}: {lines[-1]}") from None
    if "refused" in reply:
        raise ValueError(reply["refused"])
    return [(code, jt, jf, k) for code, jt, jf, k in reply["code"]]
