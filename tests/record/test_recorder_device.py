"""The device under the log: both engines write and flush the same, and errors come as they are."""

from __future__ import annotations

import errno
import mmap
import os

import pytest

from appliance.dataplane import LogDevice
from appliance.record.directory import Directory
from appliance.record.settings import duration
from tests.record.test_recorder_log import ENGINES

PAGE = 4096


@pytest.fixture(params=ENGINES)
def device(request):
    made = LogDevice(request.param)
    yield made
    assert made.close(), "something was still under way"


def page(filling: int, pages: int = 1) -> mmap.mmap:
    made = mmap.mmap(-1, pages * PAGE)
    made[:] = bytes([filling]) * pages * PAGE
    return made


def test_writes_end_in_any_order_and_all_are_there(device, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        for number in range(8):
            device.write(fd, number * 16 * PAGE, page(number + 1, 16))
        ended = [device.collect() for _ in range(8)]
        assert ended == [("write", 16 * PAGE, 0)] * 8 and device.in_flight == 0
        device.sync(fd)
        assert device.collect() == ("sync", 0, 0)
        for number in range(8):
            assert os.pread(fd, 16 * PAGE, number * 16 * PAGE) == bytes([number + 1]) * 16 * PAGE
    finally:
        os.close(fd)


def test_an_error_comes_back_with_its_number(device, tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        device.write(fd, 0, page(1))
        assert device.collect() == ("write", PAGE, errno.EBADF)
        device.sync(-1)
        assert device.collect()[2] == errno.EBADF
    finally:
        os.close(fd)


def test_a_device_that_is_full_says_so_for_the_rest_of_a_short_write(device):
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        device.write(fd, 0, page(1))
        assert device.collect()[2] == errno.ENOSPC
    finally:
        os.close(fd)


def test_no_more_than_its_requests_are_under_way(device, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(BlockingIOError, match="under way"):
            for number in range(17):
                device.write(fd, number * PAGE, page(1))
        for _ in range(16):
            assert device.collect() is not None
    finally:
        os.close(fd)


def test_a_mapping_is_written_by_stores_and_flushed(tmp_path):
    """The way of DAX memory, here on a plain file: stores, then msync."""
    path = tmp_path / "memory"
    path.write_bytes(bytes(16 * PAGE))
    device = LogDevice("threads")
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 16 * PAGE)
        device.write(-1, 2 * PAGE, page(7, 3), map=mapped)
        assert device.collect() == ("write", 3 * PAGE, 0)
        device.sync(-1, map=mapped)
        assert device.collect() == ("sync", 0, 0)
        device.write(-1, 15 * PAGE, page(7, 2), map=mapped)
        assert device.collect()[2] == errno.EIO, "beyond the end of the mapping"
        assert path.read_bytes() == bytes(2 * PAGE) + b"\x07" * 3 * PAGE + bytes(11 * PAGE)
        assert device.close()


def test_a_plain_file_system_has_no_stores_that_persist(tmp_path):
    made = Directory(str(tmp_path), 1 << 20)
    prepared = made.prepare(3)
    assert prepared.map is None, "MAP_SYNC was granted: this file system is DAX"
    assert (tmp_path / "000000000003.oclog").stat().st_size == 1 << 20
    made.discard(prepared)
    assert list(tmp_path.glob("*.oclog")) == []


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m", 120)])
def test_durations_are_numbers_with_units(text, seconds):
    assert duration(text) == seconds
