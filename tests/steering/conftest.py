"""Fixtures of the steering tests: a bare AF_XDP socket, and a Steering that closes itself."""

from __future__ import annotations

import pytest

from appliance.steering import Rule, Steering
from tests.steering.xsk import BareSocket


@pytest.fixture(scope="module")
def receiver():
    with BareSocket() as made:
        yield made


@pytest.fixture
def steer(receiver):
    """Makes a Steering with a socket on queue 0, and closes it."""
    made: list[Steering] = []

    def make(*rules: Rule, socket: bool = True, **options) -> Steering:
        made.append(Steering(rules, **options))
        if socket:
            made[-1].set_socket(0, receiver.fileno())
        return made[-1]

    yield make
    for one in made:
        one.close()
