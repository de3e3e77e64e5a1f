"""`openclaw rules`: checks rules, tests them over a capture, lists and swaps those that run.

The work is appliance.steering's, and over the control socket appliance.engine's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from appliance import config as configuration
from appliance.capture import read_capture
from appliance.cli import output
from appliance.engine import client
from appliance.errors import ConfigError
from appliance.steering import Rule, Steering, Verdicts, decide


@click.group()
def command() -> None:
    """Steering rules: pcap filter expressions with an action."""


@command.command()
@click.argument("file")
@output.json_option
def check(out: output.Output, file: str) -> None:
    """Compile and load the rules of FILE, port by port, without attaching them."""
    config = configuration.load(file)
    ports = []
    for port in config.ports:
        rules = [Rule.of(entry) for entry in config.rules_of(port.name)]
        with Steering(rules, jumbo=port.jumbo, no_socket=port.no_socket) as steering:
            ports.append({"name": port.name, "rules": len(rules), **steering.program})
            ports[-1].pop("id")  # it is gone with the program
    out.result({"ok": True, "ports": ports}, _render_check)


@command.command()
@click.option("--match", help="A pcap filter expression; management traffic is not kept out.")
@click.option("--config", "file", help="Take the rules of a configuration instead.")
@click.option("--port", help="With --config: the port whose rules are meant.")
@click.option("--pcap", required=True, help="The capture (pcap or pcapng).")
@click.option("--each", is_flag=True, help="Rule and verdict of every packet.")
@output.json_option
def test(
    out: output.Output, match: str | None, file: str | None, port: str | None, pcap: str, each: bool
) -> None:
    """Verdicts of the real program over a capture, packet by packet, without an interface.

    `matched` is the number of packets that a rule decided; with --match it is what tcpdump selects.
    """
    if (match is None) == (file is None):
        raise ConfigError("--match EXPR or --config FILE: one of the two")
    if port is not None and file is None:
        raise ConfigError("--port: only with --config")
    if match is not None:
        rules, keep = [Rule(match, "consume")], False
    else:
        rules, keep = _rules_of(str(file), port), True
    capture = read_capture(pcap)
    found = decide(rules, capture, keep_management=keep)
    result = summary(found, rules)
    if capture.truncated:
        result["truncated"] = capture.truncated
    if each:
        result["verdicts"] = found.pairs()
    out.result(result, lambda data: _render_test(out, data, rules))


@command.command("list")
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def list_(out: output.Output, socket: str) -> None:
    """The rules of the running appliance, in the order in which they are tried."""
    out.result({"rules": client.ask(socket, "rules.list")}, _render_list)


@command.command()
@click.argument("file")
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def swap(out: output.Output, file: str, socket: str) -> None:
    """Replace the rules of the running appliance by those of FILE, without losing a packet.

    FILE is a whole configuration; only its rules are taken. Unchanged rules keep their ids.
    """
    config = configuration.load(file)
    rules = [entry.model_dump(mode="json", exclude_unset=True) for entry in config.rules]
    found = client.ask(socket, "rules.swap", rules=rules, timeout_s=client.SWAP_S)
    out.result({"rules": found}, _render_list)


def _render_list(data: dict[str, Any]) -> Any:
    rows = [
        [rule["id"], rule["port"], rule["action"], rule["priority"], rule["packets"],
         ", ".join(rule["consumers"]), rule["match"] or "(everything)"]
        for rule in data["rules"]
    ]
    columns = ["rule", "port", "action", "priority", "packets", "consumers", "match"]
    return output.table(None, columns, rows)


def _rules_of(file: str, port: str | None) -> list[Rule]:
    config = configuration.load(file)
    names = [entry.name for entry in config.ports]
    if port is None and len(names) == 1:
        port = names[0]
    if port not in names:
        raise ConfigError(f"--port: {port!r}: one of {', '.join(names)}")
    return [Rule.of(entry) for entry in config.rules_of(port)]


def summary(found: Verdicts, rules: list[Rule]) -> dict[str, Any]:
    """What the verdicts of a capture add up to."""
    pairs = found.pairs()
    verdicts = Counter(verdict for _, verdict in pairs)
    by_rule = Counter(rule for rule, _ in pairs)
    return {
        "packets": len(pairs),
        "matched": len(pairs) - by_rule[0],
        "consumed": verdicts["consume"],
        "passed": verdicts["pass"],
        "dropped": verdicts["drop"],
        "by_rule": {str(place): by_rule[place] for place in range(1, len(rules) + 1)},
    }


def _render_check(data: dict[str, Any]) -> Any:
    rows = [[port["name"], port["rules"], port["instructions"]] for port in data["ports"]]
    return output.table(None, ["port", "rules", "instructions"], rows)


def _render_test(out: output.Output, data: dict[str, Any], rules: list[Rule]) -> Any:
    for place, (rule, verdict) in enumerate(data.get("verdicts", ()), 1):
        out.console.print(f"{place} {verdict} {rule or '-'}", markup=False)
    if "truncated" in data:
        out.note(f"the capture is cut short: {data['truncated']}")
    rows = [
        [place, rule.action, rule.match or "(everything)", data["by_rule"][str(place)]]
        for place, rule in enumerate(rules, 1)
    ]
    rows.append(["", "pass", "(no rule, or management)", data["packets"] - data["matched"]])
    return output.table(None, ["rule", "action", "match", "packets"], rows)
