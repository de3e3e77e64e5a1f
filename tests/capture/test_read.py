"""Reading of capture files: what libpcap gives, beside an independent reader (scapy)."""

import gc
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from appliance.capture import ethernet_only, read_capture, write_pcap
from appliance.errors import ConfigError, HostError
from tests.data.generate import block, enhanced_packet, files, interface

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

DATA = Path(__file__).resolve().parent.parent / "data"
SECTION = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
# libpcap reads time stamps of interfaces that count in other than powers of ten through a float
CLOCK_ERROR_NS = 1


def packets_of_scapy(path):
    """(bytes, wire length, nanoseconds) of each packet.

    libpcap, and so tcpdump, cuts a packet that is longer than the file's own snapshot length
    (trunc/trunc-hdr.pcap); scapy does not.
    """
    from scapy.utils import RawPcapNgReader, RawPcapReader

    with RawPcapReader(str(path)) as reader:
        is_ng = isinstance(reader, RawPcapNgReader)
        for data, meta in reader:
            if is_ng:
                ticks = (meta.tshigh << 32) + meta.tslow
                yield data, meta.wirelen, ticks * 10**9 // meta.tsresol
            else:
                scale = 1 if reader.nano else 1000
                yield data[:reader.snaplen], meta.wirelen, meta.sec * 10**9 + meta.usec * scale


def test_every_shared_capture_holds_the_packets_lengths_and_times_that_scapy_reads(captures):
    compared = 0
    for path in sorted(captures.rglob("*.pcap*")):
        capture = read_capture(path)
        assert capture.truncated is None, path
        theirs = list(packets_of_scapy(path))
        assert len(capture) == len(theirs), path
        for index, (data, wire_length, time_ns) in enumerate(theirs):
            assert capture.packet(index) == data, (path, index)
            assert capture.wire_lengths[index] == wire_length, (path, index)
            assert abs(int(capture.timestamps_ns[index]) - time_ns) <= CLOCK_ERROR_NS, (path, index)
            compared += 1
    assert compared > 1000, "the captures hold no packets: nothing was compared"


def test_the_generator_makes_our_own_captures_to_the_byte():
    for name, content in files().items():
        assert (DATA / name).read_bytes() == content


def test_interfaces_with_different_clocks_are_read_as_one_capture():
    capture = read_capture(DATA / "interfaces.pcapng")
    assert capture.link_type == 1 and capture.link_type_name == "EN10MB"
    distances = np.diff(capture.timestamps_ns)
    assert len(capture) > 10 and (distances == 1_000_000).all()


def test_a_capture_without_packets_is_empty_and_not_an_error(tmp_path):
    path = tmp_path / "empty.pcap"
    write_pcap(path, [], [])
    capture = read_capture(path)
    assert len(capture) == 0 and list(capture) == [] and capture.truncated is None
    assert capture.data.nbytes == 0 and capture.offsets.dtype == np.uint64


def test_standard_input_is_read_as_dash():
    program = ("from appliance.capture import read_capture; c = read_capture('-'); "
               "print(c.name, len(c), c.truncated)")
    path = DATA / "mixed.pcap"
    done = subprocess.run([sys.executable, "-c", program], input=path.read_bytes(),
                          capture_output=True, check=True)
    assert done.stdout.decode().strip() == f"standard input {len(read_capture(path))} None"


@pytest.mark.parametrize(("content", "says"), [
    (b"", "got 0"), (b"\xd4\xc3\xb2", "got 3"), (b"GIF89a" * 9, "unknown file format"),
    (SECTION, "no Interface Description Blocks")])
def test_a_file_that_is_no_capture_is_named_in_one_line(tmp_path, content, says):
    path = tmp_path / "not-a-capture"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_capture(path)
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 2


def test_a_file_that_cannot_be_opened_is_named_in_one_line(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError) as caught:
            read_capture(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("second", [interface(6, link_type=101), interface(6, snaplen=96)])
def test_interfaces_that_libpcap_cannot_tell_apart_are_refused_with_advice(tmp_path, second):
    path = tmp_path / "mixed.pcapng"
    packet = enhanced_packet(0, 1, bytes(60))
    path.write_bytes(SECTION + interface(6) + packet + second + packet)
    with pytest.raises(ConfigError, match="mixes interfaces") as caught:
        read_capture(path)
    assert "tshark" in str(caught.value) and "\n" not in str(caught.value)


def test_a_capture_larger_than_allowed_is_refused_and_one_of_exactly_that_size_is_not(tmp_path):
    path = tmp_path / "ten.pcap"
    write_pcap(path, [bytes(100)] * 10, range(10))
    exact = 10 * (100 + 24)
    assert len(read_capture(path, bytes_max=exact)) == 10
    with pytest.raises(ConfigError, match="needs more than 1239 bytes"):
        read_capture(path, bytes_max=exact - 1)


def test_a_capture_cut_off_anywhere_gives_the_packets_before_the_cut_and_says_so(tmp_path):
    for name in ("mixed.pcap", "interfaces.pcapng"):
        content = files()[name]
        whole = read_capture(DATA / name)
        packets = [bytes(packet) for packet in whole]
        path, counts = tmp_path / "cut", set()
        for size in [*range(0, 800), *range(800, len(content), 149)]:
            path.write_bytes(content[:size])
            try:
                capture = read_capture(path)
            except ConfigError:
                assert not counts, "once the header is whole, a cut is no error"
                continue
            counts.add(len(capture))
            assert [bytes(packet) for packet in capture] == packets[:len(capture)]
            complete = len(capture) == len(packets)
            assert capture.truncated is None or "\n" not in capture.truncated
            assert complete or capture.truncated or content[:size] == _whole_records(
                content, size, name)
        assert len(counts) > 10


def _whole_records(content, size, name):
    """The longest beginning of at most `size` bytes that ends where a record does."""
    at = 24 if name.endswith(".pcap") else 0
    while True:
        if name.endswith(".pcap"):
            step = 16 + int.from_bytes(content[at + 8:at + 12], "little")
        else:
            step = int.from_bytes(content[at + 4:at + 8], "little")
        if at + step > size:
            return content[:at]
        at += step


def test_damaged_captures_end_early_or_are_refused_but_never_crash(tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    path = tmp_path / "damaged"
    for name, content in files().items():
        for _ in range(300):
            damaged = bytearray(content)
            for at in random.integers(0, len(content), random.integers(1, 20)):
                damaged[at] = random.integers(0, 256)
            path.write_bytes(damaged)
            try:
                capture = read_capture(path, bytes_max=16 << 20)
            except ConfigError as error:
                assert "\n" not in str(error), (name, seed)
                continue
            ends = capture.offsets.astype(np.int64) + capture.lengths
            assert (ends <= capture.data.nbytes).all(), (name, seed)


def test_a_packet_outlives_its_capture_and_cannot_be_written():
    capture = read_capture(DATA / "mixed.pcap")
    packet, copy = capture.packet(3), bytes(capture.packet(3))
    with pytest.raises(TypeError):
        packet[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        capture.offsets[0] = 1
    del capture
    gc.collect()
    assert packet == copy


def test_a_packet_number_beyond_the_end_raises_index_error():
    capture = read_capture(DATA / "mixed.pcap")
    assert capture.packet(-1) == capture.packet(len(capture) - 1)
    with pytest.raises(IndexError):
        capture.packet(len(capture))


def test_reading_leaves_no_descriptor_open_whether_it_succeeds_or_not(tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"no capture at all, surely")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        read_capture(DATA / "mixed.pcap")
        with pytest.raises(ConfigError):
            read_capture(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_ethernet_captures_pass_the_ethernet_check(tmp_path):
    path = tmp_path / "raw.pcap"
    write_pcap(path, [bytes(20)], [0], link_type=12)
    with pytest.raises(ConfigError, match=r"raw\.pcap holds RAW packets"):
        ethernet_only(read_capture(path))
    mixed = read_capture(DATA / "mixed.pcap")
    assert ethernet_only(mixed) is mixed


def test_memory_that_is_short_is_the_hosts_fault_and_no_crash(tmp_path):
    program = ("import resource, sys\n"
               "from appliance.capture import read_capture\n"
               "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
               "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
               "try: read_capture(sys.argv[1])\n"
               "except Exception as e: print(type(e).__name__, e.exit_status)\n")
    path = tmp_path / "large.pcap"
    write_pcap(path, [bytes(65536)] * 3000, range(3000))
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout.strip() == f"HostError {HostError.exit_status}", done
