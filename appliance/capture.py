"""Capture files, in and out: pcap and pcapng in, nanosecond pcap out.

Owns Capture, the packets of one file as columns, and the turning of the data plane's plain errors
into OpenClaw's, so that a wrong path or a file that is no capture is one line and exit status 2.
The reading itself is in cython_ext/capture_file (libpcap). It does not look into packets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from appliance.dataplane import capture_file
from appliance.errors import ConfigError, HostError

__all__ = ["BYTES_MAX", "Capture", "ethernet_only", "read_capture", "write_pcap"]

BYTES_MAX: int = capture_file.BYTES_MAX  # packets and columns of one capture in memory


@dataclass(frozen=True, eq=False, repr=False)
class Capture:
    """The packets of a capture file: one buffer and columns beside it, read-only, no copies.

    They stay alive with any view of them. `truncated` is None, or says why the file ended early.
    """

    data: memoryview
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint32]  # captured
    wire_lengths: npt.NDArray[np.uint32]
    timestamps_ns: npt.NDArray[np.uint64]
    link_type: int  # libpcap's DLT number
    link_type_name: str
    truncated: str | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.offsets)

    def packet(self, index: int) -> memoryview:
        """The captured bytes of one packet."""
        start = int(self.offsets[index])
        return self.data[start : start + int(self.lengths[index])]

    def __iter__(self) -> Iterator[memoryview]:
        return map(self.packet, range(len(self)))

    def __repr__(self) -> str:
        return f"<Capture {self.name}: {len(self)} packets, {self.link_type_name}>"


def read_capture(path: str | PathLike[str], *, bytes_max: int = BYTES_MAX) -> Capture:
    """All packets of a pcap or pcapng file; "-" is standard input.

    A file that is damaged further in gives what precedes the damage, and says so in `.truncated`.
    """
    try:
        return Capture(**capture_file.read_capture(path, bytes_max=bytes_max))
    except OSError as error:
        raise ConfigError(f"cannot read capture {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except MemoryError as error:
        raise HostError(str(error) or f"no memory for capture {path}") from error


def write_pcap(
    path: str | PathLike[str] | BinaryIO,
    packets: Iterable[bytes | memoryview],
    timestamps_ns: Iterable[int],
    wire_lengths: Iterable[int] | None = None,
    *,
    link_type: int = capture_file.LINK_ETHERNET,
) -> int:
    """Writes packets as nanosecond pcap; returns how many. ValueError: the columns do not fit."""
    try:
        return int(
            capture_file.write_pcap(path, packets, timestamps_ns, wire_lengths, link_type=link_type)
        )
    except OSError as error:
        raise ConfigError(f"cannot write capture {path}: {error.strerror}") from error


def ethernet_only(capture: Capture) -> Capture:
    """The same capture if its packets are Ethernet frames, which is all that a port can carry."""
    if capture.link_type != capture_file.LINK_ETHERNET:
        raise ConfigError(
            f"{capture.name} holds {capture.link_type_name} packets; only Ethernet (EN10MB) "
            "captures can be sent or steered"
        )
    return capture
