"""The one doorway to the compiled data plane: everything else imports cython_ext through here.

Owns the list of what the rest may use, and which exceptions the compiled side raises.
"""

from __future__ import annotations

import functools
import types

from cython_ext import (
    arena,
    attached,
    bpf,
    capture_file,
    compare,
    flow,
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
from cython_ext.attached import Attached, AttachedBatch, AttachedFrame
from cython_ext.endpoint import Endpoint
from cython_ext.filter_jit import NativeFilter
from cython_ext.frames import Frames
from cython_ext.history import History
from cython_ext.lending import Batch, Frame
from cython_ext.log_device import Device as LogDevice
from cython_ext.loop import LoopQueue
from cython_ext.queue import Queue
from cython_ext.recorder import Recorder as LogRecorder
from cython_ext.share_members import Member as ShareMember
from cython_ext.share_members import Share
from cython_ext.shm_ring import ShmRing
from cython_ext.slab_object import Slab
from cython_ext.slab_tier import Cache as SlabCache
from cython_ext.slab_tier import Slabs
from cython_ext.spool import Spool
from cython_ext.user_rules import Decisions, Filters
from cython_ext.worker import Worker, bucket_upper_ns
from cython_ext.xsk import XskQueue

from appliance.errors import HostError, MemoryExhausted, StaleFrame

lending.use_errors(StaleFrame, MemoryExhausted)
attached.use_errors(StaleFrame)
slab_object.use_errors(StaleFrame)


@functools.cache
def dpdk() -> types.SimpleNamespace:
    """The modules of the DPDK back-end; HostError where they were not built or cannot be loaded.

    Imported when a port asks for them: DPDK's libraries cost a process 40 ms and 20 MiB.
    """
    try:
        from cython_ext import dpdk_device, dpdk_eal, dpdk_pool, dpdk_port
    except ImportError as error:
        raise HostError(
            f"this build has no DPDK ({error})",
            fix="apt-get install libdpdk-dev && make build",
        ) from None
    return types.SimpleNamespace(
        Device=dpdk_device.Device,
        DpdkQueue=dpdk_port.DpdkQueue,
        Pool=dpdk_pool.Pool,
        eal=dpdk_eal,
    )


__all__ = [
    "Attached",
    "AttachedBatch",
    "AttachedFrame",
    "Batch",
    "Decisions",
    "Endpoint",
    "Filters",
    "Frame",
    "Frames",
    "History",
    "LogDevice",
    "LogRecorder",
    "LoopQueue",
    "NativeFilter",
    "Queue",
    "Share",
    "ShareMember",
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
    "dpdk",
    "flow",
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
