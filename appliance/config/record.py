"""The keys that a [[consumer]] of kind record reads: what is kept, and when it is durable.

Owns types, ranges and defaults, as models.py does for the others. They may stay in a table whose
kind is changed for a try.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance import limits
from appliance.config.base import Allowed, Model


class RecordKeys(Model):
    segment_mib: Annotated[
        int, Field(ge=1, le=limits.SEGMENT_MIB_MAX), Allowed(f"1..{limits.SEGMENT_MIB_MAX}")
    ] = 64
    limit_mib: Annotated[
        int,
        Field(ge=0, le=limits.LIMIT_MIB_MAX),
        Allowed(f"0 (no limit) or up to {limits.LIMIT_MIB_MAX}"),
    ] = 0
    max_age_s: Annotated[
        int, Field(ge=0, le=limits.MAX_AGE_S_MAX), Allowed(f"0..{limits.MAX_AGE_S_MAX}")
    ] = 0
    commit_ms: Annotated[
        int, Field(ge=1, le=limits.COMMIT_MS_MAX), Allowed(f"1..{limits.COMMIT_MS_MAX}")
    ] = 50
    commit_kib: Annotated[
        int, Field(ge=4, le=limits.COMMIT_KIB_MAX), Allowed(f"4..{limits.COMMIT_KIB_MAX}")
    ] = 1024
    memory_mib: Annotated[
        int,
        Field(ge=limits.RECORD_MEMORY_MIB_MIN, le=limits.MID_CAP_MIB_MAX),
        Allowed(f"{limits.RECORD_MEMORY_MIB_MIN}..{limits.MID_CAP_MIB_MAX}"),
    ] = 64
    snap_bytes: Annotated[
        int, Field(ge=0, le=limits.SNAP_BYTES_MAX), Allowed(f"0..{limits.SNAP_BYTES_MAX}")
    ] = 0
    flow_bytes: Annotated[
        int, Field(ge=0, le=limits.FLOW_BYTES_MAX), Allowed(f"0..{limits.FLOW_BYTES_MAX}")
    ] = 0
    window_s: Annotated[
        int, Field(ge=0, le=limits.WINDOW_S_MAX), Allowed(f"0..{limits.WINDOW_S_MAX}")
    ] = 0
