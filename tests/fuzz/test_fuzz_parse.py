"""The smoke form of the parser's fuzzing; `tests/fuzz/run 10000000` is the long one."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXECUTIONS = 200_000        # a second of fuzzing; building the target takes two


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="no .venv in the checkout")
def test_the_parser_survives_fuzzing_under_address_and_undefined_behaviour_sanitizers():
    done = subprocess.run(
        [ROOT / "tests/fuzz/run", str(EXECUTIONS)], capture_output=True, text=True, timeout=240)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert f"stat::number_of_executed_units: {EXECUTIONS}" in done.stderr, done.stderr
