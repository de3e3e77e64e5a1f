"""The child process for long filter expressions: JSON text in, classic BPF as JSON out.

Run as a script, by path, by filters.py, which ends it when libpcap takes too long. Owns nothing.
"""

import json
import os
import sys

from appliance.dataplane import pcap


def main() -> int:
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed must not meet the answer
    match = json.load(sys.stdin)
    try:
        reply: dict[str, object] = {"code": pcap.compile_filter(match)}
    except ValueError as error:
        reply = {"refused": str(error)}
    with os.fdopen(answer, "w") as out:
        json.dump(reply, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
