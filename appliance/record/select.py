"""Which records of a log are wanted: a time range, a pcap expression, a conversation.

Owns Selection and the reading of what people write for times and flows. It looks at batches only;
where in the log to begin and end is for reader.py, which asks the time range.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import time
from dataclasses import dataclass
from typing import Any

from appliance.dataplane import log_read, pcap
from appliance.errors import ConfigError

__all__ = ["Flow", "Selection", "parse_flow", "parse_time"]

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58}
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ENDS = "PROTO ADDRESS:PORT ADDRESS:PORT, an IPv6 address in brackets when a port follows"


@dataclass(frozen=True)
class Flow:
    """A conversation: two ends and a protocol. Ports of -1: the protocol has none."""

    protocol: int
    one: bytes
    one_port: int
    two: bytes
    two_port: int


def parse_time(text: str, *, name: str = "time", now_ns: int | None = None) -> int:
    """Nanoseconds since 1970 of: seconds since 1970 (1700000000.25), ISO 8601 (local time unless
    it names a zone), or a time ago (-30s, -5m, -2h, -1d)."""
    ago = re.fullmatch(r"-(\d+(?:\.\d+)?)([smhd])", text)
    if ago:
        now = time.time_ns() if now_ns is None else now_ns
        return max(0, now - int(float(ago[1]) * UNITS_S[ago[2]] * 10**9))
    plain = re.fullmatch(r"(\d{1,11})(?:\.(\d{1,9}))?", text)
    if plain:
        fraction = (plain[2] or "").ljust(9, "0")
        return int(plain[1]) * 10**9 + int(fraction)
    digits = re.search(r"[.,](\d{1,9})", text)
    whole = text if digits is None else text[: digits.start()] + text[digits.end():]
    try:
        when = datetime.datetime.fromisoformat(whole)
    except ValueError:
        raise ConfigError(
            f"{name}: {text!r}: seconds since 1970, 2026-11-20T13:00:00, or a time ago as -30s"
        ) from None
    fraction = int(digits[1].ljust(9, "0")) if digits else 0
    return int(when.timestamp()) * 10**9 + fraction


def _end(text: str, with_port: bool) -> tuple[bytes, int]:
    port = -1
    if with_port:
        text, colon, number = text.rpartition(":")
        if not colon or not number.isdecimal() or int(number) > 65_535:
            raise ValueError
        port = int(number)
        text = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    return ipaddress.ip_address(text).packed, port


def parse_flow(text: str) -> Flow:
    """`tcp 10.0.0.1:443 10.0.0.2:51000`, `udp [fe80::1]:53 [fe80::2]:4000`, `icmp A B`."""
    words = text.split()
    try:
        protocol = PROTOCOLS.get(words[0].lower()) if words else None
        if protocol is None or len(words) != 3:
            raise ValueError
        with_port = protocol not in (1, 58)
        one, one_port = _end(words[1], with_port)
        two, two_port = _end(words[2], with_port)
        if len(one) != len(two):
            raise ValueError
    except ValueError:
        raise ConfigError(f"flow: {text!r}: {ENDS}; one of {', '.join(PROTOCOLS)}") from None
    return Flow(protocol, one, one_port, two, two_port)


class Selection:
    """A filter over batches. Everything that is not given selects all."""

    def __init__(self, *, from_ns: int = 0, to_ns: int | None = None, match: str | None = None,
                 flow: Flow | str | None = None) -> None:
        self.from_ns = from_ns
        self.to_ns = to_ns
        self.flow = parse_flow(flow) if isinstance(flow, str) else flow
        self.filter: Any = None
        if match:
            try:
                self.filter = pcap.Filter(match)
            except ValueError as error:
                raise ConfigError(f"match: {match!r}: {error}") from None

    def of(self, batch: Any) -> Any:
        """The batch without what is not wanted; the batch itself when all of it is."""
        if self.from_ns:
            batch = _keep(batch, batch.timestamps_ns >= self.from_ns)
        if self.to_ns is not None:
            batch = _keep(batch, batch.timestamps_ns <= self.to_ns)
        if self.flow is not None:
            flow = self.flow
            batch = _keep(batch, log_read.flow_mask(batch, flow.protocol, flow.one, flow.one_port,
                                                    flow.two, flow.two_port))
        if self.filter is not None:
            batch = _keep(batch, log_read.match_mask(batch, self.filter))
        return batch

    def overlaps(self, gap: dict[str, Any]) -> bool:
        """Whether a loss falls into the time range; a filter says nothing about lost packets."""
        late = self.to_ns is not None and gap["first_ns"] > self.to_ns
        return not late and gap["last_ns"] >= self.from_ns

    def may_hold(self, seal: dict[str, Any] | None) -> bool:
        """Whether a sealed segment can have anything in the time range; None: not sealed."""
        if seal is None or not seal["records"]:
            return True
        late = self.to_ns is not None and seal["low_ns"] > self.to_ns
        return not late and seal["high_ns"] >= self.from_ns


def _keep(batch: Any, mask: Any) -> Any:
    return batch if mask.all() else batch.select(mask)
