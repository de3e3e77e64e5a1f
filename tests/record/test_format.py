"""The log's checksum against a slow table and known vectors, and what is on disk against the words
of include/oc_log_format.h, read here with struct alone."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from appliance import record
from appliance.dataplane import log_scan, log_writer
from tests.record.images import PAGE

SEED = random.SystemRandom().randrange(1 << 32)


def test_crc32c_uses_the_instruction_where_the_processor_has_it():
    flags = Path("/proc/cpuinfo").read_text().split()
    if "sse4_2" in flags and "pclmulqdq" in flags:
        assert log_scan.checksum_how() == "sse4.2"
    elif "crc32" in flags:
        assert log_scan.checksum_how() == "armv8"
    else:
        assert log_scan.checksum_how() == "portable"


def slow_crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("data, expected", [
    (b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
    (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C)])
@pytest.mark.parametrize("how", [None, "portable"])
def test_crc32c_gives_the_published_values(data, expected, how):
    assert log_scan.checksum(data, how=how) == expected


def test_crc32c_agrees_with_a_table_at_every_length_and_offset():
    rng = random.Random(SEED)
    data = rng.randbytes(40_000)
    lengths = [*range(0, 700), 1514, 4095, 4096, 9216, 12_288, 12_289, 24_583, 39_000]
    for length in lengths:
        start, value = rng.randrange(16), rng.randrange(1 << 32)
        part = data[start:start + length]
        expected = log_scan.checksum(part, value, how="portable")
        note = f"seed {SEED}, {length} bytes"
        assert log_scan.checksum(part, value) == expected, note
        assert log_scan.checksum(part, value, how="copy") == (expected, part), note
        if length < 700:
            assert slow_crc32c(part, value) == expected, note


def test_crc32c_of_parts_is_that_of_the_whole():
    data = random.Random(SEED).randbytes(5000)
    for cut in (0, 1, 7, 119, 120, 121, 2500, 4999, 5000):
        assert log_scan.checksum(data[cut:], log_scan.checksum(data[:cut])) == \
            log_scan.checksum(data), f"seed {SEED}, cut at {cut}"


def folded(epoch: int) -> int:
    return (epoch ^ epoch >> 32) & 0xFFFFFFFF


def test_what_is_on_disk_is_what_the_format_says(tmp_path):
    """An independent reader: headers, HEAD, chain and payloads by struct and the slow checksum."""
    packets = [bytes([n]) * size for n, size in enumerate([60, 61, 1514, 9216, 14])]
    epoch = 0x1122334455667788
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 20, epoch=epoch,
                              ports=[(3, "in0", "veth-b", 1, 96)]) as writer:
        for number, packet in enumerate(packets):
            writer.append(packet, 1000 + number, port=3, queue=number, rule=70 + number,
                          original=len(packet) + number)
    data = (tmp_path / "000000000000.oclog").read_bytes()
    magic, version, header_bytes = struct.unpack_from("<8sII", data)
    assert (magic, version, header_bytes) == (b"OCLOGSEG", 1, PAGE)
    assert struct.unpack_from("<QQ", data, 32) == (epoch, 0)
    assert struct.unpack_from("<I", data, PAGE - 4)[0] == slow_crc32c(data[:PAGE - 4])

    at, chain = PAGE, 0
    found = []
    for _ in range(1 + len(packets)):
        left = PAGE - at % PAGE
        at += left if left < 48 else 0
        crc, payload_crc, kind, _flags, port, queue, rule, captured, original, spare, seq, ns = \
            struct.unpack_from("<IIHHHHIIIIQQ", data, at)
        assert crc == slow_crc32c(data[at + 4:at + 48], chain ^ folded(epoch))
        payload = data[at + 48:at + 48 + captured]
        assert payload_crc == slow_crc32c(payload) and spare == 0
        if kind == 3:
            assert payload[:8] == b"OCLOGWRT"
            assert struct.unpack_from("<QQQQQIII", payload, 8) == (
                epoch, 0, 0, 1, 0, 3 * PAGE, len(packets), chain)  # 11,232 bytes are three pages
            assert struct.unpack_from("<I", payload, 60)[0] == \
                slow_crc32c(payload[:60], folded(epoch))
        else:
            found.append((seq, ns, port, queue, rule, original, payload))
        at, chain = at + 48 + (captured + 7) // 8 * 8, crc
    assert found == [(1 + n, 1000 + n, 3, n, 70 + n, len(p) + n, p) for n, p in enumerate(packets)]


def test_a_writer_refuses_what_no_write_can_hold(tmp_path):
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 20) as writer:
        with pytest.raises(ValueError, match="do not fit"):
            writer.append(bytes(70_000), 1)
        with pytest.raises(ValueError, match="60 bytes of a packet of 59"):
            writer.append(bytes(60), 1, original=59)
        writer.append(bytes(60), 1)
    assert record.verify(record.Store(tmp_path))["records"] == 1


def test_a_log_goes_on_where_recovery_says(tmp_path):
    """Written, killed, torn, recovered and continued ten times over, it is one clean log."""
    rng = random.Random(SEED)
    expected = 0
    for turn in range(10):
        told, next_ = record.recover_to_record(record.Store(tmp_path)) if turn else ({}, None)
        if next_ is None:
            writer = log_writer.LogWriter(tmp_path, segment_bytes=1 << 20)
        else:
            expected = told["last_seq"]
            assert next_.seq == expected + 1
            writer = log_writer.LogWriter(
                tmp_path, segment_bytes=1 << 20, uuid=bytes.fromhex(next_.uuid), index=next_.index,
                seq=next_.seq, chain=next_.chain, fresh=next_.fresh)
        for number in range(50):
            writer.append(rng.randbytes(rng.randrange(14, 2000)), number)
            if number % 10 == 9:
                writer.commit()
        writer.close(seal=turn % 3 == 0)
        if turn % 3 == 0:
            expected += 50
            assert record.verify(record.Store(tmp_path))["last_seq"] == expected, f"seed {SEED}"
        else:
            log_writer.lower_state(tmp_path / "state", 1 << 62)  # killed: its process is ours
            path = max(tmp_path.glob("*.oclog"))
            if turn % 3 == 1:  # the last write did not make it
                with open(path, "r+b") as file:
                    file.seek(writer.offset - PAGE)
                    file.write(bytes(PAGE))
    told = record.verify(record.Store(tmp_path))
    assert told["state"] == "clean" and told["last_seq"] == expected, f"seed {SEED}: {told}"
