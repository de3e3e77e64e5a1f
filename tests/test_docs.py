"""What the README shows is true: its configuration, its commands, its claims of defaults."""

import re
from pathlib import Path

from appliance import config
from appliance.cli.main import COMMANDS
from appliance.plan import ETHERNET_BYTES, packet_bytes_max

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_the_readmes_configuration_is_accepted_and_shows_the_defaults():
    [text] = re.findall(r"```toml\n(.*?)```", README, re.S)
    shown = config.parse(text)
    bare = config.parse(
        'port = [{name = "in0", interface = "veth-b"}]\n'
        'rule = [{port = "in0", match = "", action = "consume", consumers = ["keep"]}]\n'
        'consumer = [{name = "keep", kind = "count"}]'
    )
    assert shown.memory == bare.memory
    assert shown.control == bare.control
    assert shown.ports == bare.ports
    assert shown.rules[0].priority == bare.rules[0].priority
    [ours, theirs] = shown.consumers[0], bare.consumers[0]
    assert (ours.quota_frames, ours.max_hold_ms) == (theirs.quota_frames, theirs.max_hold_ms)
    assert ours.effective_policy == theirs.effective_policy


def test_the_readme_names_every_key_of_the_configuration():
    models = (config.MemoryConfig, config.PortConfig, config.RuleConfig, config.ConsumerConfig,
              config.ControlConfig)
    for model in models:
        for name in model.model_fields:
            assert re.search(rf"\b{name}\b", README), f"{model.__name__}.{name}"


def test_the_readme_names_only_commands_that_exist():
    named = set(re.findall(r"`openclaw (\w+)", README))
    assert named and named <= set(COMMANDS)


def test_the_readmes_mtu_is_the_one_that_fits():
    assert f"an MTU up to {packet_bytes_max(4096) - ETHERNET_BYTES};" in README
