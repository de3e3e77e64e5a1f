"""The mid tier: memory for what outlives a frame, in slabs of 64 B to 64 KiB.

    tier = MidTier(cap_mib=256)
    with tier.alloc(1500) as slab:
        memoryview(slab)[:4] = b"data"
        tensor = numpy.from_dlpack(slab)        # no copy; keeps the memory, not the name

Owns the public names; allocation objects and tiers are in tier.py, their figures in explain.py,
reading from another process in reader.py. events.py remembers what was done about scarce memory,
history.py what was done with one object; report.py makes the whole page of `mem explain`, and
reporter.py writes it when memory runs out. What is done, and when, is decided elsewhere.
"""

from appliance.dataplane import Slab
from appliance.memory.events import EventLog
from appliance.memory.reader import SlabReader
from appliance.memory.reporter import Reporter
from appliance.memory.tier import MidTier

__all__ = ["EventLog", "MidTier", "Reporter", "Slab", "SlabReader"]
