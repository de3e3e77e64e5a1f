"""The models of the configuration file: field by field what is allowed, and the words for it.

Owns types, ranges and defaults of single fields. What must hold between fields is in checks.py,
how a broken one is reported in report.py. Every field carries an `Allowed` text, because the
message names what is allowed and not what a validation library thought of the value.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from appliance import limits
from appliance.config.base import Allowed, Model
from appliance.config.record import RecordKeys


def _matches(pattern: str):
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError("does not match")
        return text

    return AfterValidator(check)


def _interface_name(name: str) -> str:
    """The kernel's dev_valid_name, less what nobody can type (control and wide characters)."""
    good = re.fullmatch(r"[!-~]+", name) and not re.search(r"[/:]", name)
    if not good or len(name) > limits.INTERFACE_NAME_MAX or name in (".", ".."):
        raise ValueError("not an interface name")
    return name


def _absolute_path(path: str) -> str:
    if not re.fullmatch(r"/[^\x00-\x1f\x7f]+", path) or len(path.encode()) > 4095:
        raise ValueError("not an absolute path")
    return path


def _report_path(path: str) -> str:
    return path if path in ("", "auto") else _absolute_path(path)


def _socket_path(path: str) -> str:
    if len(_absolute_path(path).encode()) > limits.SOCKET_PATH_MAX or path.endswith("/"):
        raise ValueError("too long for a socket")
    return path


def _metrics_address(address: str) -> str:
    if address == "":
        return address
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})", address)
    if match is None or int(match[2]) > 65535:
        raise ValueError("not host:port")
    return address


def _queue_list(queues: list[int]) -> list[int]:
    if len(set(queues)) != len(queues) or not queues:
        raise ValueError("empty or doubled")
    return queues


def _no_single_mib(cap: int) -> int:
    if cap == 1:
        raise ValueError("less than one arena")
    return cap


def _directories(value: str | list[str]) -> str | list[str]:
    paths = [value] if isinstance(value, str) else value
    if not 1 <= len(paths) <= limits.DIRECTORIES_MAX or len(set(paths)) != len(paths):
        raise ValueError("empty, too many or doubled")
    for path in paths:
        _absolute_path(path)
    return value


def _one_of(*words: str) -> Allowed:
    return Allowed("one of " + ", ".join(words))


Name = Annotated[
    str,
    _matches(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{limits.NAME_LENGTH_MAX - 1}}}"),
    Allowed(
        f"1..{limits.NAME_LENGTH_MAX} letters, digits, _ . -, beginning with a letter or digit"
    ),
]
InterfaceName = Annotated[
    str,
    AfterValidator(_interface_name),
    Allowed(f"1..{limits.INTERFACE_NAME_MAX} characters without / : and blanks"),
]
NamespaceName = Annotated[
    str,
    _matches(r"|(?!\.\.?$)[!-.0-~]{1,255}"),
    Allowed("the name of a network namespace (ip netns), without / and blanks, or empty"),
]


_UserOrGroup = Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0, lt=1 << 32)]
_Names = Annotated[
    tuple[_UserOrGroup, ...],
    Field(strict=False, max_length=limits.SHARE_NAMES_MAX),
    Allowed(f"a list of at most {limits.SHARE_NAMES_MAX} names or numbers"),
]
NodeNumber = Annotated[int, Field(ge=0, lt=limits.NUMA_NODES_MAX)]


class MemoryConfig(Model):
    hugepages: Annotated[
        Literal["auto", "require", "off", "1G"], _one_of("auto", "require", "off", "1G")
    ] = "auto"
    frame_bytes: Annotated[Literal[2048, 4096], Allowed("2048 or 4096")] = 4096
    frames_per_queue: Annotated[
        int,
        Field(ge=limits.FRAMES_PER_QUEUE_MIN, le=limits.FRAMES_PER_QUEUE_MAX),
        Allowed(f"{limits.FRAMES_PER_QUEUE_MIN}..{limits.FRAMES_PER_QUEUE_MAX}"),
    ] = 8192
    mid_cap_mib: Annotated[
        int,
        Field(ge=0, le=limits.MID_CAP_MIB_MAX),
        AfterValidator(_no_single_mib),
        Allowed(f"0 (none) or 2..{limits.MID_CAP_MIB_MAX}"),
    ] = 256
    numa: Annotated[
        Literal["auto"] | NodeNumber,
        Allowed(f'"auto" or a node number 0..{limits.NUMA_NODES_MAX - 1}'),
    ] = "auto"
    mid_numa: Annotated[
        Literal["auto"]
        | NodeNumber
        | Annotated[list[NodeNumber], AfterValidator(_queue_list)],
        Allowed(f'"auto" (as numa), a node 0..{limits.NUMA_NODES_MAX - 1}, or a list of nodes'),
    ] = "auto"
    report: Annotated[
        str,
        AfterValidator(_report_path),
        Allowed('"auto" (beside the control socket), an absolute path, or "" for off'),
    ] = "auto"


class PortConfig(Model):
    name: Name
    interface: InterfaceName | None = Field(default=None)
    device: Annotated[
        str,
        _matches(r"[!-~]{1,512}"),
        Allowed("a DPDK device such as net_af_xdp0,iface=veth-b or a PCI address, without blanks"),
    ] | None = None
    netns: NamespaceName = ""
    backend: Annotated[
        Literal["afxdp", "dpdk", "loop"], _one_of("afxdp", "dpdk", "loop")
    ] = "afxdp"
    queues: Annotated[
        Literal["all"]
        | Annotated[
            list[Annotated[int, Field(ge=0, lt=limits.QUEUES_MAX)]], AfterValidator(_queue_list)
        ],
        Allowed(f'"all" or a list of queue numbers 0..{limits.QUEUES_MAX - 1}, each once'),
    ] = "all"
    mode: Annotated[
        Literal["auto", "copy", "zerocopy"], _one_of("auto", "copy", "zerocopy")
    ] = "auto"
    attach: Annotated[
        Literal["auto", "native", "generic"], _one_of("auto", "native", "generic")
    ] = "auto"
    poll: Annotated[Literal["irq", "defer", "busy"], _one_of("irq", "defer", "busy")] = "irq"
    jumbo: Annotated[bool, Allowed("true or false")] = False
    pause: Annotated[
        Literal["", "on", "off"], Allowed('"on", "off", or "" to leave it as it is')
    ] = ""
    promiscuous: Annotated[bool, Allowed("true or false")] = True
    mtu: Annotated[
        int, Field(ge=68, le=limits.MTU_MAX), Allowed(f"68..{limits.MTU_MAX}")
    ] | None = None
    no_socket: Annotated[Literal["pass", "drop"], _one_of("pass", "drop")] = "pass"


class RuleConfig(Model):
    port: Name
    match: Annotated[
        str,
        _matches(rf"[^\x00]{{0,{limits.MATCH_LENGTH_MAX}}}"),
        Allowed(f"a pcap filter expression of at most {limits.MATCH_LENGTH_MAX} characters"),
    ]
    action: Annotated[
        Literal["consume", "pass", "drop", "sample"], _one_of("consume", "pass", "drop", "sample")
    ]
    sample: Annotated[
        int, Field(ge=1, le=limits.SAMPLE_MAX), Allowed(f"1..{limits.SAMPLE_MAX}")
    ] | None = None
    consumers: Annotated[
        tuple[Name, ...],
        Field(strict=False, max_length=limits.CONSUMERS_MAX),
        Allowed("a list of names of [[consumer]] tables"),
    ] = ()
    priority: Annotated[
        int, Field(ge=0, le=limits.PRIORITY_MAX), Allowed(f"0..{limits.PRIORITY_MAX}")
    ] = 10


class ConsumerConfig(RecordKeys):
    name: Name
    kind: Annotated[
        Literal["count", "drop", "reflect", "forward", "record", "share"],
        _one_of("count", "drop", "reflect", "forward", "record", "share"),
    ]
    to: Name | None = None
    directory: Annotated[
        str | list[str],
        AfterValidator(_directories),
        Allowed(f"an absolute path, or a list of 1..{limits.DIRECTORIES_MAX} different ones"),
    ] | None = None
    quota_frames: Annotated[
        int,
        Field(ge=1, le=limits.FRAMES_PER_QUEUE_MAX),
        Allowed(f"1..{limits.FRAMES_PER_QUEUE_MAX}"),
    ] = 1024
    max_hold_ms: Annotated[
        int, Field(ge=1, le=limits.HOLD_MS_MAX), Allowed(f"1..{limits.HOLD_MS_MAX}")
    ] = 100
    policy: Annotated[
        Literal["reliable", "lossy"], _one_of("reliable", "lossy")
    ] | None = None

    # kind share: who may attach, and how the members divide the packets
    allow_users: _Names = ()
    allow_groups: _Names = ()
    members: Annotated[
        Literal["all", "flow", "robin"], _one_of("all", "flow", "robin")
    ] = "all"
    max_members: Annotated[
        int, Field(ge=1, le=limits.SHARE_MEMBERS_MAX), Allowed(f"1..{limits.SHARE_MEMBERS_MAX}")
    ] = 4
    mid_mib: Annotated[
        int, Field(ge=1, le=limits.MID_CAP_MIB_MAX), Allowed(f"1..{limits.MID_CAP_MIB_MAX}")
    ] | None = None

    @property
    def effective_policy(self) -> str:
        """Taps are lossy unless asked otherwise: a reader must not hold up the data path."""
        return self.policy or ("lossy" if self.kind == "share" else "reliable")

    @property
    def directories(self) -> tuple[str, ...]:
        if self.directory is None:
            return ()
        return (self.directory,) if isinstance(self.directory, str) else tuple(self.directory)


class ControlConfig(Model):
    socket: Annotated[
        str,
        AfterValidator(_socket_path),
        Allowed(f"an absolute path of at most {limits.SOCKET_PATH_MAX} bytes"),
    ] = "/run/openclaw/control.sock"
    metrics: Annotated[
        str,
        AfterValidator(_metrics_address),
        Allowed('"host:port" with a port 0..65535 (0: any free one), or "" for off'),
    ] = "127.0.0.1:9477"


class Config(Model):
    """One whole configuration. The tables are singular in the file and plural here."""

    memory: Annotated[MemoryConfig, Allowed("a table, written [memory]")] = MemoryConfig()
    ports: Annotated[
        list[PortConfig],
        Field(alias="port", min_length=1, max_length=limits.PORTS_MAX),
        Allowed(f"1..{limits.PORTS_MAX} tables, each written [[port]]"),
    ]
    rules: Annotated[
        list[RuleConfig],
        Field(alias="rule", max_length=limits.RULES_MAX),
        Allowed(f"0..{limits.RULES_MAX} tables, each written [[rule]]"),
    ] = []  # noqa: RUF012  pydantic copies it
    consumers: Annotated[
        list[ConsumerConfig],
        Field(alias="consumer", max_length=limits.CONSUMERS_MAX),
        Allowed(f"0..{limits.CONSUMERS_MAX} tables, each written [[consumer]]"),
    ] = []  # noqa: RUF012  pydantic copies it
    control: Annotated[ControlConfig, Allowed("a table, written [control]")] = ControlConfig()

    def port(self, name: str) -> PortConfig:
        return next(port for port in self.ports if port.name == name)

    def consumer(self, name: str) -> ConsumerConfig:
        return next(consumer for consumer in self.consumers if consumer.name == name)

    def rules_of(self, port: str) -> list[RuleConfig]:
        return [rule for rule in self.rules if rule.port == port]
