"""What a finding of the doctor is, and how a check becomes one whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from appliance.errors import OpenClawError, one_line


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    name: str
    state: str  # ok, warn or fail
    found: str
    fix: str = ""


Check = Callable[[], Finding]


def ok(name: str, found: object) -> Finding:
    return Finding(name, "ok", one_line(found))


def warn(name: str, found: object, fix: str = "") -> Finding:
    return Finding(name, "warn", one_line(found), fix)


def fail(name: str, found: object, fix: str = "") -> Finding:
    return Finding(name, "fail", one_line(found), fix)


def run(*checks: Check) -> list[Finding]:
    """The findings in order. A check that breaks is a failed finding, not a broken doctor."""
    findings = []
    for check in checks:
        function = getattr(check, "func", check)  # of a partial
        name = str(getattr(function, "__name__", "check")).strip("_").replace("_", " ")
        try:
            findings.append(check())
        except OpenClawError as error:
            findings.append(fail(name, error, getattr(error, "fix", "")))
        except OSError as error:
            findings.append(fail(name, error.strerror or error))
        except Exception as error:
            findings.append(fail(name, f"{type(error).__name__}: {error}"))
    return findings


def report(findings: Iterable[Finding]) -> dict[str, object]:
    listed = [asdict(finding) for finding in findings]
    return {"checks": listed, "ok": all(one["state"] != "fail" for one in listed)}
