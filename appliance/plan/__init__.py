"""From a configuration and the facts of its interfaces to frames, rings, arenas: pure arithmetic.

Owns the sums (sizes.py), which queues share memory (joins.py), what would stall (stalls.py), and
the plan that is printed (whole.py). It touches no host, so a plan can be shown before anything is
done. It is not the allocator: who allocates takes these numbers.
"""

from appliance.plan.joins import Lane, joined, queues_of
from appliance.plan.sizes import (
    BURST,
    ETHERNET_BYTES,
    XDP_HEADROOM,
    PortFacts,
    QueuePlan,
    packet_bytes_max,
    plan_queue,
    shared_frames,
    size_queue,
)
from appliance.plan.whole import Plan, plan

__all__ = [
    "BURST",
    "ETHERNET_BYTES",
    "XDP_HEADROOM",
    "Lane",
    "Plan",
    "PortFacts",
    "QueuePlan",
    "joined",
    "packet_bytes_max",
    "plan",
    "plan_queue",
    "queues_of",
    "shared_frames",
    "size_queue",
]
