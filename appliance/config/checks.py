"""What must hold between the fields of a configuration, each check a function of its own.

Owns the rules between tables: names that must exist, fields that only make sense together. Single
fields are in models.py. Everything here is pure; the first trouble found is raised.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.config.models import Config, ConsumerConfig, PortConfig, RuleConfig
from appliance.config.report import field_error, missing
from appliance.errors import ConfigError


def check(config: Config) -> None:
    """Raises ConfigError for the first thing that does not hold between the fields."""
    _unique("port", [port.name for port in config.ports])
    _unique("consumer", [consumer.name for consumer in config.consumers])
    for index, port in enumerate(config.ports):
        _port(f"port[{index}]", port)
    _queues_used_once(config.ports)
    for index, consumer in enumerate(config.consumers):
        _consumer(f"consumer[{index}]", consumer, [port.name for port in config.ports])
        _shared(f"consumer[{index}]", consumer)
    _directories_used_once(config.consumers)
    for index, rule in enumerate(config.rules):
        _rule(f"rule[{index}]", rule, config)
    for index, port in enumerate(config.ports):
        if not config.rules_of(port.name):
            raise ConfigError(
                f'port[{index}]: "{port.name}" has no rule: '
                f'at least one [[rule]] with port = "{port.name}"'
            )


def _names(names: Iterable[str], what: str) -> str:
    listed = ", ".join(names)
    return f"one of {listed}" if listed else f"no [[{what}]] is defined"


def _unique(table: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise field_error(
                f"{table}[{index}].name", name, f"a name that no other [[{table}]] has"
            )


def _port(path: str, port: PortConfig) -> None:
    """Each back-end has its own way to name what it opens, and takes no other."""
    if port.backend == "afxdp" and port.interface is None:
        raise missing(f"{path}.interface", "the name of a network interface (backend afxdp)")
    if port.backend == "dpdk" and port.device is None:
        raise missing(f"{path}.device", "a DPDK device such as net_null0 or 0000:01:00.0")
    if port.backend != "afxdp" and port.interface is not None:
        raise field_error(f"{path}.interface", port.interface, "only with backend afxdp")
    if port.backend != "dpdk" and port.device is not None:
        raise field_error(f"{path}.device", port.device, "only with backend dpdk")
    if port.backend == "loop" and port.netns:
        raise field_error(f"{path}.netns", port.netns, "not with backend loop")
    if port.backend != "afxdp":
        defaults = {"mode": "auto", "attach": "auto", "no_socket": "pass", "pause": ""}
        for key, default in defaults.items():
            if getattr(port, key) != default:
                raise field_error(f"{path}.{key}", getattr(port, key), "only with backend afxdp")
    if port.backend == "loop" and port.poll != "irq":
        raise field_error(f"{path}.poll", port.poll, "only with backends afxdp and dpdk")
    if port.backend == "dpdk" and port.poll == "defer":
        raise field_error(f"{path}.poll", port.poll, "irq (naps) or busy with backend dpdk")
    if port.backend != "dpdk":
        if not port.promiscuous:
            raise field_error(f"{path}.promiscuous", False, "only with backend dpdk")
        if port.mtu is not None:
            raise field_error(f"{path}.mtu", port.mtu, "only with backend dpdk")
    if port.mode == "zerocopy" and port.attach == "generic":
        raise field_error(f"{path}.mode", port.mode, "copy or auto with attach generic")


def _queues_used_once(ports: list[PortConfig]) -> None:
    """Two ports on one queue: the second bind fails with EBUSY, after the first one took effect."""
    taken: dict[tuple[str, str], list[PortConfig]] = {}
    for index, port in enumerate(ports):
        if port.interface is None:
            continue
        for other in taken.setdefault((port.netns, port.interface), []):
            both = "all" in (port.queues, other.queues)
            if both or set(port.queues) & set(other.queues):
                raise field_error(
                    f"port[{index}].queues",
                    port.queues,
                    f'queues that port "{other.name}" on the same interface does not use',
                )
        taken[(port.netns, port.interface)].append(port)


def _consumer(path: str, consumer: ConsumerConfig, ports: list[str]) -> None:
    """A directory may stay when the kind is changed for a try; only record reads it."""
    if consumer.kind == "forward":
        if consumer.to is None:
            raise missing(f"{path}.to", f"the port to send to, {_names(ports, 'port')}")
        if consumer.to not in ports:
            raise field_error(f"{path}.to", consumer.to, _names(ports, "port"))
    elif consumer.to is not None:
        raise field_error(f"{path}.to", consumer.to, "only with kind forward")
    if consumer.kind == "record" and consumer.directory is None:
        raise missing(f"{path}.directory", "an absolute path or a list of them (kind record)")


SHARE_FIELDS = {"allow_users": (), "allow_groups": (), "members": "all", "max_members": 4,
                "mid_mib": None}


def _shared(path: str, consumer: ConsumerConfig) -> None:
    """Permissions that nobody reads would be believed in."""
    for key, default in SHARE_FIELDS.items():
        if consumer.kind != "share" and getattr(consumer, key) != default:
            raise field_error(f"{path}.{key}", getattr(consumer, key), "only with kind share")
    reliable = consumer.kind == "share" and consumer.effective_policy == "reliable"
    if reliable and consumer.quota_frames < consumer.max_members:
        raise field_error(f"{path}.quota_frames", consumer.quota_frames,
                          f"at least max_members ({consumer.max_members})")


def _directories_used_once(consumers: list[ConsumerConfig]) -> None:
    owner: dict[str, str] = {}
    for index, consumer in enumerate(consumers):
        for directory in consumer.directories if consumer.kind == "record" else ():
            same = directory.rstrip("/") or "/"
            if same in owner:
                raise field_error(
                    f"consumer[{index}].directory",
                    directory,
                    f'a directory that "{owner[same]}" does not write to',
                )
            owner[same] = consumer.name


def _rule(path: str, rule: RuleConfig, config: Config) -> None:
    """`sample` may stay when the action is changed for a try; only action sample reads it."""
    ports = [port.name for port in config.ports]
    if rule.port not in ports:
        raise field_error(f"{path}.port", rule.port, _names(ports, "port"))
    consumers = [consumer.name for consumer in config.consumers]
    for name in rule.consumers:
        if name not in consumers:
            raise field_error(f"{path}.consumers", name, _names(consumers, "consumer"))
        if rule.consumers.count(name) > 1:
            raise field_error(f"{path}.consumers", name, "each consumer once")
        target = config.consumer(name).to
        if target == rule.port:
            allowed = f'one that does not send to "{target}" itself (kind reflect does)'
            raise field_error(f"{path}.consumers", name, allowed)
    consumes = rule.action in ("consume", "sample")
    if consumes and not rule.consumers:
        raise missing(f"{path}.consumers", f"at least one with action {rule.action}, "
                      + _names(consumers, "consumer"))
    if not consumes and rule.consumers:
        raise field_error(f"{path}.consumers", rule.consumers, f"none with action {rule.action}")
    if rule.action == "sample" and rule.sample is None:
        raise missing(f"{path}.sample", "N with action sample: one of N is consumed")
