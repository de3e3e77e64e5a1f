"""Batches for asyncio: `async for batch in port`, of an attached port and of one of our own.

Owns the waiting. It looks first and sleeps only when there is nothing; after each batch the other
tasks have a turn. A batch is recycled when the loop asks for the next, and none is ever empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

NAP_S = 0.0005  # a port with nothing to poll on (backend loop): as its blocking loop does
LOOK_S = 0.1  # at most: a port that another thread closes is noticed by then


async def batches(source: Any, max_frames: int) -> AsyncIterator[Any]:
    """`source` has poll(most), doze(), rouse(), fileno() or filenos(), closed, ended."""
    batch = None
    try:
        while True:
            if batch is not None:
                batch.release()
                batch = None
                await asyncio.sleep(0)
            if source.closed:
                return
            batch = source.poll(max_frames)
            if batch is None:
                return
            if len(batch):
                yield batch
                continue
            batch.release()
            batch = None
            if source.ended:
                return
            if not source.doze():
                await _readable(source.filenos())
                source.rouse()
    finally:
        if batch is not None:
            batch.release()


async def _readable(descriptors: list[int]) -> None:
    """Until one of them is readable, or LOOK_S have passed."""
    loop = asyncio.get_running_loop()
    if not descriptors:
        await asyncio.sleep(NAP_S)
        return
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    for fd in descriptors:
        loop.add_reader(fd, wake)
    try:
        await asyncio.wait([ready], timeout=LOOK_S)
    finally:
        for fd in descriptors:
            loop.remove_reader(fd)
        ready.cancel()


class OwnPort:
    """An endpoint of this process as `batches` wants its source."""

    ended = False  # only an appliance in another process can end before the port does

    def __init__(self, endpoint: Any, max_frames: int) -> None:
        self._endpoint = endpoint
        self._receiver = endpoint.recv(max_frames, 0)

    @property
    def closed(self) -> bool:
        return bool(self._endpoint.closed)

    def poll(self, _most: int) -> Any:
        return next(self._receiver, None)  # None: another thread has closed the port

    def doze(self) -> bool:
        return False

    def rouse(self) -> None:
        """Nothing was armed."""

    def filenos(self) -> list[int]:
        return [queue.fd for queue in self._endpoint.queues if queue.fd >= 0]
