"""Steering: pcap expressions to C, to bytecode, to an XDP program on an interface.

The public names of the package. Expressions: filters.py, filter_child.py; rules: rules.py; their C:
translate.py, program.py; bytecode: headers.py, compiler.py, compile_child.py; in the kernel:
loader.py, attach.py, steering.py; offline verdicts: offline.py; the veth peer: peer.py.
"""

from appliance.steering.offline import Verdicts, decide, matches, verdicts
from appliance.steering.peer import attach_pass
from appliance.steering.rules import Rule
from appliance.steering.steering import Steering

__all__ = ["Rule", "Steering", "Verdicts", "attach_pass", "decide", "matches", "verdicts"]
