"""A process that records at full rate until it is killed: `python -m ... DIRECTORY [key=value]...`

Says "ready" when the first packets are durable. For the kill -9 tests; it never ends by itself.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.record.recorder_support import Rig


def main() -> None:
    directory, *words = sys.argv[1:]
    settings = {key: int(value) for key, value in (word.split("=") for word in words)}
    rig = Rig(Path(directory), generate=300, **settings).start()
    told = False
    while True:
        rig.pump(2000, settle=False)
        # As fast as the disk takes it: what finds no block makes gaps, and here none are wanted.
        while rig.recording.summary()["in_memory"] > 20000:
            time.sleep(0.0005)
        if not told and rig.recording.summary()["durable"]:
            print("ready", flush=True)
            told = True


if __name__ == "__main__":
    main()
