#!/usr/bin/env python3
"""The ten busiest IPv4 senders of the last second, again and again. Needs no root.

    examples/top_talkers.py [SOCKET [CONSUMER]]
"""

import ipaddress
import sys
import time
from collections import Counter

import numpy as np

import appliance


def show(sizes: Counter) -> None:
    for address, size in sizes.most_common(10):
        print(f"{ipaddress.ip_address(address)!s:>15} {size:12,} bytes")
    print(flush=True)


with appliance.attach(*sys.argv[1:2], consumer=(sys.argv[2:] or ["taps"])[0], match="ip") as port:
    sizes: Counter[int] = Counter()
    due = time.monotonic() + 1
    for batch in port.recv(max_frames=1024):
        if len(batch):
            source = np.ascontiguousarray(batch.head(34)[:, 26:30]).view(">u4").ravel()
            for address in np.unique(source):
                sizes[int(address)] += int(batch.lengths[source == address].sum())
        if time.monotonic() >= due:
            show(sizes)
            sizes.clear()
            due = time.monotonic() + 1
