"""The smoke form of fuzzing the log's reader; `tests/fuzz/run-log 10000000` is the long one."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTIONS = 40_000


def test_the_logs_reader_survives_hostile_bytes_under_the_sanitizers():
    done = subprocess.run([ROOT / "tests/fuzz/run-log", str(EXECUTIONS)], capture_output=True,
                          text=True, timeout=240)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert f"stat::number_of_executed_units: {EXECUTIONS}" in done.stderr, done.stderr
