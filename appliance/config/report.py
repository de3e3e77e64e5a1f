"""One line for a broken configuration: field path, value, what is allowed.

Owns the words; knows the models only to walk them. The line is made from the raw data and the
model's own `Allowed` texts, never from the validation library's messages, which change between
versions and speak of union branches that the user never wrote.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from appliance.config.models import Allowed
from appliance.errors import ConfigError

_MISSING = object()
_VALUE_SHOWN_MAX = 60  # characters of the offending value; the rest of the line must stay readable


def field_error(path: str, value: object, allowed: str) -> ConfigError:
    """The one form of every complaint: `port[0].queues: "abc": "all" or a list of ...`."""
    shown = "missing" if value is _MISSING else show(value)
    return ConfigError(f"{path}: {shown}: {allowed}")


def missing(path: str, allowed: str) -> ConfigError:
    return field_error(path, _MISSING, allowed)


def show(value: object) -> str:
    """The value as it would be written in the file, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, RecursionError):
        text = f"({type(value).__name__})"
    return text if len(text) <= _VALUE_SHOWN_MAX else text[: _VALUE_SHOWN_MAX - 3] + "..."


def from_validation(error: ValidationError, model: type[BaseModel], data: object) -> ConfigError:
    """The first trouble that pydantic found, in the words of the model."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    path, value, owner, field = _walk(model, data, first["loc"])
    others = {_walk(model, data, one["loc"])[0] for one in found} - {path}
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(owner, str(first["loc"][-1]))
        return ConfigError(f"{path}: unknown key: {known}{more}")
    return ConfigError(str(field_error(path, value, _allowed(field))) + more)


def _walk(
    model: type[BaseModel], data: object, loc: tuple[int | str, ...]
) -> tuple[str, object, type[BaseModel], FieldInfo | None]:
    """Follows loc through models and lists of models, and stops where the user's own path ends."""
    path, value = "", data
    owner: type[BaseModel] = model
    inside: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for step in loc:
        if isinstance(step, int):
            if inside is None or not isinstance(value, list):
                break  # an element of a plain list: the whole list is what the user wrote
            path += f"[{step}]"
            value = value[step] if step < len(value) else _MISSING
            continue
        if inside is None:
            break  # the name of a union branch, not a key
        path = f"{path}.{_key(step)}" if path else _key(step)
        value = value.get(step, _MISSING) if isinstance(value, dict) else _MISSING
        owner, field = inside, _field(inside, step)
        inside = _model_in(field.annotation) if field is not None else None
    return path or "configuration", value, owner, field


def _key(step: str) -> str:
    """A key as TOML writes it: bare if it can be, else quoted, so that a newline stays visible."""
    bare = step and all(c.isascii() and (c.isalnum() or c in "_-") for c in step)
    return step if bare else show(step)


def _field(model: type[BaseModel], key: str) -> FieldInfo | None:
    for name, field in model.model_fields.items():
        if key == (field.alias or name):
            return field
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, directly or in a list; None for plain values."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _allowed(field: FieldInfo | None) -> str:
    """The field's own words; for an optional field they sit one level down, in its annotation."""
    if field is None:
        return "a table of the configuration"
    pending: list[Any] = [*field.metadata, field.annotation]
    while pending:
        item = pending.pop(0)
        if isinstance(item, Allowed):
            return str(item)
        pending.extend(getattr(item, "__metadata__", ()))
        pending.extend(getattr(item, "__args__", ()))
    return f"a value of type {field.annotation}"


def _known_keys(model: type[BaseModel], key: str) -> str:
    names = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(key[:64], names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed are {', '.join(names)}"
