"""The one doorway to the compiled data plane: everything else imports cython_ext through here.

Owns the list of what the rest may use, and which exceptions the compiled side raises.
"""

from __future__ import annotations

from cython_ext import (
    arena,
    bpf,
    capture_file,
    compare,
    gauge,
    lending,
    log_read,
    log_scan,
    log_writer,
    memory_gauge,
    parser,
    pcap,
    pcapng,
    slab_object,
)
from cython_ext.endpoint import Endpoint
from cython_ext.frames import Frames
from cython_ext.history import History
from cython_ext.lending import Batch, Frame
from cython_ext.loop import LoopQueue
from cython_ext.log_device import Device as LogDevice
from cython_ext.queue import Queue
from cython_ext.recorder import Recorder as LogRecorder
from cython_ext.shm_ring import ShmRing
from cython_ext.slab_object import Slab
from cython_ext.slab_tier import Cache as SlabCache
from cython_ext.slab_tier import Slabs
from cython_ext.spool import Spool
from cython_ext.worker import Worker, bucket_upper_ns
from cython_ext.xsk import XskQueue

from appliance.errors import MemoryExhausted, StaleFrame

lending.use_errors(StaleFrame, MemoryExhausted)
slab_object.use_errors(StaleFrame)

__all__ = [
    "Batch",
    "Endpoint",
    "Frame",
    "Frames",
    "History",
    "LogDevice",
    "LogRecorder",
    "LoopQueue",
    "Queue",
    "ShmRing",
    "Slab",
    "SlabCache",
    "Slabs",
    "Spool",
    "Worker",
    "XskQueue",
    "arena",
    "bpf",
    "bucket_upper_ns",
    "capture_file",
    "compare",
    "gauge",
    "log_read",
    "log_scan",
    "log_writer",
    "memory_gauge",
    "parser",
    "pcap",
    "pcapng",
    "slab_object",
]
