"""The image as it comes: it boots, its doctor is content, packets go through, nothing is open."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

ZERO_COPY = """
[memory]
frames_per_queue = 2048
[[port]]
name = "in0"
interface = "{interface}"
mode = "zerocopy"
[[rule]]
port = "in0"
match = "udp port 4789"
action = "consume"
consumers = ["seen"]
[[consumer]]
name = "seen"
kind = "count"
[control]
socket = "/run/openclaw/control.sock"
metrics = ""
"""
PACKETS = 100_000
NUMBERED = Path(__file__).with_name("numbered.py")


def data_interfaces(guest) -> list[str]:
    """The data NICs by their MACs (machine.py's 52:54:00:6f:63:10 and on)."""
    lines = guest.run("ip -o link").stdout.splitlines()
    found = [line.split(": ")[1] for line in lines if re.search(r"52:54:00:6f:63:1\d", line)]
    assert len(found) == 2, lines
    return found


def test_the_doctor_is_content(ask):
    found = ask("doctor")
    assert found["ok"], [check for check in found["checks"] if check["state"] == "fail"]


def test_no_unit_failed_and_the_health_gate_passed(guest):
    # Emulated, the gate takes minutes; oneshot units are active when they have ended well.
    until = time.monotonic() + 600
    while time.monotonic() < until:
        state = guest.run("systemctl is-active openclaw-health", check=False).stdout.strip()
        if state != "activating":
            break
        time.sleep(10)
    assert state == "active", guest.run("journalctl -u openclaw-health", check=False).stdout
    said = guest.run("journalctl -b -u openclaw-health -o cat").stdout
    assert "openclaw health: ok" in said, said
    failed = guest.run("systemctl list-units --failed --plain --no-legend").stdout
    assert failed == "", failed


def test_the_demo_verifies_byte_for_byte(ask):
    found = ask("demo", 1200)
    # What no rule of the demo consumes goes to the kernel, and is counted there.
    assert found["received"] == found["verified"] == found["steering"]["consumed"] > 100
    assert found["sent"] == found["steering"]["seen"]
    assert found["mismatched"] == 0 and found["frames"]["leaked"] == 0


def wait_for_line(guest, file: str, text: str, wait_s: float = 300) -> str:
    until = time.monotonic() + wait_s
    while text not in (found := guest.run(f"cat {file}").stdout):
        assert time.monotonic() < until, found
        time.sleep(3)
    return found


def end(guest, pid_file: str) -> None:
    guest.run(f"kill $(cat {pid_file}); while kill -0 $(cat {pid_file}) 2>/dev/null;"
              " do sleep 1; done", check=False)


def test_stats_says_that_zero_copy_is_granted_on_virtio(guest, ask):
    """Two NICs of the guest on one hub: what one sends, the other receives."""
    sender, receiver = data_interfaces(guest)
    guest.run(f"ip link set {sender} up; ip link set {receiver} up")
    guest.run("cat > /tmp/zero.toml", given=ZERO_COPY.format(interface=receiver).encode())
    guest.run("cat > /tmp/numbered.py", given=NUMBERED.read_bytes())
    guest.run("nohup openclaw run --config /tmp/zero.toml --json >/tmp/final.json 2>/tmp/run.log"
              " </dev/null & echo $! >/tmp/run.pid")
    try:
        wait_for_line(guest, "/tmp/run.log", "running; stop")
        guest.run(f"openclaw-python /tmp/numbered.py send {sender}"
                  f" /sys/class/net/{receiver}/statistics/rx_packets 1000", 300)
        time.sleep(2)
        stats = ask("stats")
    finally:
        end(guest, "/tmp/run.pid")
    [port] = stats["ports"]
    assert port["zero_copy"] is True and port["attach_mode"] == "native", port
    assert stats["consumers"][0]["frames"] == 1000, stats
    assert json.loads(guest.run("cat /tmp/final.json").stdout)["problems"] == []


def test_100000_packets_pass_byte_for_byte_in_zero_copy(guest):
    sender, receiver = data_interfaces(guest)
    guest.run(f"ip link set {sender} up; ip link set {receiver} up")
    guest.run("cat > /tmp/numbered.py", given=NUMBERED.read_bytes())
    guest.run(f"nohup openclaw-python /tmp/numbered.py receive {receiver} {PACKETS}"
              " /run/numbered"
              " >/tmp/receive.log 2>&1 </dev/null & echo $! >/tmp/receive.pid")
    try:
        assert "zero_copy=True" in wait_for_line(guest, "/tmp/receive.log", "ready")
        guest.run(f"openclaw-python /tmp/numbered.py send {sender} /run/numbered {PACKETS}", 1200)
        said = wait_for_line(guest, "/tmp/receive.log", "once=")
    finally:
        end(guest, "/tmp/receive.pid")
    assert f"once={PACKETS} twice=0" in said, said


def test_only_ssh_listens_to_the_world(guest):
    lines = guest.run("ss -Hltun").stdout.splitlines()
    outside = set()
    for line in lines:
        protocol, address = line.split()[0], line.split()[4]
        host, _, port = address.rpartition(":")
        loopback = host.startswith("127.") or host.strip("[]") == "::1"
        if not loopback and not (protocol == "udp" and port in ("68", "546")):  # DHCP's answers
            outside.add((protocol, port))
    assert outside == {("tcp", "22")}, lines


def test_the_image_has_no_key_no_password_and_no_file_that_all_may_write(guest):
    shadow = guest.run("cat /etc/shadow").stdout.splitlines()
    assert all(line.split(":")[1][:1] in "!*" for line in shadow), shadow
    # The image itself: the lower side of the overlays, seen through another mount of the root.
    guest.run("mkdir -p /run/lower && mount --bind / /run/lower")
    try:
        keys = guest.run("cd /run/lower && grep -rlI -- '-----BEGIN .*PRIVATE KEY-----'"
                         " etc usr var root 2>/dev/null", check=False).stdout
        writable = guest.run("find /run/lower -xdev -perm -0002 ! -type l ! -perm -1000"
                             " ! -type c 2>/dev/null", check=False).stdout
        baked = guest.run("ls /run/lower/etc/ssh").stdout
    finally:
        guest.run("umount /run/lower")
    assert keys == "" and writable == "", (keys, writable)
    assert "ssh_host" not in baked, baked


def test_state_lies_on_the_data_partition_and_that_fills_the_disk(guest):
    mounts = guest.run("findmnt -rno TARGET,FSTYPE,OPTIONS").stdout
    assert re.search(r"^/ erofs ro", mounts, re.M), mounts
    for target in ("/etc", "/var"):
        assert re.search(rf"^{target} overlay rw", mounts, re.M), mounts
    kib = int(guest.run("df --output=size /data | tail -1").stdout)
    assert kib > 10 << 20, f"{kib} KiB of a disk of 16 GiB"
    machine_id = guest.run("cat /data/etc/machine-id").stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{32}", machine_id)


def test_the_service_is_sandboxed_as_security_md_says(guest):
    # 10 is open, 0 is shut; what packets need (capabilities, AF_XDP, BPF) keeps it from less.
    line = guest.run("systemd-analyze security --no-pager openclaw.service | tail -1",
                     check=False).stdout
    exposure = float(re.search(r"(\d+\.\d)", line)[1])
    assert exposure <= 6.0, line
