"""What every model of the configuration has in common.

Owns the strictness and the place where a field's words are kept; no field.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Allowed(str):
    """The words for what a field may hold, kept in the field's metadata."""


class Model(BaseModel):
    """Strict: "4096" is no number, 1 is no boolean, and a key that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)
