"""Numbers that stand in xdp/openclaw_abi.h and again in Python are the same numbers."""

from __future__ import annotations

import re
import subprocess

import pytest

from appliance import limits
from appliance.steering import loader, offline, rules
from appliance.steering.program import XDP_DIRECTORY

NAMES = [
    *("OC_RULES_MAX", "OC_QUEUES_MAX", "OC_DROP_MAX", "counters_size"),
    *("OC_MAP_SOCKETS", "OC_MAP_COUNTERS", "OC_MAP_SHED", "OC_MAP_IDS"),
    *("OC_VERDICT_PASS", "OC_VERDICT_CONSUME", "OC_VERDICT_DROP", "OC_VERDICT_BITS"),
    *("OC_MGMT_ARP", "OC_MGMT_ND", "OC_MGMT_DHCP", "OC_MGMT_SSH"),
]
VALUES = {"counters_size": "sizeof(struct oc_counters)"}


@pytest.fixture(scope="module")
def header(tmp_path_factory) -> dict[str, int]:
    """The header's own values, from the C compiler."""
    place = tmp_path_factory.mktemp("abi")
    lines = "".join(
        f'printf("%s %ld\\n", "{name}", (long){VALUES.get(name, name)});' for name in NAMES
    )
    (place / "abi.c").write_text(
        '#include <stdio.h>\n#include "openclaw_abi.h"\n#include "openclaw_parse.h"\n'
        f"int main(void) {{ {lines} }}\n"
    )
    command = ["cc", "-w", f"-I{XDP_DIRECTORY}", "abi.c", "-o", "abi"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    out = subprocess.run([place / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def test_limits_map_numbers_and_layout_are_the_headers(header):
    assert header["OC_RULES_MAX"] == limits.RULES_MAX
    assert header["OC_QUEUES_MAX"] == limits.QUEUES_MAX
    maps = [header[f"OC_MAP_{name}"] for name in ("SOCKETS", "COUNTERS", "SHED", "IDS")]
    assert maps == [loader.MAP_SOCKETS, loader.MAP_COUNTERS, loader.MAP_SHED, loader.MAP_IDS]
    assert header["OC_DROP_MAX"] == loader.DROPS_MAX
    assert header["counters_size"] == loader.COUNTER_BYTES
    assert loader.COUNTER_BYTES >= 8 * loader.COUNTER_WORDS


def test_verdicts_and_management_classes_are_the_headers(header):
    verdicts = [header[f"OC_VERDICT_{name}"] for name in ("PASS", "CONSUME", "DROP")]
    assert verdicts == [offline.PASS, offline.CONSUME, offline.DROP]
    assert header["OC_VERDICT_BITS"] == offline.VERDICT_BITS
    classes = [header[f"OC_MGMT_{name}"] for name in ("ARP", "ND", "DHCP", "SSH")]
    assert classes == [rules.ARP, rules.ND, rules.DHCP, rules.SSH]


def test_the_reasons_that_the_program_gives_are_named_as_in_the_header():
    text = (XDP_DIRECTORY / "openclaw_abi.h").read_text()
    listed = {int(n): name for n, name in re.findall(r"X\((\d+), (\w+),", text)}
    assert {n: listed[n] for n in loader.DROP_REASONS} == loader.DROP_REASONS
    assert len(listed) == len(re.findall(r"\bX\(\d+, ", text)), "a number was used twice"


def test_actions_have_the_order_of_the_program():
    text = (XDP_DIRECTORY / "steer.bpf.c").read_text()
    order = re.findall(r"#define OC_ACTION_(\w+) (\d)u", text)
    by_number = sorted(order, key=lambda pair: pair[1])
    assert tuple(name.lower() for name, _ in by_number) == rules.ACTIONS
