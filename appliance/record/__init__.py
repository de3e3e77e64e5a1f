"""The persistent log: opening, verifying, recovering and exporting it.

    with open_log("/var/lib/openclaw/log", match="udp port 53") as log:
        for batch in log:
            batch.timestamps_ns, batch.lengths, memoryview(batch[0])

Recording is the engine's; the format is cython_ext/include/oc_log_format.h.
"""

from appliance.record.reader import Log, open_log
from appliance.record.recover import recover, recover_to_record
from appliance.record.select import Flow
from appliance.record.store import Store
from appliance.record.verify import verify

__all__ = ["Flow", "Log", "Store", "open_log", "recover",
           "recover_to_record", "verify"]
