"""What a program in Python holds: batches, frames, views, holds. Over the loop port, so that it
runs anywhere; the same objects over AF_XDP are the subject of test_veth.py."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

import appliance
from tests.dataplane.ports import open_memory_port
from tests.dataplane.wire import ledger_adds_up, packet


@pytest.fixture
def port():
    with open_memory_port(frames=1024, quota_frames=8, policy="strict") as made:
        yield made
    assert made.ledger()["leaked"] == 0
    assert made.ledger()["leased"] == 0, "a test kept a frame"


def receive(port, packets):
    """A batch with these packets in it."""
    assert port.send(packets) == len(packets)
    batch = next(port.recv(timeout_ms=0))
    assert len(batch) == len(packets)
    return batch


def test_a_view_shows_the_packet_where_it_lies_and_is_read_only(port):
    batch = receive(port, [packet(1, 100)])
    with memoryview(batch[0]) as view:
        assert view.readonly and view.nbytes == 100 and view == packet(1, 100)
        with pytest.raises(TypeError):
            view[0] = 1
    with pytest.raises((TypeError, ValueError, BufferError)):
        np.frombuffer(batch[0], np.uint8)[0] = 1


def test_columns_are_numpy_arrays_without_a_copy_and_cannot_be_written(port):
    before = time.time_ns()
    batch = receive(port, [packet(n, 60 + n) for n in range(10)])
    assert batch.lengths.dtype == np.uint32
    assert batch.lengths.tolist() == list(range(60, 70))
    assert batch.timestamps_ns.dtype == np.uint64
    assert (np.diff(batch.timestamps_ns.astype(np.int64)) >= 0).all()
    assert before - 10**9 <= int(batch.timestamps_ns[0]) <= time.time_ns() + 10**9
    assert batch.rule_ids.shape == (10,)
    assert batch.lengths.base is batch.lengths[:].base, "two slices, one memory"
    with pytest.raises(ValueError):
        batch.lengths[0] = 0
    batch.release()


def test_columns_stay_as_they_were_after_the_batch_is_gone(port):
    first = receive(port, [packet(1, 111)])
    kept = first.lengths
    first.release()
    for size in range(60, 90):
        receive(port, [packet(1, size)]).release()
    assert kept.tolist() == [111]


def test_head_gathers_the_first_bytes_and_pads_short_packets_with_zeros(port):
    batch = receive(port, [packet(1, 64), packet(2, 60)])
    head = batch.head(62)
    assert head.shape == (2, 62) and head.dtype == np.uint8
    assert head[0].tobytes() == packet(1, 64)[:62]
    assert head[1].tobytes() == packet(2, 60) + b"\0\0"
    batch.release()
    assert head[0].tobytes() == packet(1, 64)[:62], "head is a copy: it outlives the batch"
    with pytest.raises(appliance.StaleFrame):
        batch.head(4)


def test_a_frame_is_stale_once_its_batch_is_gone(port):
    batch = receive(port, [packet(1)])
    frame = batch[0]
    batch.release()
    for use in (memoryview, bytes, appliance.Frame.hold):
        with pytest.raises(appliance.StaleFrame):
            use(frame)
    with pytest.raises(appliance.StaleFrame):
        batch[0]
    assert frame.stale and len(frame) == 64


def test_a_batch_is_recycled_when_the_loop_goes_on(port):
    port.send([packet(n) for n in range(3)])
    batches = port.recv(max_frames=1, timeout_ms=0)
    first = next(batches)
    frame = first[0]
    next(batches)
    with pytest.raises(appliance.StaleFrame):
        bytes(frame)
    assert len(first) == 1, "its length is still known"


def test_a_live_view_keeps_its_frame_out_of_circulation(port):
    batch = receive(port, [packet(7)])
    view = memoryview(batch[0])
    batch.release()
    for n in range(3000):  # three times around all frames
        receive(port, [packet(n, 99)]).release()
    assert view == packet(7)
    assert port.held == 1 and ledger_adds_up(port)["leased"] == 1
    view.release()
    assert port.held == 0 and port.ledger()["leased"] == 0


def test_a_held_frame_outlives_its_batch_until_it_is_released(port):
    batch = receive(port, [packet(5), packet(6)])
    frame = batch[1].hold()
    batch.release()
    receive(port, [packet(n) for n in range(50)]).release()
    assert bytes(frame) == packet(6) and frame.held
    frame.release()
    with pytest.raises(appliance.StaleFrame):
        bytes(frame)
    frame.release()  # once more does nothing


def test_two_frames_of_one_packet_are_held_apart(port):
    batch = receive(port, [packet(1)])
    one, two = batch[0].hold(), batch[0].hold()
    batch.release()
    one.release()
    assert bytes(two) == packet(1)
    assert port.send([two]) == 1, "nobody else has it any more, so it moves"
    port.flush()
    next(port.recv(timeout_ms=0)).release()


def test_a_frame_that_another_part_of_the_program_holds_is_copied_when_sent(port):
    batch = receive(port, [packet(1)])
    one, two = batch[0].hold(), batch[0].hold()
    batch.release()
    assert port.send([one]) == 1
    assert bytes(one) == bytes(two) == packet(1)
    one.release()
    two.release()
    port.flush()
    next(port.recv(timeout_ms=0)).release()


def test_a_frame_keeps_its_batch_when_nobody_else_does(port):
    frame = receive(port, [packet(1)])[0]
    gc.collect()
    assert bytes(frame) == packet(1)


def test_holds_are_counted_and_a_forgotten_one_comes_home_with_its_object(port):
    frame = receive(port, [packet(1)])[0].hold().hold()
    frame.release()
    assert frame.held
    del frame
    gc.collect()
    next(port.recv(timeout_ms=0)).release()
    assert port.held == 0


def test_the_quota_refuses_the_hold_beyond_it_and_recovers(port):
    batch = receive(port, [packet(n) for n in range(9)])
    held = [batch[n].hold() for n in range(8)]
    with pytest.raises(appliance.MemoryExhausted, match="quota of 8"):
        batch[8].hold()
    with pytest.raises(appliance.MemoryExhausted):
        memoryview(batch[8])
    assert bytes(batch[8]) == packet(8), "a copy needs no quota"
    for frame in held:
        frame.release()
    batch[8].hold().release()
    batch.release()


def test_a_sent_frame_moves_without_a_copy_and_is_stale(port):
    batch = receive(port, [packet(3)])
    frame = batch[0]
    assert port.send([frame]) == 1
    with pytest.raises(appliance.StaleFrame):
        bytes(frame)
    batch.release()
    again = next(port.recv(timeout_ms=0))
    assert bytes(again[0]) == packet(3)
    again.release()


def test_a_frame_that_somebody_looks_at_is_copied_when_sent(port):
    batch = receive(port, [packet(3)])
    view = memoryview(batch[0])
    assert port.send([batch[0]]) == 1
    assert view == packet(3) and bytes(batch[0]) == packet(3)
    view.release()
    batch.release()
    again = next(port.recv(timeout_ms=0))
    assert bytes(again[0]) == packet(3)
    again.release()


def test_a_held_frame_can_be_sent_and_gives_its_quota_back(port):
    frame = receive(port, [packet(4)])[0].hold()
    assert port.held == 1
    assert port.send([frame]) == 1
    assert port.held == 0
    frame.release()
    next(port.recv(timeout_ms=0)).release()
    assert port.flush() and port.ledger()["tx"] == 0


@pytest.mark.parametrize("bad", [b"", bytes(4097)])
def test_a_packet_that_can_never_be_sent_is_refused_and_costs_nothing(port, bad):
    before = port.ledger()
    with pytest.raises(appliance.PortError, match="bytes"):
        port.send([bad])
    assert port.ledger() == before


def test_send_stops_where_there_is_no_room_and_goes_on_after(port):
    accepted = port.send([packet(n, 3700) for n in range(2000)])
    assert 0 < accepted < 2000
    got = 0
    for batch in port.recv(timeout_ms=0):
        got += len(batch)
        if not len(batch):
            break
    assert got > 0 and port.send([packet(1)]) == 1
    for batch in port.recv(timeout_ms=0):
        if not len(batch):
            break


def test_a_view_survives_the_port_and_its_memory_goes_with_the_last_view():
    with open_memory_port(frames=1024) as port:
        frame = receive(port, [packet(9)])[0].hold()
        view = memoryview(frame)
    assert port.ledger()["leaked"] == 0
    del port
    gc.collect()
    assert view == packet(9)
    view.release()
    frame.release()


def test_reference_cycles_through_batches_and_views_are_collected_without_a_crash():
    for _ in range(50):
        port = open_memory_port(frames=256)
        batch = receive(port, [packet(1)])
        cycle = [port, batch, batch[0], memoryview(batch[0])]
        cycle.append(cycle)
        del port, batch, cycle
    gc.collect()


def test_closing_ends_a_waiting_receiver_in_another_thread():
    port = open_memory_port(frames=256)
    ended = []

    def wait():
        for batch in port.recv(timeout_ms=None):
            ended.append(len(batch))
        ended.append("stopped")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    started = time.monotonic()
    port.close()
    thread.join(5)
    assert not thread.is_alive() and ended == ["stopped"]
    assert time.monotonic() - started < 1
    with pytest.raises(StopIteration):
        next(port.recv())
    with pytest.raises(appliance.PortError, match="closed"):
        port.send([packet(1)])


def test_a_timeout_yields_an_empty_batch_on_time(port):
    started = time.monotonic()
    batch = next(port.recv(timeout_ms=50))
    assert len(batch) == 0 and 0.045 <= time.monotonic() - started < 1


@pytest.mark.parametrize("timeout_ms", [None, 60_000])
def test_a_signal_ends_the_wait_of_a_port_that_has_nothing_to_sleep_on(port, timeout_ms):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(port.recv(timeout_ms=timeout_ms))
    assert time.monotonic() - started < 5


def test_threads_that_receive_send_and_release_at_once_lose_no_frame(port):
    """Four threads on one port, 0.5 s: the lock of the UMEM is all that stands between them."""
    stop = time.monotonic() + 0.5
    problems = []

    def work(number):
        try:
            batches = port.recv(max_frames=8, timeout_ms=0)
            while time.monotonic() < stop:
                port.send([packet(number)] * 4)
                batch = next(batches)
                frames = [frame.hold() for frame in batch[:2]] if port.held < 4 else []
                for frame in frames:
                    if len(bytes(frame)) != 64:
                        problems.append(bytes(frame))
                    frame.release()
            batch.release()
        except appliance.MemoryExhausted:
            pass
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    for batch in port.recv(timeout_ms=0):
        if not len(batch):
            break
    ledger_adds_up(port)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"frames": 3}, "frames: 3"),
        ({"frame_bytes": 8192}, "frame_bytes: 8192"),
        ({"mode": "fast"}, "mode: 'fast'"),
        ({"queues": []}, "queues"),
        ({"backend": "rdma"}, "backend: 'rdma'"),
        ({"quota_frames": -1}, "quota_frames: -1"),
    ],
)
def test_a_bad_argument_is_one_line_that_names_it(arguments, words):
    with pytest.raises(appliance.ConfigError, match=words):
        open_memory_port(**arguments)


def test_a_port_without_a_rule_is_refused():
    with pytest.raises(appliance.ConfigError, match="rule"):
        appliance.open_port("lo")
