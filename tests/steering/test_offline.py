"""Offline verdicts: odd lengths, captures cut short, sampling; and `openclaw rules`."""

from __future__ import annotations

import json

import pytest

from appliance.capture import read_capture, write_pcap
from appliance.cli.main import main
from appliance.errors import ConfigError
from appliance.steering import Rule, matches, verdicts
from tests.steering.packets import ARP_FRAME, SSH_FRAME, TCP_FRAME, UDP_FRAME

pytestmark = pytest.mark.root


@pytest.fixture
def capture(tmp_path):
    """Makes a capture of packets and reads it again."""

    def make(*packets: bytes, wires=None):
        path = tmp_path / "made.pcap"
        write_pcap(path, packets, range(1, len(packets) + 1), wires)
        return read_capture(path)

    return make


def test_rules_are_numbered_from_one_in_every_call(capture):
    made = capture(UDP_FRAME, TCP_FRAME, ARP_FRAME, SSH_FRAME)
    rules = [Rule("tcp", "drop"), Rule("udp", "consume")]
    for _ in range(2):
        assert verdicts(rules, made) == [(2, "consume"), (1, "drop"), (0, "pass"), (0, "pass")]
    assert verdicts(rules, made, keep_management=False)[3] == (1, "drop")


def test_packets_too_short_for_the_kernel_are_decided_by_libpcap(capture):
    made = capture(b"", b"\1" * 6, b"\2" * 13, UDP_FRAME)
    assert matches("ether[5] = 1 or udp", made).tolist() == [False, True, False, True]
    assert matches("len < 10", made).tolist() == [True, True, False, False]
    assert matches("", made).tolist() == [True] * 4


def test_long_packets_run_in_the_program_that_takes_fragments(capture):
    long = UDP_FRAME.ljust(9000, b"\0") + b"\7"
    huge = UDP_FRAME.ljust(66_000, b"\7")  # longer than a packet can be: libpcap decides
    made = capture(UDP_FRAME, long, huge)
    assert matches("ether[9000] = 7", made).tolist() == [False, True, True]
    assert matches("udp and len > 5000", made).tolist() == [False, True, True]


@pytest.mark.parametrize("size", [3490, 3499, 3500, 3501, 3512, 3513, 4096, 65_535, 65_536])
def test_every_length_around_the_border_of_the_first_buffer_runs(capture, size):
    made = capture(UDP_FRAME.ljust(size, b"\0")[:-1] + b"\7")
    assert matches(f"ether[{size - 1}] = 7", made).tolist() == [True]


def test_len_is_the_length_on_the_wire_when_the_capture_is_cut_short(capture):
    made = capture(UDP_FRAME, UDP_FRAME, wires=[60, 1400])
    assert matches("len = 1400", made).tolist() == [False, True]
    assert matches("ether[len - 1] >= 0 or ether[100] = 0", made).tolist() == [True, False]


def test_sampling_follows_the_order_of_the_file(capture):
    made = capture(*[UDP_FRAME] * 7)
    found = verdicts([Rule("udp", "sample", sample=3)], made)
    assert [verdict for _, verdict in found] == [
        "consume", "pass", "pass", "consume", "pass", "pass", "consume"]  # fmt: skip


def test_an_empty_capture_has_no_verdicts_and_bad_rules_are_refused_all_the_same(capture):
    assert verdicts([Rule("udp", "drop")], capture()) == []
    with pytest.raises(ConfigError):
        matches("udp port", capture())


# ---------------------------------------------------------------------------------- command line
def openclaw(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def pcap(tmp_path):
    path = tmp_path / "four.pcap"
    write_pcap(path, [UDP_FRAME, TCP_FRAME, ARP_FRAME, SSH_FRAME], range(4))
    return str(path)


CONFIG = """
[[port]]
name = "in0"
interface = "veth-b"
[[rule]]
port = "in0"
match = "tcp"
action = "drop"
[[rule]]
port = "in0"
match = "udp"
action = "sample"
sample = 1
consumers = ["all"]
[[consumer]]
name = "all"
kind = "count"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "openclaw.toml"
    path.write_text(CONFIG)
    return str(path)


def test_rules_test_with_an_expression_says_what_tcpdump_says(capsys, pcap):
    status, out, _ = openclaw(
        capsys, "rules", "test", "--match", "tcp or arp", "--pcap", pcap, "--json", "--each"
    )
    assert status == 0
    assert json.loads(out) == {
        "packets": 4, "matched": 3, "consumed": 3, "passed": 1, "dropped": 0, "by_rule": {"1": 3},
        "verdicts": [[0, "pass"], [1, "consume"], [1, "consume"], [1, "consume"]],
    }  # fmt: skip


def test_rules_test_with_a_configuration_keeps_management(capsys, pcap, config):
    status, out, _ = openclaw(capsys, "rules", "test", "--config", config, "--pcap", pcap, "--json")
    assert status == 0
    assert json.loads(out) == {
        "packets": 4, "matched": 2, "consumed": 1, "passed": 2, "dropped": 1,
        "by_rule": {"1": 1, "2": 1},
    }  # fmt: skip


def test_rules_test_shows_a_table_to_people(capsys, pcap, config):
    status, out, _ = openclaw(
        capsys, "rules", "test", "--config", config, "--port", "in0", "--pcap", pcap, "--each"
    )
    assert status == 0
    assert "1 consume 2" in out and "2 drop 1" in out and "3 pass -" in out
    assert "no rule" in out


def test_rules_check_compiles_and_loads_each_port(capsys, config):
    status, out, _ = openclaw(capsys, "rules", "check", config, "--json")
    reply = json.loads(out)
    assert (status, reply["ok"], reply["ports"][0]["rules"]) == (0, True, 2)
    status, out, _ = openclaw(capsys, "rules", "check", config)
    assert status == 0 and "in0" in out


@pytest.mark.parametrize(
    "words",
    [
        ("test", "--pcap", "PCAP"),
        ("test", "--match", "ip", "--config", "CONFIG", "--pcap", "PCAP"),
        ("test", "--match", "ip", "--port", "in0", "--pcap", "PCAP"),
        ("test", "--config", "CONFIG", "--port", "in9", "--pcap", "PCAP"),
        ("test", "--match", "ip", "--pcap", "/nowhere/x.pcap"),
        ("test", "--match", "ip", "--pcap", "CONFIG"),
        ("test", "--match", 'udp"; drop */ \n x', "--pcap", "PCAP"),
        ("test", "--match", "ip"),
        ("check", "/nowhere/openclaw.toml"),
        ("check", "PCAP"),
        ("check",),
        ("chek",),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_status_two(capsys, pcap, config, words):
    put = {"PCAP": pcap, "CONFIG": config}
    status, out, err = openclaw(capsys, "rules", *[put.get(word, word) for word in words])
    assert status == 2
    assert out == "" and len(err.strip().splitlines()) == 1, (out, err)
