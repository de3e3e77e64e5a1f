"""What the schema knows and this build cannot do yet, said in the same one line.

Owns the message only. The engine says what it can do; the schema accepts the whole contract, so
that a configuration written for a later version is refused for the right reason.
"""

from __future__ import annotations

from collections.abc import Collection

from appliance.config.models import Config
from appliance.config.report import field_error


def refuse_unbuilt(config: Config, *, backends: Collection[str], kinds: Collection[str]) -> None:
    """Raises ConfigError for the first back-end or consumer kind that is not among those given."""
    for index, port in enumerate(config.ports):
        if port.backend not in backends:
            raise field_error(f"port[{index}].backend", port.backend, _only(backends))
    for index, consumer in enumerate(config.consumers):
        if consumer.kind not in kinds:
            raise field_error(f"consumer[{index}].kind", consumer.kind, _only(kinds))


def _only(words: Collection[str]) -> str:
    return f"not in this build, which has {', '.join(sorted(words))}"
