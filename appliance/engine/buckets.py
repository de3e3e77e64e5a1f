"""Which member of a group has which flows: 256 buckets, dealt evenly, moved as little as can be.

Pure. A flow's bucket is a hash of its addresses, protocol and ports, the same for both directions
(cython_ext/sharing.pyx); when a bucket that moves is really handed over is the worker's matter.
"""

from __future__ import annotations

from collections.abc import Collection

BUCKETS = 256
NOBODY = 255


def dealt(table: bytes, members: Collection[int]) -> bytes:
    """The table for these members (places 0..15), as near to the one before as evenness allows."""
    places = sorted(members)
    if not places:
        return bytes([NOBODY]) * BUCKETS
    has = {place: [at for at in range(BUCKETS) if table[at] == place] for place in places}
    loose = [at for at in range(BUCKETS) if table[at] not in has]
    # The first few have one more; who has much already keeps it.
    order = sorted(places, key=lambda place: -len(has[place]))
    share, more = divmod(BUCKETS, len(places))
    fair = {place: share + (number < more) for number, place in enumerate(order)}
    for place in places:
        while len(has[place]) > fair[place]:
            loose.append(has[place].pop())
    fresh = bytearray(table)
    for place in places:
        while len(has[place]) < fair[place]:
            has[place].append(loose.pop(0))
        for at in has[place]:
            fresh[at] = place
    return bytes(fresh)
