"""The mid tier: memory for what outlives a frame, in slabs of 64 B to 64 KiB.

    tier = MidTier(cap_mib=256)
    with tier.alloc(1500) as slab:
        memoryview(slab)[:4] = b"data"
        tensor = numpy.from_dlpack(slab)        # no copy; keeps the memory, not the name

Owns the public names; allocation objects and tiers are in tier.py, figures in explain.py, reading
from another process in reader.py. It knows nothing of frames, quotas or the governor.
"""

from appliance.dataplane import Slab
from appliance.memory.reader import SlabReader
from appliance.memory.tier import MidTier

__all__ = ["MidTier", "Slab", "SlabReader"]
