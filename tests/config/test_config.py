"""The configuration file: the manual's example is accepted, and everything broken is one line.

Covers appliance.config only; nothing here touches the host.
"""

import os
import random
import string

import pytest

from appliance import config, limits
from appliance.config.load import from_mapping
from appliance.errors import ConfigError

EXAMPLE = """
[memory]
hugepages = "auto"
frame_bytes = 4096
frames_per_queue = 8192
mid_cap_mib = 256
numa = "auto"

[[port]]
name = "in0"
interface = "veth-b"
netns = ""
backend = "afxdp"
queues = "all"
mode = "auto"
attach = "auto"
poll = "irq"
jumbo = false

[[rule]]
port = "in0"
match = "udp and dst port 4789"
action = "consume"
sample = 100
consumers = ["keep"]
priority = 10

[[consumer]]
name = "keep"
kind = "record"
directory = "/var/lib/openclaw/log"
quota_frames = 1024
max_hold_ms = 100
policy = "reliable"

[control]
socket = "/run/openclaw/control.sock"
metrics = "127.0.0.1:9477"
"""

SMALLEST = """
port = [{name = "in0", interface = "veth-b"}]
rule = [{port = "in0", match = "", action = "pass"}]
"""


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    line = str(caught.value)
    assert line and "\n" not in line and line.isprintable() and len(line) < 600
    return line


def changed(old: str, new: str) -> str:
    assert old in EXAMPLE
    return EXAMPLE.replace(old, new, 1)


def test_the_example_of_the_manual_is_accepted_as_it_stands():
    read = config.parse(EXAMPLE)
    assert read.port("in0").queues == "all"
    assert read.rules_of("in0")[0].consumers == ("keep",)
    assert read.consumer("keep").directories == ("/var/lib/openclaw/log",)


def test_the_defaults_are_those_of_the_manual():
    read, example = config.parse(SMALLEST), config.parse(EXAMPLE)
    assert read.memory == example.memory
    assert read.control == example.control
    assert read.ports == example.ports


def test_a_tap_is_lossy_unless_asked_otherwise():
    read = config.parse(SMALLEST + 'consumer=[{name="t", kind="share"}, {name="c", kind="count"}]')
    assert [c.effective_policy for c in read.consumers] == ["lossy", "reliable"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('queues = "all"', 'queues = "abc"',
         'port[0].queues: "abc": "all" or a list of queue numbers 0..127, each once'),
        ('queues = "all"', "queues = [0, 128]",
         'port[0].queues: [0, 128]: "all" or a list of queue numbers 0..127, each once'),
        ("frame_bytes = 4096", "frame_bytes = 1024", "memory.frame_bytes: 1024: 2048 or 4096"),
        ("frame_bytes = 4096", 'frame_bytes = "4096"',
         'memory.frame_bytes: "4096": 2048 or 4096'),
        ("jumbo = false", "jumbo = 1", "port[0].jumbo: 1: true or false"),
        ("jumbo = false", "jumbos = true",
         "port[0].jumbos: unknown key: did you mean jumbo? allowed are name, interface, "
         "device, netns, backend, queues, mode, attach, poll, jumbo, pause, promiscuous, mtu, "
         "no_socket"),
        ("priority = 10", "priority = 256", "rule[0].priority: 256: 0..255"),
        ("priority = 10", "priority = 1.0", "rule[0].priority: 1.0: 0..255"),
        ("priority = 10", "priority = true", "rule[0].priority: true: 0..255"),
        ('consumers = ["keep"]', 'consumers = ["keeq"]',
         'rule[0].consumers: "keeq": one of keep'),
        ('consumers = ["keep"]', "",
         "rule[0].consumers: missing: at least one with action consume, one of keep"),
        ('port = "in0"', 'port = "in1"', 'rule[0].port: "in1": one of in0'),
        ('kind = "record"', 'kind = "forward"',
         "consumer[0].to: missing: the port to send to, one of in0"),
        ('directory = "/var/lib/openclaw/log"', "",
         "consumer[0].directory: missing: an absolute path or a list of them (kind record)"),
        ('action = "consume"', 'action = "steal"',
         'rule[0].action: "steal": one of consume, pass, drop, sample'),
        ('name = "in0"', "", "port[0].name: missing: 1..32 letters, digits, _ . -, "
         "beginning with a letter or digit"),
        ("[control]", "[contrl]", "contrl: unknown key: did you mean control? "
         "allowed are memory, port, rule, consumer, control"),
        ('metrics = "127.0.0.1:9477"', 'metrics = "127.0.0.1:65536"',
         'control.metrics: "127.0.0.1:65536": "host:port" with a port 0..65535 (0: any free one), '
         'or "" for off'),
    ],
)
def test_a_broken_field_is_named_with_its_value_and_what_is_allowed(old, new, line):
    assert refusal(changed(old, new)) == line


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\\nb", "a\\tb", ".", "..", "a:b", "x" * 16,
                                  "veth\\u00e9", "a\\u0000", "\\u001b[2J"])
def test_an_interface_name_that_the_kernel_would_refuse_is_refused(name):
    line = refusal(changed('interface = "veth-b"', f'interface = "{name}"'))
    assert line.startswith("port[0].interface: ")


@pytest.mark.parametrize("name", ["/x", "..", "a/../b", "a b", "a\\n"])
def test_a_namespace_name_cannot_leave_its_directory(name):
    assert "port[0].netns" in refusal(changed('netns = ""', f'netns = "{name}"'))


def test_a_port_without_any_rule_is_refused():
    text = EXAMPLE + '[[port]]\nname = "in1"\ninterface = "veth-c"\n'
    assert refusal(text) == (
        'port[1]: "in1" has no rule: at least one [[rule]] with port = "in1"'
    )


def test_a_configuration_without_ports_is_refused():
    assert refusal("") == "port: missing: 1..64 tables, each written [[port]]"


@pytest.mark.parametrize(
    ("second", "field"),
    [
        ('name = "in0"\ninterface = "veth-c"', "port[1].name"),
        ('name = "in1"\ninterface = "veth-b"\nqueues = [1]', "port[1].queues"),
        ('name = "in1"\nbackend = "dpdk"\ninterface = "x"\ndevice = "net_null0"',
         "port[1].interface"),
        ('name = "in1"\nbackend = "dpdk"', "port[1].device"),
        ('name = "in1"\nbackend = "loop"\nnetns = "x"', "port[1].netns"),
        ('name = "in1"\nbackend = "loop"\npoll = "busy"', "port[1].poll"),
        ('name = "in1"\nbackend = "dpdk"\ndevice = "net_null0"\npoll = "defer"', "port[1].poll"),
        ('name = "in1"\ninterface = "c"\nmtu = 1500', "port[1].mtu"),
        ('name = "in1"\ninterface = "c"\npromiscuous = false', "port[1].promiscuous"),
        ('name = "in1"\ninterface = "c"\nmode = "zerocopy"\nattach = "generic"', "port[1].mode"),
    ],
)
def test_a_second_port_that_contradicts_is_refused(second, field):
    text = EXAMPLE + f'[[port]]\n{second}\n[[rule]]\nport="in1"\nmatch=""\naction="pass"\n'
    assert refusal(text).startswith(field + ":")


def test_two_ports_share_an_interface_when_their_queues_differ():
    text = changed('queues = "all"', "queues = [0]") + (
        '[[port]]\nname="in1"\ninterface="veth-b"\nqueues=[1]\n'
        '[[rule]]\nport="in1"\nmatch=""\naction="pass"\n'
    )
    assert len(config.parse(text).ports) == 2


def test_two_recorders_do_not_write_to_one_directory():
    text = EXAMPLE + '[[consumer]]\nname="k2"\nkind="record"\ndirectory="/var/lib/openclaw/log/"\n'
    assert refusal(text).startswith("consumer[1].directory:")


def test_forwarding_to_the_own_port_is_refused():
    text = changed('kind = "record"', 'kind = "forward"\nto = "in0"')
    assert "kind reflect" in refusal(text)


def test_a_newline_in_a_key_or_value_does_not_make_a_second_line():
    assert '"a\\nb"' in refusal(changed("priority = 10", '"a\\nb" = 1'))
    assert '"x\\ny"' in refusal(changed('kind = "record"', 'kind = "x\\ny"'))


@pytest.mark.parametrize(
    "text",
    [
        "[memory", "a = ", "a = 1\na = 2", "\x00", "x = " + "[" * 100_000, "x = " + "9" * 5000,
        "a." * 5000 + "b = 1", 'x = "\\q"', "port = 3", "port = [1]", "[[memory]]", "rule = {}",
    ],
)
def test_text_that_is_no_configuration_is_one_line(text):
    refusal(text)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    not_text, huge = tmp_path / "latin.toml", tmp_path / "huge.toml"
    not_text.write_bytes(b"# caf\xe9\n")
    with huge.open("wb") as file:
        file.truncate(limits.CONFIG_BYTES_MAX + 1)
    for path in [tmp_path / "none.toml", tmp_path, not_text, huge, "/dev/zero", "a\0b", "a\nb"]:
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        assert "\n" not in str(caught.value)


def test_a_file_reads_the_same_as_its_text(tmp_path):
    path = tmp_path / "good.toml"
    path.write_bytes(EXAMPLE.replace("\n", "\r\n").encode())
    assert config.load(path) == config.parse(EXAMPLE)


def test_what_this_build_lacks_is_named_with_what_it_has():
    read = config.parse(EXAMPLE)
    config.refuse_unbuilt(read, backends={"afxdp"}, kinds={"record"})
    with pytest.raises(ConfigError) as caught:
        config.refuse_unbuilt(read, backends={"afxdp", "loop"}, kinds={"count", "drop"})
    assert str(caught.value) == (
        'consumer[0].kind: "record": not in this build, which has count, drop'
    )


def _garbage(random_source: random.Random, depth: int = 0):
    kind = random_source.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return random_source.choice([-1, 0, 1, 2048, 2**63, 2**70])
    if kind == 1:
        return random_source.choice([True, False, float("nan"), 1e300])
    if kind <= 4:
        letters = string.printable + "\x00\x1b\u2028é/"
        return "".join(random_source.choices(letters, k=random_source.randrange(20)))
    if kind == 5:
        return [_garbage(random_source, depth + 1) for _ in range(random_source.randrange(4))]
    keys = ["name", "port", "rule", "memory", "queues", "x\ny", "kind", "to", "match"]
    return {
        random_source.choice(keys): _garbage(random_source, depth + 1)
        for _ in range(random_source.randrange(4))
    }


def test_random_garbage_in_any_place_is_one_line():
    seed = int(os.environ.get("OPENCLAW_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    source = random.Random(seed)
    refused = 0
    for _ in range(3000):
        tables = {
            "memory": {"frame_bytes": 4096},
            "port": [{"name": "in0", "interface": "veth-b"}],
            "rule": [{"port": "in0", "match": "", "action": "pass"}],
            "consumer": [{"name": "c", "kind": "count"}],
            "control": {},
        }
        table = tables[source.choice(list(tables))]
        target = table[0] if isinstance(table, list) else table
        target[source.choice([*target, "queues", "netns", "x\ny"])] = _garbage(source)
        try:
            from_mapping(tables)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable()
    assert refused > 1000
