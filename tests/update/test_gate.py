"""The health gate sends packets: it passes on a sound host and says what is missing on another."""

from __future__ import annotations

import pytest

from appliance.update import gate


@pytest.mark.root
def test_packets_go_through_a_consumer_and_into_the_metrics(needs_xdp_socket, needs_namespaces):
    assert list(gate._data_path()) == []


@pytest.mark.root
def test_packets_that_do_not_arrive_are_a_failure(needs_xdp_socket, needs_namespaces, monkeypatch):
    monkeypatch.setattr(gate, "WAIT_S", 1.0)
    monkeypatch.setattr(gate, "CONFIGURATION", gate.CONFIGURATION.replace("port 9", "port 10"))
    [line] = gate._data_path()
    assert line.startswith("metrics say") and "256 packets were sent" in line

