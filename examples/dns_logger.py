#!/usr/bin/env python3
"""Logs the names that are asked for over UDP, in asyncio beside other work. Needs no root.

    examples/dns_logger.py [SOCKET [CONSUMER]]
"""

import asyncio
import datetime
import ipaddress
import sys

import appliance

UDP_PAYLOAD = 14 + 20 + 8  # IPv4 without options: the filter says so


def name_of(message: memoryview) -> str:
    """The first name of a DNS question; empty if it is none."""
    labels, at = [], 12
    while at < len(message) and 0 < message[at] < 64:
        labels.append(bytes(message[at + 1 : at + 1 + message[at]]).decode("ascii", "replace"))
        at += 1 + message[at]
    return ascii(".".join(labels))[1:-1]  # what packets say must not repaint a terminal


async def log(port) -> None:
    async for batch in port:
        for frame in batch:
            try:
                view = memoryview(frame)
            except appliance.StaleFrame:
                continue  # lossy, and we were too slow: port.stats() counts it
            when = datetime.datetime.fromtimestamp(frame.timestamp_ns / 1e9).isoformat()
            who = ipaddress.ip_address(bytes(view[26:30]))
            print(when, who, name_of(view[UDP_PAYLOAD:]), flush=True)


async def main() -> None:
    match = "ip[0] = 0x45 and udp dst port 53"
    with appliance.attach(*sys.argv[1:2], consumer=(sys.argv[2:] or ["taps"])[0],
                          match=match) as port:
        await log(port)


asyncio.run(main())
