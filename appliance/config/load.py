"""From a file or text to a validated configuration; every failure is a ConfigError of one line.

Owns reading and TOML syntax. It reads at most CONFIG_BYTES_MAX bytes, so that a path to a device
or an endless pipe does not take the machine's memory.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import ValidationError

from appliance import limits
from appliance.config import checks, report
from appliance.config.models import Config
from appliance.errors import ConfigError


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file `path`."""
    shown = report.show(os.fspath(path))
    try:
        with Path(path).open("rb") as file:
            raw = file.read(limits.CONFIG_BYTES_MAX + 1)
    except ValueError as error:  # a NUL byte in the path
        raise ConfigError(f"{shown}: {error}: a path to a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}: a readable TOML file") from None
    if len(raw) > limits.CONFIG_BYTES_MAX:
        raise ConfigError(f"{shown}: too long: at most {limits.CONFIG_BYTES_MAX} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: byte {error.start} is not UTF-8: a TOML file") from None
    return parse(text, source=shown)


def parse(text: str, source: str = "configuration") -> Config:
    """The configuration in the TOML text; `source` names it in messages about its syntax."""
    try:
        # TOML wants LF or CRLF; tomllib.load opens in binary and does the same
        data = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}: valid TOML") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply: valid TOML") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise ConfigError(f"{source}: {error}: valid TOML") from None
    return from_mapping(data)


def from_mapping(data: dict[str, object]) -> Config:
    """The configuration in already parsed data."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise report.from_validation(error, Config, data) from None
    except RecursionError:
        raise ConfigError("configuration: nested too deeply: the tables of the manual") from None
    checks.check(config)
    return config
