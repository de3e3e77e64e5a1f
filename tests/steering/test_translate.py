"""Translation by itself: only fixed text and numbers come out, and bad bytecode is refused."""

from __future__ import annotations

import re

import pytest

from appliance.dataplane import pcap
from appliance.errors import ConfigError
from appliance.limits import FILTER_INSTRUCTIONS_MAX
from appliance.steering import program, rules
from appliance.steering.rules import Rule
from appliance.steering.translate import translate

RET = (0x06, 0, 0, 1)


def test_a_filter_becomes_loads_comparisons_and_one_way_out_each():
    text = translate(pcap.compile_filter("ip"), "r0", "HIT;")
    assert text == (
        "{\nOC_ABS(2, 12u, r0_no);\n"
        "if (A == 2048u) { } else { goto r0_3; }\n"
        "{ HIT; }\nr0_3:;\ngoto r0_no;\n}\nr0_no:;\n"
    )


def test_protochain_jumps_back_through_the_bounded_form_only():
    text = translate(pcap.compile_filter("ip6 protochain 6"), "r0", "HIT;")
    assert text.count("OC_BACK(r0_4, r0_no)") == 2
    assert "unsigned int chain = 0;" in text
    assert "chain" not in translate(pcap.compile_filter("tcp"), "r0", "HIT;")


def test_scratch_words_are_declared_when_used_and_only_then():
    text = translate([(0x02, 0, 0, 3), (0x61, 0, 0, 3), RET], "r7", "HIT;")
    assert re.findall(r"unsigned int (\w+) = 0;", text) == ["r7_m3"]
    assert "r7_m3 = A;" in text and "X = r7_m3;" in text


def test_a_load_that_no_packet_can_hold_is_no_match():
    for k in (0xFFFE, 0xFFFFF000, (1 << 32) - 1):
        assert "goto r0_no;" in translate([(0x28, 0, 0, k), RET], "r0", "HIT;").splitlines()[1]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ([], "0 instructions"),
        ([(0x20, 0, 0, 1)], "end with ret"),
        ([(0x15, 5, 0, 1), RET], "jumps out"),
        ([(0x05, 0, 0, 9), RET], "jumps out"),
        ([(0x05, 0, 0, (1 << 32) - 5), RET], "jumps out"),
        ([(0x02, 0, 0, 16), RET], "scratch word 16"),
        ([(0x38, 0, 0, 0), RET], "unknown code 0x38"),
        ([(0xE4, 0, 0, 0), RET], "unknown code 0xe4"),
        ([(0x8C, 0, 0, 0), RET], "unknown code 0x8c"),
        ([RET] * (FILTER_INSTRUCTIONS_MAX + 1), "instructions"),
    ],
)
def test_bytecode_that_is_not_classic_bpf_is_refused(code, words):
    with pytest.raises(ConfigError, match=words):
        translate(code, "r0", "HIT;")


@pytest.mark.parametrize("code", [0x38, 0x8C, 0xE4, 0x21, 0x85])
def test_libpcap_is_never_given_an_opcode_at_which_it_would_abort(code):
    with pytest.raises(ValueError, match="unknown code"):
        pcap.Filter([(code, 0, 0, 0), RET])


def test_generated_text_holds_numbers_and_fixed_words_whatever_the_rules_say():
    """The words of two generated texts are the same, numbers and labels apart."""

    def words(matches):
        listed = [Rule(match, "sample", sample=9, consumers=("a;}//", '"')) for match in matches]
        numbered = rules.number(listed, ids=lambda: 77)
        found = re.findall(r"\w+", program.generated(numbered))
        return {re.sub(r"\d+", "0", word) for word in found}

    plain = words(
        [
            "ip[0] + ip[ip[1] * 4] % ip[2] - 5 << ip[3] > 8 and ip6 protochain 6",
            "len / 3 > 2",
            "tcp port 80 and not ip6",
        ]
    )
    assert words(["host 10.1.2.3 and udp port 4789", "ether host 02:00:00:00:00:01"]) <= plain
