"""`openclaw bench` for real, as briefly as it goes: shape and accounts. Nothing asserts a speed."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from appliance.bench import PEERS, host
from appliance.bench.load import Blast, packet
from appliance.bench.ours import Sink
from appliance.errors import PortError

SHORT = ["--reps", "1", "--seconds", "0.3", "--size", "64"]
SPREAD = {"min", "median", "max"}
COLUMNS = {"case", "unit", "higher_is_better", "ours", "peers", "ratio", "drops",
           "cpu_ns_per_packet"}


def bench(*words, status=0):
    """Runs the command and returns its one JSON object; standard error comes with a failure."""
    done = subprocess.run([sys.executable, "-m", "appliance.cli.main", "bench", *words, "--json"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def check_shape(report, name, peers):
    """What contract.md says of `bench`."""
    assert report["name"] == name
    assert report["machine"]["cpu_mhz_measured"] > 100 and report["kernel"] == os.uname().release
    assert "python" in report["versions"]
    assert report["results"]
    for result in report["results"]:
        assert set(result) >= COLUMNS
        assert set(result["ours"]) >= SPREAD and result["ours"]["median"] > 0
        assert set(result["peers"]) <= set(peers)
        for peer, figures in result["peers"].items():
            assert set(figures) >= SPREAD and figures["command"]
            assert set(result["ratio"].get(peer, SPREAD)) == SPREAD


def test_loop_reports_nanoseconds_per_packet_of_worker_and_python():
    report = bench("loop", "--against", "none", *SHORT)
    check_shape(report, "loop", [])
    assert [result["unit"] for result in report["results"]] == ["ns/packet"] * 2


@pytest.mark.root
@pytest.mark.parametrize("name", ["rx", "tx", "forward", "python"])
def test_ours_alone_gives_packets_per_second(name):
    report = bench(name, "--against", "none", *SHORT)
    check_shape(report, name, [])
    (result,) = report["results"]
    assert result["higher_is_better"] and result["cpu_ns_per_packet"]["ours"]["median"] > 0


@pytest.mark.root
def test_latency_beside_a_udp_socket_gives_three_percentiles_for_each_profile():
    report = bench("latency", *SHORT)
    check_shape(report, "latency", PEERS["latency"])
    assert len(report["results"]) == 9
    for result in report["results"]:
        assert not result["higher_is_better"]
        assert result["peers"]["udp-socket"]["median"] > 0
    for place in range(0, 9, 3):
        p50, p99, p999 = (result["ours"]["median"] for result in report["results"][place:place + 3])
        assert p50 <= p99 <= p999


@pytest.mark.root
@pytest.mark.parametrize("name", ["rx", "tx", "forward"])
def test_testpmd_is_measured_on_the_same_veth_where_it_is_installed(name):
    if shutil.which("dpdk-testpmd") is None:
        pytest.skip("probe testpmd: dpdk-testpmd is not installed")
    report = bench(name, *SHORT)
    check_shape(report, name, ["testpmd"])
    (result,) = report["results"]
    assert result["peers"]["testpmd"]["median"] > 0 and result["ratio"]["testpmd"]["min"] > 0
    assert "net_af_xdp0,iface=veth-" in result["peers"]["testpmd"]["command"]


@pytest.mark.root
def test_a_raw_socket_loop_in_python_is_measured_on_the_same_veth():
    report = bench("python", "--against", "raw-socket", *SHORT)
    (result,) = report["results"]
    assert result["peers"]["raw-socket"]["median"] > 0


def test_a_peer_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    report = bench("loop", *SHORT)
    assert report["absent"] == {"testpmd-null": "apt install dpdk-dev"}
    assert report["results"][0]["peers"] == {}


def test_an_unknown_peer_is_refused_with_the_names_that_there_are():
    error = bench("rx", "--against", "pktgen", status=2)["error"]
    assert "pktgen" in error and "testpmd" in error


def test_the_page_is_written_where_it_was_asked_for(tmp_path):
    page = tmp_path / "BENCHMARKS.md"
    bench("loop", "--against", "none", "--page", str(page), *SHORT)
    text = page.read_text()
    assert "## loop" in text and "MHz measured" in text and "openclaw bench loop" in text


def test_every_packet_of_the_load_reaches_the_far_end_or_is_counted_there(lab):
    """What the load says that it sent is what the other side saw or had no room for."""
    from appliance.net import link_statistics

    with Sink(lab.b) as sink:
        with Blast(lab.a, 64) as blast:
            time.sleep(0.1)
        time.sleep(0.05)
        seen = sink.packets
    lost = link_statistics(lab.a.interface, lab.a.netns)
    assert blast.sent > 0
    assert blast.sent == seen + lost["tx_dropped"]


def test_the_load_is_a_udp_packet_with_a_right_checksum():
    scapy = pytest.importorskip("scapy.all")
    for size in (60, 64, 1514):
        data = packet(size)
        assert len(data) == size
        decoded = scapy.Ether(data)
        stated = decoded[scapy.IP].chksum
        del decoded[scapy.IP].chksum
        assert scapy.Ether(bytes(decoded))[scapy.IP].chksum == stated
        assert decoded[scapy.IP].len == size - 14 and decoded[scapy.UDP].dport == 4789


def test_a_program_that_ends_early_is_reported_with_its_last_words():
    from appliance.bench.process import Child

    with Child(["sh", "-c", "echo cannot do it >&2; exit 1"], None) as child, \
            pytest.raises(PortError, match="cannot do it"):
        child.wait_for(lambda said: "ready" in said, 5, "it was ready")


def test_a_program_that_ignores_the_request_to_end_is_ended_all_the_same(monkeypatch):
    from appliance.bench import process

    monkeypatch.setattr(process, "STOP_S", 0.2)
    child = process.Child(["sh", "-c", "trap '' INT; echo up; while :; do sleep 1; done"], None)
    child.wait_for(lambda said: "up" in said, 5, "it was up")
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_the_clock_that_is_measured_is_that_of_a_real_processor():
    assert 300 < host.clock_mhz() < 8000
