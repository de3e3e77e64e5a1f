"""`async for batch in port` of a port of one's own: as the blocking loop, beside other tasks."""

from __future__ import annotations

import asyncio

import pytest

import appliance
from tests.engine.support import open_sender, send_all, udp


def collected(port, wanted: int, ended: asyncio.Event | None = None):
    async def main() -> tuple[list[bytes], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        other = asyncio.create_task(tick())
        got: list[bytes] = []
        async for batch in port:
            assert len(batch), "an empty batch"
            got += [bytes(frame) for frame in batch]
            if len(got) >= wanted:
                break
        await asyncio.sleep(0.05)
        other.cancel()
        return got, ticks

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_a_port_in_memory_is_awaited():
    packets = [udp(i) for i in range(200)]
    with appliance.open_port("loop", backend="loop") as port:
        assert port.send(packets) == 200
        got, ticks = collected(port, 200)
    assert got == packets and ticks > 0


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_a_port_on_veth_is_awaited_while_packets_come(lab):
    packets = [udp(i) for i in range(600)]

    async def main(port, sender) -> list[bytes]:
        got: list[bytes] = []

        async def feed() -> None:
            for at in range(0, 600, 100):
                await asyncio.sleep(0.01)
                send_all(sender, packets[at : at + 100])

        task = asyncio.create_task(feed())
        async for batch in port:
            got += [bytes(frame) for frame in batch]
            if len(got) == 600:
                break
        await task
        return got

    with (appliance.open_port(lab.b.interface, match="udp", netns=lab.b.netns) as port,
          open_sender(lab.a) as sender):
        assert asyncio.run(asyncio.wait_for(main(port, sender), 20)) == packets
        assert port.ledger()["leased"] == 0


def test_the_loop_ends_with_its_port_and_leaves_no_batch_lent():
    async def main(port) -> int:
        rounds = 0
        asyncio.get_running_loop().call_later(0.1, port.close)
        async for _ in port:
            rounds += 1
        return rounds

    with appliance.open_port("loop", backend="loop") as port:
        port.send([udp(1)])
        assert asyncio.run(asyncio.wait_for(main(port), 20)) == 1
    assert port.ledger()["leaked"] == 0 == port.ledger()["leased"]
