"""Every maximum of the control side, in one place, each with where it comes from.

Owns numbers only. What the kernel program shares with user space has its limits in
xdp/openclaw_abi.h. Standard library only.
"""

from __future__ import annotations

# ------------------------------------------------------------------ rules and steering
RULES_MAX = 256  # OC_RULES_MAX of xdp/openclaw_abi.h: entries of the counter maps
QUEUES_MAX = 128  # OC_QUEUES_MAX of xdp/openclaw_abi.h: entries of the socket map
MATCH_LENGTH_MAX = 65_536  # characters of a filter expression; a list of 2,000 hosts is 40,000
SAMPLE_MAX = 1 << 31  # one of N; the counter in the program is 32 bits wide
PRIORITY_MAX = 255  # 0 is shed last
RULE_ID_MAX = (1 << 30) - 1  # an offline verdict carries the id above two bits; ids are not reused
FILTER_INSTRUCTIONS_MAX = 4_096  # of classic BPF; BPF_MAXINSNS: what the kernel takes
# Of all rules of a port together. Each becomes 1.6 (sets of hosts) to 4 (loads) instructions of
# the program, whose jumps reach 32,767; more never fits, and LLVM takes minutes to say so.
RULE_SET_INSTRUCTIONS_MAX = 16_384

# ------------------------------------------------------------------ configuration
CONFIG_BYTES_MAX = 4 << 20  # 256 rules of the longest usual expression, with room
PORTS_MAX = 64
CONSUMERS_MAX = 256
NAME_LENGTH_MAX = 32  # of ports and consumers: they become label values and file names
INTERFACE_NAME_MAX = 15  # IFNAMSIZ (16) less the terminating zero
SOCKET_PATH_MAX = 107  # sun_path (108) less the terminating zero
DIRECTORIES_MAX = 16  # of one recording consumer

# ------------------------------------------------------------------ memory
FRAME_BYTES = (2048, 4096)  # the kernel refuses 256, 1024 and 8192 for an aligned UMEM
FRAMES_PER_PORT_MIN = 256  # open_port: the smallest that still fills two rings of 64 and a burst
FRAMES_PER_QUEUE_MIN = 1024  # 512 to receive and 512 to send: a smaller ring starves at once
FRAMES_PER_QUEUE_MAX = 1 << 20  # 4 GiB of 4,096-byte frames for one queue
MID_CAP_MIB_MAX = 1 << 20  # 1 TiB
NUMA_NODES_MAX = 1024  # MAX_NUMNODES of Debian's kernels
MEMORY_EVENTS_MAX = 256  # remembered; merged within a second: minutes of trouble in 64 kB
HOLD_MS_MAX = 3_600_000  # an hour: a longer hold is a leak

# ------------------------------------------------------------------ the persistent tier
RECORD_PORTS_MAX = 32  # OC_LOG_PORTS_MAX of oc_log_format.h: a segment's header names them
SEGMENT_MIB_MAX = 65_536  # OC_LOG_SEGMENT_BYTES_MAX
RECORD_MEMORY_MIB_MIN = 1  # 16 blocks: two for each of 8 workers
COMMIT_MS_MAX = 60_000  # nobody waits a minute for "durable"
COMMIT_KIB_MAX = 1 << 20
WINDOW_S_MAX = 86_400  # memory is the real limit
LIMIT_MIB_MAX = 1 << 40
MAX_AGE_S_MAX = 10 * 366 * 86_400
SNAP_BYTES_MAX = 65_535
FLOW_BYTES_MAX = 1 << 40

# ------------------------------------------------------------------ engine
# of cython_ext/worker.pxd: WORKER_QUEUES_MAX, CONSUMERS_MAX, ROUTE_CONSUMERS_MAX
WORKER_QUEUES_MAX = 8  # queues that forwarding joins in one memory
WORKER_CONSUMERS_MAX = 256  # a forward consumer counts for each queue that it sends on
RULE_CONSUMERS_MAX = 8  # consumers of one rule
CONTROL_CLIENTS_MAX = 64  # at once; one command line is one client
CONTROL_MESSAGE_BYTES_MAX = 1 << 20  # 256 rules of usual length are 40 kB
SHARE_CLIENTS_MAX = 64  # connections to the share socket: members, and who is about to be one
SHARE_MESSAGE_BYTES_MAX = 128 << 10  # of the share socket: a match of 64 KiB, escaped
SHARE_MEMBERS_MAX = 16  # of one consumer: MEMBERS_MAX of cython_ext/sharing.pxd
WORKER_SHARES_MAX = 16  # sharing consumers: WORKER_SHARES_MAX of cython_ext/sharing.pxd
SHARE_COPIES_MAX = 8192  # packets in the mid tier at once, of one member and worker: 8 ms at 1 Mpps
SHARE_MATCH_INSTRUCTIONS_MAX = 256  # of a member's own filter: 1 us of the worker per packet
SHARE_NAMES_MAX = 64  # users, or groups, that may attach to one consumer
METRICS_CLIENTS_MAX = 8  # scrapes at once

# ------------------------------------------------------------------ network
MTU_MAX = 65_535  # the largest that veth takes
LAB_QUEUES_MAX = 64
