"""The one doorway to the compiled data plane: everything else imports cython_ext through here.

Owns the list of what the rest may use, and which exceptions the compiled side raises.
"""

from __future__ import annotations

from cython_ext import bpf, capture_file, compare, gauge, lending, parser, pcap
from cython_ext.endpoint import Endpoint
from cython_ext.frames import Frames
from cython_ext.lending import Batch, Frame
from cython_ext.loop import LoopQueue
from cython_ext.queue import Queue
from cython_ext.worker import Worker, bucket_upper_ns
from cython_ext.xsk import XskQueue

from appliance.errors import MemoryExhausted, StaleFrame

lending.use_errors(StaleFrame, MemoryExhausted)

__all__ = [
    "Batch",
    "Endpoint",
    "Frame",
    "Frames",
    "LoopQueue",
    "Queue",
    "Worker",
    "XskQueue",
    "bpf",
    "bucket_upper_ns",
    "capture_file",
    "compare",
    "gauge",
    "parser",
    "pcap",
]
