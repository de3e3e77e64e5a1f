"""OpenClaw: packets steered by XDP into memory that Python can hold.

    import appliance
    with appliance.open_port("eth1", match="udp port 53") as port:
        for batch in port.recv():
            ...
"""

from appliance.errors import (
    ConfigError,
    HostError,
    LogDamaged,
    MemoryExhausted,
    OpenClawError,
    PortError,
    StaleFrame,
)

__version__ = "0.1.0"

__all__ = [
    "AttachedPort",
    "Batch",
    "ConfigError",
    "Frame",
    "HostError",
    "Log",
    "LogDamaged",
    "MemoryExhausted",
    "OpenClawError",
    "Port",
    "PortError",
    "Rule",
    "StaleFrame",
    "attach",
    "open_log",
    "open_port",
]


def __getattr__(name: str):
    """The data plane is loaded when it is first asked for: `openclaw --help` needs none of it."""
    if name in ("Batch", "Frame", "Port", "open_port"):
        from appliance import port

        return getattr(port, name)
    if name in ("AttachedPort", "attach"):
        from appliance import attaching

        return getattr(attaching, name)
    if name in ("Log", "open_log"):
        from appliance import record

        return getattr(record, name)
    if name == "Rule":
        from appliance.steering import Rule

        return Rule
    raise AttributeError(f"module 'appliance' has no attribute {name!r}")
