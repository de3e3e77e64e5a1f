"""A member in a process of its own, for the tests of sharing: gives up root, attaches, does a job.

    member.py SOCKET CONSUMER JOB [KEY=VALUE ...]

It says {"attached": ...} on a line of standard output, does its job, and says what it found on the
next. It owns no expectations. It drops to the user `nobody` before it attaches, unless user=root.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import zlib
from pathlib import Path

NOBODY = 65534


def capabilities() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("CapEff:"))


def say(**words) -> None:
    print(json.dumps(words), flush=True)


def number_of(packet) -> int:
    return struct.unpack_from("!Q", packet, 42)[0]


def collect(port, options) -> dict:
    """Until `packets` have come, or nothing for `quiet` seconds: numbers, a sum over contents."""
    wanted, quiet = int(options.get("packets", 1 << 60)), float(options.get("quiet", 2))
    numbers, check, copied = [], 0, 0
    stale, last = 0, time.monotonic()
    from appliance import StaleFrame

    for batch in port.recv(timeout_ms=50):
        for frame in batch:
            try:
                data = bytes(frame)
            except StaleFrame:
                stale += 1
                continue
            copied += frame.copied
            numbers.append(number_of(data))
            check = (check + zlib.crc32(data)) & 0xFFFFFFFFFFFF
        now = time.monotonic()
        last = now if len(batch) else last
        if len(numbers) >= wanted or now - last > quiet:
            break
    return {"numbers": numbers if "numbers" in options else len(numbers),
            "different": len(set(numbers)), "check": check, "copied": copied, "stale": stale,
            **port.stats()}


def in_place(port, options) -> dict:
    """As collect, without a copy of ours: views, looked at while the batch lives."""
    wanted, got, check = int(options["packets"]), 0, 0
    until = time.monotonic() + float(options.get("seconds", 20))
    for batch in port.recv(timeout_ms=50):
        for frame in batch:
            check = (check + zlib.crc32(memoryview(frame))) & 0xFFFFFFFFFFFF
        got += len(batch)
        if got >= wanted or time.monotonic() > until:
            break
    return {"numbers": got, "check": check, **port.stats()}


def count(port, options) -> dict:
    """Only counts, as fast as it can, for `seconds`."""
    until = time.monotonic() + float(options["seconds"])
    got, first, last = 0, 0.0, 0.0
    for batch in port.recv(256, timeout_ms=20):
        if len(batch):
            last = time.monotonic()
            first = first or last
            got += len(batch)
        elif time.monotonic() > until:
            break
    return {"numbers": got, "busy_s": last - first, **port.stats()}


def stall(port, options) -> dict:
    """Takes some, holds them, and stops itself; whoever continues it wants to see it go on."""
    held = []
    for batch in port.recv(timeout_ms=1000):
        held += [frame.hold() for frame in batch]
        if len(held) >= int(options.get("hold", 32)):
            batch.release()  # else it would keep the rest of its packets
            break
    before = [bytes(frame) for frame in held]
    say(holding=len(held))
    os.kill(os.getpid(), signal.SIGSTOP)
    # What we held was ours all the time: nobody may have written to it.
    intact = [bytes(frame) for frame in held] == before
    for frame in held:
        frame.release()
    held.clear()
    found = count(port, options)
    return {"intact": intact, **found}


def hang(port, options) -> dict:
    """Holds what it gets, and never comes back."""
    held = []
    for batch in port.recv(timeout_ms=100):
        held += [frame.hold() for frame in batch]
        if len(held) >= int(options.get("hold", 64)):
            break
    say(holding=len(held))
    while True:
        signal.pause()


def scribble(port, options) -> dict:
    """Random bytes into every page that it can write, while it reads on, for `seconds`."""
    chance = random.Random(int(options["seed"]))
    pages = writable_pages()
    say(writable=sum(end - start for start, end in pages))
    until = time.monotonic() + float(options["seconds"])
    rounds = 0
    while time.monotonic() < until:
        for start, end in pages:
            kind = chance.randrange(4)
            if kind == 0:     # everything
                ctypes.memmove(start, chance.randbytes(end - start), end - start)
            elif kind == 1:   # the words that matter: sleeping, returned, overruns
                for at in (0, 128, 256):
                    ctypes.memmove(start + at, chance.randbytes(4), 4)
            elif kind == 2:   # plausible returns of things that it has not
                count_ = chance.randrange(64)
                for at in range(count_):
                    word = struct.pack("<II", chance.randrange(256), chance.randrange(8))
                    ctypes.memmove(start + 4096 + 8 * at, word, 8)
                said = struct.unpack("<I", ctypes.string_at(start + 128, 4))[0]
                ctypes.memmove(start + 128, struct.pack("<I", (said + count_) & 0xFFFFFFFF), 4)
            else:             # zero
                ctypes.memset(start, 0, 4096)
        batch = port._attached.poll(64)
        batch.release()
        rounds += 1
    return {"rounds": rounds}


def writable_pages() -> list[tuple[int, int]]:
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and "openclaw" in words[5] and "w" in words[1]:
            found.append(tuple(int(part, 16) for part in words[0].split("-")))
    return found


def trespass(port, options) -> dict:
    """Tries to get at what it was given for reading, for writing. Names what it could do."""
    could = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if len(words) < 6 or "openclaw" not in words[5] or "w" in words[1]:
            continue
        start = int(words[0].split("-")[0], 16)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(4096), mmap.PROT_READ
                         | mmap.PROT_WRITE) == 0:
            could.append(f"mprotect {words[5]}")
        path = f"/proc/self/map_files/{words[0]}"
        could += opened(path, words[5])
    return {"could": could, "reopened": reopen(port)}


def opened(path: str, name: str) -> list[str]:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return []
    return [f"open {name}"]


def reopen(port) -> list[str]:
    """The descriptors as they came: opened again through /proc, for writing."""
    from appliance import handshake
    from appliance.attaching import _connect

    could = []
    connection = _connect(handshake.share_path(sys.argv[1]), 5)
    handshake.send(connection, {"version": 1, "consumer": sys.argv[2], "match": ""})
    answer, fds = handshake.receive(connection)
    for _ in range(answer["workers"]):
        _, more = handshake.receive(connection)
        fds += more[:3]  # the fourth is ours to write
        could += changed(more[3])
    for fd in fds:
        could += opened(f"/proc/self/fd/{fd}", os.readlink(f"/proc/self/fd/{fd}"))
        for act in (lambda fd=fd: os.ftruncate(fd, 0), lambda fd=fd: os.write(fd, b"x"),
                    lambda fd=fd: os.fchmod(fd, 0o777)):
            try:
                act()
            except OSError:
                continue
            could.append(os.readlink(f"/proc/self/fd/{fd}"))
    connection.close()
    return could


def changed(fd: int) -> list[str]:
    """Our own file may be written, and not shrunk under the engine's feet."""
    try:
        os.ftruncate(fd, 0)
    except OSError:
        return []
    return ["ftruncate of the returns"]


def asynchronously(port, options) -> dict:
    """Batches in an event loop that has something else to do as well."""
    import asyncio

    async def main() -> dict:
        ticks = numbers = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        other = asyncio.create_task(tick())
        async for batch in port:
            numbers += len(batch)
            if numbers >= int(options["packets"]):
                break
        other.cancel()
        return {"numbers": numbers, "ticks": ticks}

    return asyncio.run(asyncio.wait_for(main(), 30))


JOBS = {one.__name__: one for one in
        (collect, in_place, count, stall, hang, scribble, trespass, asynchronously)}


def main() -> None:
    path, consumer, job, *rest = sys.argv[1:]
    options = dict(word.partition("=")[::2] for word in rest)
    import appliance.attaching
    import appliance.dataplane

    if options.get("user") != "root":
        os.setgroups([])
        os.setgid(int(options.get("gid", NOBODY)))
        os.setuid(int(options.get("uid", NOBODY)))
    try:
        port = appliance.attaching.attach(path, consumer, options.get("match", ""))
    except appliance.OpenClawError as error:
        say(refused=str(error), exit_status=error.exit_status)
        return
    with port:
        say(attached=port.info, capabilities=capabilities(), uid=os.getuid())
        say(**JOBS[job](port, options))


if __name__ == "__main__":
    main()
