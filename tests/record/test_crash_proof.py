"""Logs that were cut, flipped, shuffled, zeroed and mixed with older uses of the same pages:
recovery yields a prefix of what was written, or says that it is damaged; nothing else ever.

Every case is seeded and says so when it fails; OPENCLAW_LOG_SEED repeats a run. The smoke form has
10,000 cases; OPENCLAW_FULL=1 ten times as many.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import appliance
from appliance import record
from appliance.errors import LogDamaged
from tests.record.images import PAGE, Image, build

FULL = bool(os.environ.get("OPENCLAW_FULL"))
CASES = 100_000 if FULL else 10_000
LONG = pytest.mark.timeout(3600 if FULL else 300)
SEED = int(os.environ.get("OPENCLAW_LOG_SEED", random.SystemRandom().randrange(1 << 32)))


def clear(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def read(directory: Path) -> tuple[list[tuple], str]:
    """Every record that a reader is given, and how the reading ended."""
    found: list[tuple] = []
    log = appliance.open_log(directory)
    try:
        for batch in log:
            found += [(r.seq, r.timestamp_ns, bytes(r), r.port, r.queue, r.rule_id, r.original)
                      for r in batch]
    except LogDamaged:
        return found, "damaged"
    return found, log.state


def written(image: Image) -> list[tuple]:
    return [(r.seq, r.timestamp_ns, r.packet, r.port, r.queue, r.rule, r.original)
            for r in image.records]


def check(directory: Path, image: Image, note: str, *, at_least: int = 0) -> str:
    """What must hold of any log whatever was done to it; returns the verdict."""
    want = written(image)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    told = record.verify(record.Store(directory))
    found, ended = read(directory)
    if found and not any(before[min(before)][:PAGE]):  # the oldest segment is as if recycled
        want = want[found[0][0] - 1:]
    assert found == want[:len(found)], f"{note}: a wrong record among {len(found)}"
    assert told["records"] == len(found) or told["state"] == "damaged", f"{note}: {told}"
    assert ended == told["state"], f"{note}: reading ended {ended}, verify says {told}"
    done = record.recover(record.Store(directory))
    assert done["state"] == told["state"], f"{note}: {told} then {done}"
    if told["state"] == "damaged":
        after = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert after == before, f"{note}: a damaged log was changed"
        return "damaged"
    assert len(found) >= at_least, f"{note}: {len(found)} records of {at_least} durable: {told}"
    again = record.verify(record.Store(directory))
    assert again["state"] == "clean", f"{note}: {told}, recovered, then {again}"
    kept, ended = read(directory)
    assert (kept, ended) == (found, "clean"), f"{note}: recovery changed the records"
    assert record.recover(record.Store(directory))["cut_bytes"] == 0, note
    return told["state"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In memory where that is possible: the cases write a gigabyte."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK):
        path = shm / f"oc-log-{os.getpid()}-{random.SystemRandom().randrange(1 << 32):x}"
        path.mkdir()
    else:
        path = tmp_path_factory.mktemp("log")
    yield path
    clear(path)
    path.rmdir()


@pytest.fixture
def directory(folder):
    clear(folder)
    yield folder
    clear(folder)


@LONG
def test_a_log_cut_at_every_byte_of_its_last_two_writes_is_a_prefix(directory):
    rng = random.Random(SEED)
    image = build(directory, rng, writes=4, preallocate=False, small=True)
    only, *_ = image.segments
    whole = image.segments[only]
    start = image.commits[-2].start
    step = 1 if FULL else 3  # every byte in three runs: which ones, the seed decides
    for at in range(start + rng.randrange(step), len(whole) + 1, step):
        clear(directory)
        image.segments[only] = whole[:at]
        image.lay(directory)
        check(directory, image, f"seed {SEED}, cut at {at} of {len(whole)}")


@LONG
def test_every_byte_of_the_headers_is_under_a_checksum(directory):
    """With the state page there is no byte whose change passes for a clean log."""
    rng = random.Random(SEED)
    image = build(directory, rng, writes=5, preallocate=False, small=True)
    only, *_ = image.segments
    whole = image.segments[only]
    places = [*range(0, PAGE, 1 if FULL else 7), *range(PAGE, len(whole), 1 if FULL else 11)]
    for at in places:
        clear(directory)
        broken = bytearray(whole)
        broken[at] ^= 1 << rng.randrange(8)
        image.segments[only] = bytes(broken)
        image.lay(directory)
        verdict = check(directory, image, f"seed {SEED}, byte {at} of {len(whole)} flipped")
        assert verdict != "clean", f"seed {SEED}, byte {at} of {len(whole)} flipped, and clean"


def pages(data: bytes) -> list[bytes]:
    return [data[at:at + PAGE] for at in range(0, len(data), PAGE)]


def shuffle(rng: random.Random, image: Image, old: Image) -> str:
    """One to four changes: anywhere, or among the pages of the last two writes."""
    done = []
    tail = rng.random() < 0.6
    for _ in range(rng.choice([1, 1, 2, 4])):
        commit = image.commits[rng.choice([-1, -1, -2])] if tail else rng.choice(image.commits)
        index = commit.index
        data = pages(image.segments[index])
        first = commit.start // PAGE if tail else 0
        last = commit.end // PAGE if tail else len(data)
        if first >= len(data):
            continue  # cut off before
        one, other = (rng.randrange(first, min(last, len(data))) for _ in range(2))
        what = rng.choice(["zero", "swap", "old", "copy", "flip", "cut", "header"])
        if what == "zero":
            data[one] = bytes(len(data[one]))
        elif what == "swap":
            data[one], data[other] = data[other], data[one]
        elif what == "old" and index in old.segments:
            former = pages(old.segments[index])
            data[one] = former[one] if one < len(former) else bytes(PAGE)
        elif what == "copy":
            data[one] = data[other]
        elif what == "flip":
            at = rng.randrange(len(data[one]))
            data[one] = (data[one][:at] + bytes([data[one][at] ^ (1 << rng.randrange(8))])
                         + data[one][at + 1:])
        elif what == "header":
            at = min(rng.randrange(160), len(data[first]) - 1)
            data[first] = (data[first][:at] + bytes([data[first][at] ^ (1 << rng.randrange(8))])
                           + data[first][at + 1:])
        joined = b"".join(data)
        if what == "cut":
            joined = joined[:rng.randrange(first * PAGE, len(joined) + 1)]
        image.segments[index] = joined
        done.append(f"{what} {index}:{one},{other}")
    return ", ".join(done)


def images(directory: Path, rng: random.Random) -> list[tuple[Image, Image]]:
    """Logs of different ends, each with what an earlier use left in the same pages."""
    made = []
    for seal in (False, True):
        for sync_every in (1, 3):
            uuid = rng.randbytes(16)
            old = build(directory, rng, writes=24, epoch=7_000, uuid=uuid)
            new = build(directory, rng, writes=11, epoch=9_000, uuid=uuid, seal=seal,
                        sync_every=sync_every)
            for index in new.segments:  # recycled: behind the new writes lie the old ones
                former = old.segments.get(index, b"")
                end = max([c.end for c in new.commits if c.index == index], default=PAGE)
                if not seal and index == max(new.segments):
                    new.segments[index] = new.segments[index][:end] + former[end:]
            made.append((new, old))
    return made


@LONG
def test_ten_thousand_logs_broken_at_random_are_a_prefix_or_damaged(directory):
    rng = random.Random(SEED)
    made = images(directory, rng)
    verdicts: dict[str, int] = {}
    for case in range(CASES):
        rng = random.Random(f"{SEED} {case}")
        image, old = rng.choice(made)
        broken = Image(dict(image.segments), image.records, image.commits,
                       rng.choice([image.state, image.state, b"", bytes(PAGE),
                                   rng.choice(image.commits).state]))
        note = shuffle(rng, broken, old)
        clear(directory)
        broken.lay(directory)
        # Header and writes of the older use, all of them: that is the older log, and valid.
        first = min(image.segments)
        whole_old = broken.segments[first][:PAGE] == old.segments[first][:PAGE]
        verdict = check(directory, old if whole_old else image,
                        f"seed {SEED}, case {case}: {note}")
        verdicts[verdict] = verdicts.get(verdict, 0) + 1
    # Each must have happened, or the cases say nothing.
    assert min(verdicts.get(v, 0) for v in ("clean", "torn", "damaged")) > CASES // 50, verdicts


@LONG
def test_a_power_cut_takes_what_was_not_flushed_and_no_more(directory):
    """Every page of a write that no flush had confirmed is there, or is what it was before."""
    rng = random.Random(SEED)
    made = images(directory, rng)[:2]  # killed, not sealed
    kept = set()
    for case in range(CASES // 10):
        rng = random.Random(f"{SEED} power {case}")
        image, old = rng.choice(made)
        at = rng.randrange(len(image.commits))
        durable = image.commits[at].durable_seq
        segments = {}
        for index, whole in image.segments.items():  # what a later use has not yet changed
            ends = [c.end for c in image.commits[:at + 1] if c.index == index]
            if index < image.commits[at].index:
                segments[index] = whole  # sealed and flushed before the next was begun
            elif ends:
                former = old.segments.get(index, b"")
                segments[index] = (whole[:max(ends)] + former[max(ends):]).ljust(len(whole), b"\0")
        broken = Image(segments, image.records, image.commits)
        # The next write was on its way.
        flying = [c for c in image.commits[:at + 2] if c.last_seq > durable and c.index in segments]
        for commit in flying:
            data, new = pages(segments[commit.index]), pages(image.segments[commit.index])
            former = pages(old.segments.get(commit.index, b""))
            for page in range(commit.start // PAGE, commit.end // PAGE):
                gone = former[page] if page < len(former) else bytes(PAGE)
                data[page] = gone if rng.random() < 0.4 else new[page]
            segments[commit.index] = b"".join(data)
        # The page of the state may be as old as it likes; it is never ahead of the flush.
        broken.state = rng.choice([b"", *(c.state for c in image.commits[:at + 1])])
        clear(directory)
        broken.lay(directory)
        note = f"seed {SEED}, power cut {case} after {durable}"
        verdict = check(directory, image, note, at_least=durable)
        assert verdict != "damaged", note
        kept.add(verdict)
    assert kept == {"clean", "torn"}
