"""The one driver of QEMU: everything that boots the image or another guest goes through here.

Owns the process, its overlay disk, its serial log and the way in over SSH. Devices are typed, waits
are bounded, and nothing outlives `stop()`: the disk that was given is never written. KVM is used
only when a boot was seen to work with it, because /dev/kvm is there on hosts that boot nothing.

    with Machine(disk, work, nics=[Nic(hub=7), Nic(hub=7)]) as machine:
        machine.boot()
        machine.run("openclaw doctor")

Standard library only: `make boot` and molecule use it as well as the tests.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import devices
import firmware
from devices import Nic, Node, Nvdimm, Nvme, Share

# Emulated on two busy cores a boot took 55 s to 4 minutes; this is when something is wrong.
BOOT_S = 900
PROBE_S = 60  # KVM shows the kernel's first line within 5 s where it works
# A race in multi-threaded emulation (one early boot of 200, under contention): try once more.
EMULATION_PANIC = re.compile(r"Oops: int3.*?sched_clock_cpu", re.S)
PROMPT = re.compile(r"^\S* ?login: ", re.M)
SSH_PAUSE_S = 3.0  # a guest that is slow gets slower from being asked


class MachineError(Exception):
    """The guest did not do what was waited for; the message ends with the serial log's place."""


@dataclass
class Machine:
    """One guest. `disk` is what it boots from (qcow2 or raw); what it writes goes into `work`."""

    disk: Path
    work: Path
    mib: int = 2048
    cpus: int = 2
    nics: list[Nic] = field(default_factory=list)
    nvmes: list[Nvme] = field(default_factory=list)
    nvdimms: list[Nvdimm] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    credentials: dict[str, str] = field(default_factory=dict)
    accelerator: str = ""
    name: str = "guest"
    secure_boot: bool = False

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.serial = self.work / f"{self.name}.serial.log"
        self.key = self.work / "key"
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0
        self.port = 0

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def boot(self, wait_s: float = BOOT_S) -> float:
        """Starts it and waits until SSH answers; seconds that it took."""
        began = time.monotonic()
        self.start()
        try:
            self.wait_for_ssh(wait_s)
        except MachineError:
            if not EMULATION_PANIC.search(self.log()):
                raise
            self.stop()
            self.start()
            self.wait_for_ssh(wait_s)
        return time.monotonic() - began

    def start(self) -> None:
        """Starts QEMU; the overlay disk is made once, so what the guest wrote survives a kill."""
        self._make_key()
        overlay = self.work / f"{self.name}.qcow2"
        if not overlay.exists():
            kind = "raw" if self.disk.suffix == ".raw" else "qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind,
                            "-b", str(self.disk.resolve()), str(overlay), "16G"], check=True)
        self.accelerator = self.accelerator or accelerator(self.disk, self.work)
        self.port = _free_port()
        self._seen = self.serial.stat().st_size if self.serial.exists() else 0
        with (self.work / f"{self.name}.qemu.log").open("ab") as out:
            self._process = subprocess.Popen(
                self.command(overlay), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True)

    def command(self, overlay: Path) -> list[str]:
        """The whole command line."""
        return [
            "qemu-system-x86_64", "-name", self.name, "-nodefaults", "-display", "none",
            *firmware.machine(self.accelerator, bool(self.nvdimms), self.secure_boot),
            *firmware.drives(self.work, self.name, self.secure_boot),
            *devices.memory(self.mib, self.cpus, self.nodes, bool(self.nvdimms)),
            "-chardev", f"file,id=serial,path={self.serial},append=on",
            "-serial", "chardev:serial", "-device", "virtio-rng-pci",
            "-drive", f"if=none,id=root,file={overlay},format=qcow2,cache=unsafe,discard=unmap",
            "-device", "virtio-blk-pci,drive=root,bootindex=0",
            "-netdev", f"user,id=mgmt,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=mgmt,romfile=,mac=52:54:00:6f:63:01",
            *devices.nics(self.nics),
            *devices.storage(self.nvmes, self.nvdimms, self.shares),
            *self._credentials(),
        ]

    def stop(self, wait_s: float = 120) -> None:
        """Ends it, politely where SSH answers quickly, else at once. Harmless when repeated."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)  # QEMU writes its disks out and ends
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.cut()
        self._process = None

    def cut(self) -> None:
        """The power goes."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    # ------------------------------------------------------------------ in and out

    def wait_for(self, pattern: re.Pattern[str], wait_s: float) -> str:
        """Until the serial log of this start has the pattern; the part of it that matched."""
        until = time.monotonic() + wait_s
        while True:
            text = self.log()
            if found := pattern.search(text):
                return found[0]
            ended = self._process is None or self._process.poll() is not None
            if ended or EMULATION_PANIC.search(text) or time.monotonic() > until:
                what = "QEMU ended" if ended else f"no {pattern.pattern!r} in {wait_s:.0f} s"
                raise MachineError(f"{self.name}: {what}; serial log: {self.serial}")
            time.sleep(1)

    def wait_for_ssh(self, wait_s: float = BOOT_S) -> None:
        """First the prompt, then SSH, slowly: connections cost an emulated guest seconds each."""
        until = time.monotonic() + wait_s
        self.wait_for(PROMPT, wait_s)
        while True:
            done = self.run("true", wait_s=60, check=False)
            if done.returncode == 0:
                return
            if time.monotonic() > until:
                raise MachineError(f"{self.name}: SSH: {done.stderr.strip()[-200:]}; {self.serial}")
            time.sleep(SSH_PAUSE_S)

    def wait_for_reboot(self, wait_s: float = BOOT_S) -> None:
        """After a command that boots again: the next prompt, then SSH."""
        self._seen = self.serial.stat().st_size
        self.wait_for_ssh(wait_s)

    def run(self, command: str, wait_s: float = 300, check: bool = True,
            given: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """A shell command in the guest, as root. MachineError with its last words when it fails."""
        try:
            done = subprocess.run([*self.ssh(), command], capture_output=True, timeout=wait_s,
                                  input=given, stdin=subprocess.DEVNULL if given is None else None)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, 124, b"", f"over {wait_s:.0f} s".encode())
        result = subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"))
        if check and result.returncode:
            words = (result.stderr + result.stdout).strip()[-2000:]
            raise MachineError(f"{self.name}: {command}: exit {result.returncode}\n{words}")
        return result

    def ssh(self) -> list[str]:
        """The SSH command up to the guest's own words."""
        return ["ssh", *self.ssh_options(), "-p", str(self.port), "root@127.0.0.1"]

    def ssh_options(self) -> list[str]:
        known = self.work / f"{self.name}.known_hosts"  # ours alone; a changed host key is an error
        return ["-i", str(self.key), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes",
                "-o", "StrictHostKeyChecking=accept-new", "-o", f"HostKeyAlias={self.name}",
                "-o", "ConnectTimeout=30", "-o", "LogLevel=ERROR"]

    def copy_in(self, source: Path, directory: str, wait_s: float = 900) -> None:
        """A file or a folder into a directory of the guest."""
        packed = subprocess.Popen(["tar", "-C", str(source.parent), "-chf", "-", source.name],
                                  stdout=subprocess.PIPE)
        try:
            subprocess.run([*self.ssh(), f"mkdir -p {directory} && tar -C {directory} -xf -"],
                           stdin=packed.stdout, check=True, timeout=wait_s)
        finally:
            packed.kill()
            packed.wait()

    def log(self) -> str:
        """The serial log since the last start."""
        try:
            with self.serial.open("rb") as file:
                file.seek(self._seen)
                return file.read().decode(errors="replace").replace("\r", "")
        except OSError:
            return ""

    def _credentials(self) -> list[str]:
        keys = {"ssh.authorized_keys.root": self.key.with_suffix(".pub").read_text()}
        parts: list[str] = []
        for name, value in {**keys, **self.credentials}.items():
            coded = base64.b64encode(value.encode()).decode()
            parts += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={coded}"]
        return parts

    def _make_key(self) -> None:
        if not self.key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "openclaw-test",
                            "-f", str(self.key)], check=True)


def accelerator(disk: Path, work: Path) -> str:
    """"kvm" if a boot of this disk was seen to reach the kernel under it, else "tcg"."""
    if forced := os.environ.get("OPENCLAW_ACCELERATOR"):
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    if known := _probed.get(disk):
        return known
    at = work / "probe"
    shutil.rmtree(at, ignore_errors=True)
    with Machine(disk, at, accelerator="kvm", name="probe") as machine:
        machine.start()
        try:
            machine.wait_for(re.compile(r"Linux version|systemd\[1\]|Welcome to"), PROBE_S)
            _probed[disk] = "kvm"
        except MachineError:
            _probed[disk] = "tcg"
        finally:
            machine.cut()
            shutil.rmtree(at, ignore_errors=True)
    return _probed[disk]


_probed: dict[Path, str] = {}  # a probe costs a minute where KVM does not work


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
