"""The configuration: TOML text in, validated models out, one line for anything that is wrong.

Owns what a configuration may say. It touches no host: whether an interface exists, a filter
compiles or memory suffices is asked by those who act on it.
"""

from appliance.config.build import refuse_unbuilt
from appliance.config.load import load, parse
from appliance.config.models import (
    Config,
    ConsumerConfig,
    ControlConfig,
    MemoryConfig,
    PortConfig,
    RuleConfig,
)

__all__ = [
    "Config",
    "ConsumerConfig",
    "ControlConfig",
    "MemoryConfig",
    "PortConfig",
    "RuleConfig",
    "load",
    "parse",
    "refuse_unbuilt",
]
