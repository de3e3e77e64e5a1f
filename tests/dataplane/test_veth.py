"""Conformance of the AF_XDP port over a veth pair: exact count, order per queue, content.

Native and generic attach, one and two queues, every polling profile, 60 to 9,014 bytes. The loop
port answers the same contract in test_batches.py and test_model.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import appliance
from appliance.net import Lab, link_statistics
from tests.dataplane.wire import ledger_adds_up, packet, pump, sequence

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")]


def pair(lab, *, both=False, queues="all", **arguments):
    """(receiver on b, sender on a); with `both` the sender receives too."""
    rx = appliance.open_port(
        lab.b.interface, "", netns=lab.b.netns, queues=queues, frames=2048, **arguments
    )
    try:
        jumbo = arguments.get("jumbo", False)
        tx = appliance.open_port(
            lab.a.interface,
            "" if both else None,
            netns=lab.a.netns,
            transmit_only=not both,
            frames=2048,
            jumbo=jumbo,
        )
    except BaseException:
        rx.close()
        raise
    return rx, tx


def closed_clean(*ports):
    for port in ports:
        port.close()
        ledger = ledger_adds_up(port)
        assert ledger["leaked"] == 0 and ledger["leased"] == 0
        assert ledger["free"] == ledger["total"]


@pytest.mark.parametrize("poll", ["irq", "defer", "busy"])
@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("attach", ["native", "generic"])
def test_every_packet_arrives_once_in_order_and_whole(attach, queues, poll):
    with Lab.temporary(queues=queues) as lab:
        rx, tx = pair(lab, attach=attach, poll=poll)
        with rx, tx:
            assert rx.info["attach_mode"] == attach
            for queue in range(queues):
                sizes = [60, 64, 65, 128, 777, 1514]
                sent = [packet(n, sizes[n % len(sizes)]) for n in range(600)]
                received = pump(tx, rx, sent, queue=queue)
                assert [data for _, data in received] == sent
                # Generic XDP sits behind the point where veth loses the queue: all are queue 0.
                assert {number for number, _ in received} == {queue if attach == "native" else 0}
            assert rx.steering()["seen"] == rx.steering()["consumed"] == 600 * queues
            assert rx.drops() == {}
            ledger_adds_up(rx)
        closed_clean(rx, tx)


@pytest.mark.parametrize("attach", ["native", "generic"])
def test_jumbo_packets_arrive_whole_at_both_ends_of_every_fragment(attach):
    with Lab.temporary(queues=2, mtu=9000) as lab:
        rx, tx = pair(lab, attach=attach, jumbo=True)
        with rx, tx:
            room = 4096 - 256  # a frame less the kernel's headroom
            sizes = [60, 1514, room - 1, room, room + 1, 4096, 4097, 2 * room, 8192, 9000, 9014]
            sent = [packet(n, size) for n, size in enumerate(sizes * 8)]
            received = pump(tx, rx, sent)
            assert [data for _, data in received] == sent
            tx.send([packet(1, 9014)])
            batch = next(rx.recv(timeout_ms=1000))
            pieces = batch[0].fragments
            assert [len(piece) for piece in pieces] == [room, room, 9014 - 2 * room]
            assert b"".join(pieces) == packet(1, 9014) == bytes(batch[0])
            for piece in pieces:
                assert piece.readonly
                piece.release()
            assert batch.head(9014).tobytes() == packet(1, 9014)
            batch.release()
            del piece, pieces
        closed_clean(rx, tx)


@pytest.mark.parametrize("poll", ["irq", "defer", "busy"])
def test_a_single_packet_comes_through_at_once(lab, poll):
    rx, tx = pair(lab, poll=poll)
    with rx, tx:
        batches = rx.recv(timeout_ms=2000)
        for number in range(50):
            started = time.monotonic()
            tx.send([packet(number)])
            batch = next(batches)
            assert [sequence(frame) for frame in batch] == [number]
            # Alone it takes 50 us; half a second says "did not wait for company or a timeout".
            assert time.monotonic() - started < 0.5
        batch.release()
    closed_clean(rx, tx)


def test_a_signal_ends_the_wait_of_a_busy_port(lab):
    rx, tx = pair(lab, poll="busy")
    with rx, tx:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(rx.recv(timeout_ms=None))
    closed_clean(rx, tx)


def test_both_directions_at_once(lab):
    """Each end sends and receives; the frames that it received go back where they came from."""
    rx, tx = pair(lab, both=True)
    with rx, tx:
        there = [packet(n, 200) for n in range(300)]
        stop, seen = threading.Event(), []

        def reflect():
            for batch in rx.recv(timeout_ms=20):
                frames = list(batch)
                seen.extend(sequence(frame) for frame in frames)
                assert rx.send(frames, batch.queue_id) == len(frames)
                if stop.is_set() and not frames:
                    return

        thread = threading.Thread(target=reflect)
        thread.start()
        back = pump(tx, tx, there)
        stop.set()
        thread.join(10)
        assert [data for _, data in back] == there
        assert seen == list(range(300))
        assert rx.flush() and tx.flush()
    closed_clean(rx, tx)


def test_a_received_frame_is_sent_on_without_a_copy(lab):
    rx, tx = pair(lab, both=True)
    with rx, tx:
        tx.send([packet(1)])
        batch = next(rx.recv(timeout_ms=1000))
        before = rx.ledger()
        assert rx.send([batch[0]]) == 1 and rx.flush()
        assert rx.ledger()["leased"] == before["leased"] - 1, "the frame itself went"
        back = next(tx.recv(timeout_ms=1000))
        assert bytes(back[0]) == packet(1)
        back.release()
        batch.release()
    closed_clean(rx, tx)


def test_management_traffic_stays_with_the_kernel_while_everything_is_consumed(lab):
    rx, tx = pair(lab)
    with rx, tx:
        arp = bytes.fromhex("ffffffffffff0200000000010806") + bytes(46)
        assert pump(tx, rx, [arp, packet(1), arp, packet(2)]) == [(0, packet(1)), (0, packet(2))]
        steering = rx.steering()
        assert (steering["passed"], steering["consumed"]) == (2, 2)
    closed_clean(rx, tx)


def test_two_hundred_open_and_close_cycles_under_traffic(lab):
    """In the smoke form twenty; OPENCLAW_FULL=1 makes it two hundred."""
    cycles = 200 if os.environ.get("OPENCLAW_FULL") else 8
    stop = threading.Event()
    with appliance.open_port(
        lab.a.interface, netns=lab.a.netns, transmit_only=True, frames=1024
    ) as tx:

        def send():
            number = 0
            while not stop.is_set():
                if tx.outstanding < 64:
                    number += tx.send([packet(number, 256)] * 16)
                else:
                    tx.flush(1)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            for _ in range(cycles):
                rx = appliance.open_port(lab.b.interface, "", netns=lab.b.netns, frames=1024)
                with rx:
                    got = 0
                    limit = time.monotonic() + 5
                    for batch in rx.recv(timeout_ms=100):
                        got += len(batch)
                        ledger_adds_up(rx)
                        if got > 200 or time.monotonic() > limit:
                            break
                    assert got > 200
                closed_clean(rx)
        finally:
            stop.set()
            thread.join()
    closed_clean(tx)


def test_a_second_port_on_the_same_queue_is_refused_in_one_line_and_harms_nobody(lab):
    rx, tx = pair(lab)
    with rx, tx:
        with pytest.raises(appliance.PortError) as refused:
            appliance.open_port(lab.b.interface, "", netns=lab.b.netns, frames=1024)
        assert "\n" not in str(refused.value)
        assert [data for _, data in pump(tx, rx, [packet(1)])] == [packet(1)]
    closed_clean(rx, tx)


def test_what_the_link_loses_is_in_the_links_own_figures(lab):
    """Nobody receives: the veth ring of 256 overflows, and the interface says by how much."""
    rx, tx = pair(lab)
    with rx, tx:
        sent = 0
        limit = time.monotonic() + 10
        while sent < 3000 and time.monotonic() < limit:
            sent += tx.send([packet(n) for n in range(sent, min(sent + 64, 3000))])
            tx.flush(5)
        tx.flush(2000)
        got = sum(len(batch) for batch in _until_quiet(rx))
        kernel = rx.stats()["kernel"]
        link = link_statistics(lab.a.interface, lab.a.netns)["tx_dropped"]
        lost = kernel["rx_dropped"] + kernel["rx_ring_full"]
        assert sent == 3000 == got + lost + link
    closed_clean(rx, tx)


def _until_quiet(port):
    for batch in port.recv(timeout_ms=100):
        if not len(batch):
            return
        yield batch


def test_rules_are_swapped_without_losing_a_packet(lab):
    rx, tx = pair(lab)
    with rx, tx:
        sent = [packet(n) for n in range(4000)]
        swaps = iter(["ether proto 0x88b5", "greater 60", "", "not ip"])
        received, at = [], 0
        batches = rx.recv(timeout_ms=100)
        rules = {rx.rules[0][0]}
        quiet = 0
        while quiet < 2:
            at += tx.send(sent[at : at + max(0, 32 - tx.outstanding)])
            tx.flush(0)
            batch = next(batches)
            received += [sequence(frame) for frame in batch]
            rules |= set(batch.rule_ids.tolist())
            if len(received) // 800 > len(rules) - 1 and (text := next(swaps, None)) is not None:
                rx.swap_rules([appliance.Rule(match=text, action="consume")])
                rules.add(rx.rules[0][0])
            quiet = quiet + 1 if at == len(sent) and not len(batch) else 0
        batch.release()
        assert received == list(range(4000))
        assert len(rules) >= 4, "the swaps did happen"
        steering = rx.steering()
        assert steering["seen"] == steering["consumed"] == 4000 == sum(steering["by_rule"].values())
    closed_clean(rx, tx)
