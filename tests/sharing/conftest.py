"""The directory of a share socket, for the tests of sharing."""

from __future__ import annotations

import pytest

from tests.sharing.support import place


@pytest.fixture
def home():
    """One that other users can reach."""
    with place() as directory:
        yield directory
