"""Writing of captures: what is written is what tcpdump and we read."""

import io
import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.capture import read_capture, write_pcap
from appliance.errors import ConfigError

PACKETS = st.lists(st.tuples(st.binary(max_size=200), st.integers(0, (10**9 << 32) - 1),
                             st.integers(0, 1000)), max_size=20)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(PACKETS)
def test_what_is_written_is_read_again_to_the_nanosecond(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round") / "x.pcap"
    packets = [data for data, _, _ in rows]
    wires = [len(data) + more for data, _, more in rows]
    times = [time for _, time, _ in rows]
    assert write_pcap(path, packets, times, wires) == len(rows)
    capture = read_capture(path)
    assert [bytes(packet) for packet in capture] == packets
    assert capture.timestamps_ns.tolist() == times
    assert capture.wire_lengths.tolist() == wires and capture.link_type == 1


def test_an_open_file_and_a_path_get_the_same_bytes(tmp_path):
    file = io.BytesIO()
    write_pcap(file, [b"abc", memoryview(b"defg")], [1, 2])
    write_pcap(tmp_path / "x.pcap", [b"abc", memoryview(b"defg")], [1, 2])
    assert file.getvalue() == (tmp_path / "x.pcap").read_bytes()


def test_tcpdump_reads_the_nanoseconds_that_were_written(tmp_path):
    if shutil.which("tcpdump") is None:
        pytest.skip("probe tcpdump: not installed")
    path = tmp_path / "x.pcap"
    write_pcap(path, [bytes(60)], [1_700_000_000_123_456_789])
    done = subprocess.run(["tcpdump", "-tt", "--nano", "-nr", path], capture_output=True, text=True,
                          check=True)
    assert done.stdout.startswith("1700000000.123456789 ")


def test_raw_ip_is_written_with_its_number_in_files():
    file = io.BytesIO()
    write_pcap(file, [], [], link_type=12)
    assert struct.unpack("=I", file.getvalue()[20:24])[0] == 101      # LINKTYPE_RAW


@pytest.mark.parametrize(("columns", "says"), [
    (([b"a"], []), "1 packets, 0 timestamps"), (([b"a"], [1], [1, 2]), "2 wire lengths"),
    (([b"a"], [-1]), "not between 1970 and 2106"), (([b"a"], [2**63]), "not between"),
    (([b"abc"], [0], [2]), "3 bytes captured of 2")])
def test_columns_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, columns, says):
    path = tmp_path / "x.pcap"
    with pytest.raises(ValueError, match=says):
        write_pcap(path, *columns)
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        write_pcap(tmp_path / "absent" / "x.pcap", [], [])
    assert "x.pcap" in str(caught.value) and "\n" not in str(caught.value)
