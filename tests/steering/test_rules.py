"""Rules by themselves: checks, ids, hostile text, and which management protocol a filter names."""

from __future__ import annotations

import os

import pytest

from appliance.errors import ConfigError
from appliance.limits import MATCH_LENGTH_MAX, RULES_MAX
from appliance.steering import Steering, filters, headers, program
from appliance.steering.filters import compile_match
from appliance.steering.rules import ARP, DHCP, ND, SSH, Rule, named, number

HOSTILE = [
    'udp"; return XDP_DROP; "',
    "udp */ int x; /*",
    "udp /* comment */",
    "udp // port 5",
    "udp\nport 53",
    "udp\r\n#include </etc/passwd>",
    "udp \\\n port 53",
    "udp\0port 53",
    "udp'",
    "`reboot`",
    "$(reboot)",
    "udp; drop",
    "#define A 1",
    "%s%n%d",
    "??/",
    "\ud800",
    "\u202eudp",
    "((((((((((",
    "not " * 2000 + "udp",
    "(" * 20000 + "udp" + ")" * 20000,
    "x" * 60_000,
    "udp or " * 3000 + "udp",
    "udp " * 25_000,
    "a" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(text[:24]) for text in HOSTILE])
def test_hostile_text_is_refused_in_one_line_or_is_a_plain_filter(text):
    try:
        numbered = number([Rule(text, "consume")])
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        assert error.exit_status == 2
        return
    generated = program.source(numbered, program.Options())
    fixed = program.source(number([Rule("ip", "consume")]), program.Options())
    for word in ("reboot", "passwd", "comment"):
        assert (word in generated) == (word in fixed)


@pytest.mark.parametrize("text", [5, None, b"udp", ["udp"]])
def test_a_match_that_is_no_text_is_refused(text):
    with pytest.raises(ConfigError, match="is text"):
        number([Rule(text, "consume")])


def some_hosts(count: int) -> str:
    return " or ".join(f"host 10.{i // 250}.{i % 250}.1" for i in range(count))


def test_a_long_match_compiles_to_the_same_as_a_short_one(monkeypatch):
    """Long ones go through a child, because libpcap cannot be interrupted."""
    hosts = some_hosts(130)
    assert len(hosts) > filters.INLINE_CHARACTERS
    through_child = compile_match(hosts)
    filters._compiled.cache_clear()
    monkeypatch.setattr(filters, "INLINE_CHARACTERS", 1 << 20)
    assert compile_match(hosts) == through_child


def test_a_match_over_which_libpcap_would_brood_for_minutes_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(filters, "COMPILE_S", 3)
    with pytest.raises(ConfigError, match="needs more than 3 s"):
        compile_match(some_hosts(2000))


def test_a_match_has_a_greatest_length():
    with pytest.raises(ConfigError, match=f"at most {MATCH_LENGTH_MAX}"):
        compile_match("ip" + " " * MATCH_LENGTH_MAX)


def test_a_port_without_rules_is_refused():
    with pytest.raises(ConfigError, match="no rule"):
        Steering([])


def test_more_rules_than_a_program_holds_are_refused():
    with pytest.raises(ConfigError, match=f"at most {RULES_MAX}"):
        number([Rule("ip", "pass")] * (RULES_MAX + 1))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (Rule("ip", "eat"), "action"),
        (Rule("ip", "sample", sample=0), "sample"),
        (Rule("ip", "sample", sample=True), "sample"),
        (Rule("ip", "sample", sample=1.5), "sample"),
        (Rule("ip", "consume", priority=-1), "priority"),
        (Rule("ip", "consume", priority=256), "priority"),
        (Rule("ip port", "consume"), "match"),
    ],
)
def test_the_message_names_the_place_and_the_field(rule, field):
    with pytest.raises(ConfigError, match=rf"^rule\[1\]\.{field}: "):
        number([Rule("ip", "pass"), rule])


def test_ids_are_never_used_twice_and_unchanged_rules_keep_theirs():
    first = number([Rule("ip", "consume"), Rule("udp", "drop"), Rule("udp", "drop")])
    again = number([Rule("udp", "drop"), Rule("tcp", "pass"), Rule("ip", "consume")], first)
    assert [rule.id for rule in again] == [first[1].id, again[1].id, first[0].id]
    assert again[1].id > max(rule.id for rule in first)
    third = number([Rule("udp", "drop", priority=3)], again)
    assert third[0].id > again[1].id


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", 0), ("ip", 0), ("tcp", 0), ("udp", 0), ("icmp6", 0), ("ip6", 0), ("vlan", 0),
        ("arp", ARP), ("ether proto 0x0806", ARP), ("vlan and arp", ARP),
        ("port 22", SSH), ("tcp dst port 22", SSH), ("ip6 and tcp port 22", SSH),
        ("portrange 20-25", 0), ("tcp port 2222", 0), ("ip[8] = 22", 0),
        ("udp port 67 or udp port 68", DHCP), ("ip6 and udp port 547", DHCP),
        ("icmp6[icmp6type] = icmp6-neighborsolicit", ND), ("ip6[40] = 133", ND),
        ("icmp6[0] & 0x87 = 135", 0), ("tcp[0:2] & 0xff = 22", 0),
        ("arp or tcp port 22 or udp port 53", ARP | SSH),
        ("not arp", ARP),
    ],
)  # fmt: skip
def test_a_rule_names_a_protocol_by_comparing_a_field_with_its_number(expression, expected):
    assert named(compile_match(expression)) == expected


def test_the_headers_shown_to_bcc_are_in_a_private_place_that_goes_away():
    if not headers.describe():
        pytest.skip("probe kernel headers: none found")
    with headers.tree() as tree:
        assert tree.stat().st_mode & 0o777 == 0o700
        assert (tree / "include/uapi/linux/bpf.h").is_file()
        assert (tree / "include/generated/autoconf.h").is_file()
    assert not tree.exists()


def test_headers_left_by_a_killed_process_are_swept_away(monkeypatch, tmp_path):
    monkeypatch.setattr(headers.tempfile, "tempdir", str(tmp_path))
    names = ("openclaw-headers-old", "openclaw-headers-new", "other-headers-x")
    old, young, other = (tmp_path / name for name in names)
    for path in (old, young, other):
        path.mkdir()
        (path / "link").symlink_to("/etc/hostname")
        if path != young:
            os.utime(path, (1, 1))
    if not headers.describe():
        pytest.skip("probe kernel headers: none found")
    with headers.tree():
        assert not old.exists() and young.exists() and other.exists()


def test_without_headers_the_fix_is_a_command(monkeypatch, tmp_path):
    for place in ("SOURCES", "MODULES", "KHEADERS"):
        monkeypatch.setattr(headers, place, tmp_path / "nothing")
    from appliance.errors import HostError

    with pytest.raises(HostError, match="apt-get install linux-headers-") as raised, headers.tree():
        pass
    assert raised.value.exit_status == 3
