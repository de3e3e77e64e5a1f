"""Replay: exact counts on the receiving side, rates that are kept, and one line when it cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import appliance
from appliance.capture import read_capture, write_pcap
from appliance.cli.main import main
from appliance.errors import ConfigError, HostError
from appliance.net import Lab, in_netns
from appliance.net.interface import netlink
from appliance.replay import replay

pytestmark = pytest.mark.root

COMMAND = [sys.executable, "-m", "appliance.cli.main", "replay"]


def frame(size: int, number: int = 0) -> bytes:
    body = np.random.default_rng(number).integers(0, 256, max(0, size - 14), np.uint8).tobytes()
    return (bytes.fromhex("020000000002020000000001" "88b5") + body)[:size]


def made(tmp_path, packets, times=None):
    path = tmp_path / "made.pcap"
    write_pcap(path, packets, times or range(len(packets)))
    return path


@pytest.fixture
def receiver(lab):
    with appliance.open_port("veth-b", match="", netns=lab.b.netns) as port:
        yield port


def arrived(port, expected, seconds=5.0):
    """The packets that came in, as bytes, until so many are there or the time is over."""
    found: list[bytes] = []
    until = time.monotonic() + seconds
    for batch in port.recv(timeout_ms=50):
        found += [bytes(frame) for frame in batch]
        late = time.monotonic() > until
        if late or (len(found) >= expected and not len(batch)):
            return found


def first_arrival(port, seconds=20.0):
    """The packets of the first batch that holds any."""
    until = time.monotonic() + seconds
    for batch in port.recv(timeout_ms=50):
        if len(batch) or time.monotonic() > until:
            return [bytes(frame) for frame in batch]


# ------------------------------------------------------------------------------------- counts


def test_every_packet_arrives_once_in_order_and_unchanged(lab, receiver, tmp_path):
    packets = [frame(60 + n * 7 % 1400, n) for n in range(500)]
    found = replay(read_capture(made(tmp_path, packets)), "veth-a", netns=lab.a.netns)
    assert (found["sent"], found["bytes"]) == (500, sum(map(len, packets)))
    assert found["drops"] == {} and found["skipped"] == {} and found["frames"]["leaked"] == 0
    assert arrived(receiver, 500) == packets


def test_a_loop_sends_the_capture_so_many_times(lab, receiver, tmp_path):
    packets = [frame(60, n) for n in range(70)]
    found = replay(read_capture(made(tmp_path, packets)), "veth-a", netns=lab.a.netns, loop=9)
    assert found["sent"] == 630
    assert arrived(receiver, 630) == packets * 9


def test_a_queue_can_be_chosen(lab, receiver, tmp_path):
    capture = read_capture(made(tmp_path, [frame(60, n) for n in range(10)]))
    replay(capture, "veth-a", netns=lab.a.netns, queue=1)
    queues = {batch.queue_id for batch, _ in zip(receiver.recv(64, 50), range(3), strict=False)
              if len(batch)}
    assert queues == {1}


def test_packets_that_cannot_be_sent_are_skipped_by_reason_in_every_round(lab, receiver, tmp_path):
    packets = [frame(13), frame(60), b"", frame(65_550), frame(61)]
    found = replay(read_capture(made(tmp_path, packets)), "veth-a", netns=lab.a.netns, loop=2)
    assert found["skipped"] == {"shorter_than_ethernet_header": 4, "longer_than_link": 2}
    assert found["sent"] == 4
    assert [len(packet) for packet in arrived(receiver, 4)] == [60, 61, 60, 61]


def test_nothing_to_send_is_no_error(lab, tmp_path):
    found = replay(read_capture(made(tmp_path, [])), "veth-a", netns=lab.a.netns, loop=0)
    assert found["sent"] == 0 and not found["interrupted"]


def test_packets_of_9000_bytes_arrive_whole(tmp_path):
    packets = [frame(9000, n) for n in range(40)]
    with Lab.temporary(mtu=9000) as lab, appliance.open_port(
        "veth-b", match="", netns=lab.b.netns, jumbo=True
    ) as port:
        found = replay(read_capture(made(tmp_path, packets)), "veth-a", netns=lab.a.netns)
        assert found["sent"] == 40 and found["bytes"] == 360_000
        assert arrived(port, 40) == packets


def test_standard_input_can_be_replayed(lab, receiver, tmp_path):
    packets = [frame(100, n) for n in range(20)]
    with made(tmp_path, packets).open("rb") as file:
        ran = subprocess.run(
            [*COMMAND, "-", "--interface", "veth-a", "--netns", lab.a.netns, "--json"],
            stdin=file, capture_output=True, text=True, timeout=60, check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["sent"] == 20
    assert arrived(receiver, 20) == packets


# -------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("rate", [500, 20_000])
def test_a_rate_holds_within_a_tenth_over_two_seconds(lab, receiver, tmp_path, rate):
    capture = read_capture(made(tmp_path, [frame(60, n) for n in range(100)]))
    found = replay(capture, "veth-a", netns=lab.a.netns, rate=rate, loop=2 * rate // 100)
    assert found["sent"] == 2 * rate
    assert found["pps"] == pytest.approx(rate, rel=0.1)
    assert found["elapsed_s"] == pytest.approx(2.0, rel=0.1)


def test_recorded_speed_keeps_the_distances_and_a_factor_shortens_them(lab, receiver, tmp_path):
    times = [0, 100_000_000, 150_000_000, 600_000_000]
    capture = read_capture(made(tmp_path, [frame(60, n) for n in range(4)], times))
    for speed, factor in ((1, 1.0), (3, 3.0)):
        replay(capture, "veth-a", netns=lab.a.netns, speed=speed)
        stamps = []
        for batch in receiver.recv(timeout_ms=50):
            if not len(batch):
                break
            stamps += batch.timestamps_ns.astype(np.int64).tolist()
        gaps = np.diff(stamps)
        assert len(stamps) == 4
        assert gaps == pytest.approx(np.diff(times) / factor, abs=15_000_000), f"speed {speed}"


# -------------------------------------------------------------------------------- how it ends


def test_an_interrupt_ends_an_endless_replay_with_what_was_sent(lab, receiver, tmp_path):
    path = made(tmp_path, [frame(60, n) for n in range(10)])
    running = subprocess.Popen(
        [*COMMAND, str(path), "--interface", "veth-a", "--netns", lab.a.netns, "--loop", "0",
         "--rate", "1000", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        first = first_arrival(receiver)
        running.send_signal(signal.SIGINT)
        rest = arrived(receiver, 1 << 30, 1.0)
        output, errors = running.communicate(timeout=20)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 0 and errors == ""
    found = json.loads(output)
    assert found["interrupted"] is True
    assert found["sent"] == len(first) + len(rest) > 0


def _link(name, **change):
    with netlink() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], **change)


def test_an_interface_that_is_down_absent_or_too_small_is_one_line(lab, tmp_path, capsys):
    path = str(made(tmp_path, [frame(1514), frame(1515), frame(60)]))
    where = ["--interface", "veth-a", "--netns", lab.a.netns]
    assert main(["replay", path, *where]) == 3
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "MTU 1500 is too small for 1 packets" in line
    assert "mtu 1501" in line
    assert main(["replay", path, "--interface", "none0", "--netns", lab.a.netns]) == 3
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "no interface none0" in line
    in_netns(lab.b.netns, lambda: _link("veth-b", state="down"))
    assert main(["replay", path, *where]) == 3
    assert "no carrier" in capsys.readouterr().err
    in_netns(lab.a.netns, lambda: _link("veth-a", state="down"))
    assert main(["replay", path, *where]) == 3
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "veth-a is down" in line and "link set veth-a up" in line


def test_a_vlan_tag_does_not_count_against_the_mtu(lab, receiver, tmp_path):
    tagged = bytes.fromhex("020000000002020000000001" "81000064" "88b5") + bytes(1500)
    found = replay(read_capture(made(tmp_path, [tagged])), "veth-a", netns=lab.a.netns)
    assert found["sent"] == 1 and arrived(receiver, 1) == [tagged]


def test_bad_numbers_are_refused_before_anything_is_sent(lab, tmp_path):
    capture = read_capture(made(tmp_path, [frame(60)]))
    for numbers in ({"rate": 0}, {"speed": -1}, {"loop": -1}, {"rate": 1, "speed": 1},
                    {"queue": 2}):
        with pytest.raises(ConfigError):
            replay(capture, "veth-a", netns=lab.a.netns, **numbers)


def test_an_interface_that_goes_down_meanwhile_is_said_and_not_waited_for(lab, tmp_path):
    path = made(tmp_path, [frame(60, n) for n in range(10)])
    running = subprocess.Popen(
        [*COMMAND, str(path), "--interface", "veth-a", "--netns", lab.a.netns, "--loop", "0",
         "--rate", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        with appliance.open_port("veth-b", match="", netns=lab.b.netns) as port:
            assert first_arrival(port)
        in_netns(lab.a.netns, lambda: _link("veth-a", state="down"))
        _, errors = running.communicate(timeout=20)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 1
    assert errors.count("\n") == 1 and "veth-a: transmit: Network is down" in errors


def test_a_host_error_says_what_to_do(lab, tmp_path):
    capture = read_capture(made(tmp_path, [frame(3000)]))
    with pytest.raises(HostError, match=r"mtu 2986, on both ends"):
        replay(capture, "veth-a", netns=lab.a.netns)
