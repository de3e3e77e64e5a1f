"""What can be said of the image without booting one: definitions agree, and tools accept them.

The tests that boot are in tests/vm (`make vm-test`).
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from appliance import config

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = ROOT / "images"
MKOSI = IMAGES / "mkosi"


def load(path: Path):
    """A module by its file: what is in images/ and ansible/ belongs to no package."""
    name = f"openclaw_test_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def tool(*places: str) -> str:
    for place in places:
        if found := shutil.which(ROOT / place) or shutil.which(place):
            return found
    pytest.skip(f"probe {places[0]}: not installed (tools/setup image)")


def test_the_makefile_has_the_targets_of_the_manual():
    text = (ROOT / "Makefile").read_text()
    for target in ("image", "vm-test", "boot", "deb", "vagrant-host"):
        assert re.search(rf"^(\S+ )*{target}( \S+)*:", text, re.M), target


def test_every_script_of_the_image_can_be_run():
    for name in ("image", "outputs", "boot", "vm-test", "deb/build", "deb/postinst", "deb/openclaw",
                 "mkosi/mkosi.postinst", "mkosi/mkosi.finalize"):
        assert (IMAGES / name).stat().st_mode & 0o111, name


def test_both_slots_have_one_size_and_the_running_one_is_protected():
    sizes = {}
    for name in ("10-root", "20-root-b", "11-root-verity", "21-root-verity-b"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(MKOSI / f"mkosi.repart/{name}.conf")
        part = parser["Partition"]
        assert part["SizeMinBytes"] == part["SizeMaxBytes"], name
        sizes[name] = part["SizeMinBytes"]
    assert sizes["10-root"] == sizes["20-root-b"]
    assert sizes["11-root-verity"] == sizes["21-root-verity-b"]
    transfers = sorted((MKOSI / "mkosi.extra/usr/lib/sysupdate.d").glob("*.transfer"))
    assert [path.name for path in transfers][-1] == "90-uki.transfer"  # chosen only when whole
    for path in transfers:
        assert "ProtectVersion=%A" in path.read_text(), path.name


def test_units_of_the_image_that_are_enabled_exist():
    preset = (MKOSI / "mkosi.extra/usr/lib/systemd/system-preset/10-openclaw.preset").read_text()
    ours = {path.name for path in (MKOSI / "mkosi.extra/usr/lib/systemd/system").iterdir()}
    ours |= {"openclaw.service", "openclaw-tune.service"}  # the package's and role base's
    named = set(re.findall(r"^enable (openclaw\S*)", preset, re.M))
    assert named and named <= ours


def test_the_bill_of_materials_is_the_same_for_the_same_manifest(tmp_path):
    manifest = {"packages": [
        {"name": "zlib1g", "version": "1:1.3", "architecture": "amd64"},
        {"name": "bash", "version": "5.2", "architecture": "amd64"},
    ]}
    bill = load(IMAGES / "sbom.py").bill
    first = bill(manifest, "0.1")
    assert first == bill({"packages": manifest["packages"][::-1]}, "0.1")
    assert [one["name"] for one in first["components"]] == ["bash", "zlib1g"]
    purl = "pkg:deb/debian/zlib1g@1%3A1.3?arch=amd64&distro=debian-13"
    assert first["components"][1]["purl"] == purl
    assert json.dumps(first)


def test_requirements_become_debian_names():
    names = load(IMAGES / "deb/requirements.py").debian_name
    assert names("prometheus_client>=0.17") == "prometheus-client"
    assert names("click>=8.1") == "click"


def test_the_package_holds_back_what_security_md_says():
    unit = (IMAGES / "deb/openclaw.service").read_text()
    for setting in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelLogs"):
        assert f"{setting}=yes" in unit, setting
    assert "ProtectSystem=strict" in unit
    security = (ROOT / "SECURITY.md").read_text()
    [bounds] = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.M)
    for capability in bounds.split():
        assert capability in security, capability


# ------------------------------------------------------------------ ansible

DPDK = ROOT / "ansible/roles/dpdk/files/dpdk_bind.py"
LINKS = [
    {"ifname": "eth0", "addr_info": [{"local": "192.0.2.1", "scope": "global"}]},
    {"ifname": "eth1", "addr_info": [{"local": "fe80::1", "scope": "link"}]},
    {"ifname": "eth2", "master": "bond0"},
    {"ifname": "eth3", "addr_info": [{"local": "fe80::3", "scope": "link"}]},
]


@pytest.mark.parametrize(("name", "routes", "connection", "reason"), [
    ("eth0", [], "none", "has the address 192.0.2.1"),
    ("eth0", [], "192.0.2.1", "carries this connection"),
    ("eth1", [{"dev": "eth1"}], "none", "has the default route"),
    ("eth2", [], "none", "belongs to bond0"),
    ("eth3", [], "fe80::3", "carries this connection"),
])
def test_dpdk_never_takes_an_interface_that_carries_management(name, routes, connection, reason):
    [line] = load(DPDK).objections([name], LINKS, routes, connection)
    assert reason in line


def test_dpdk_takes_an_interface_that_nobody_uses():
    assert load(DPDK).objections(["eth1"], LINKS, [{"dev": "eth0"}], "192.0.2.1") == []


def test_the_roles_options_are_those_of_the_configuration():
    yaml = pytest.importorskip("yaml", reason="probe yaml: python3-yaml is not installed")
    spec = yaml.safe_load((ROOT / "ansible/roles/openclaw/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    tables: dict[str, type[BaseModel]] = {
        "openclaw_memory": config.MemoryConfig, "openclaw_ports": config.PortConfig,
        "openclaw_rules": config.RuleConfig, "openclaw_consumers": config.ConsumerConfig,
        "openclaw_control": config.ControlConfig,
    }
    for name, model in tables.items():
        assert set(options[name]["options"]) == set(model.model_fields), name


def test_ansible_lint_is_content_in_its_production_profile():
    lint = tool(".venv-image/bin/ansible-lint", "ansible-lint")
    done = subprocess.run([lint, "--offline", "--profile", "production", "-q", "."],
                          cwd=ROOT / "ansible", capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_playbook_is_one():
    playbook = tool(".venv-image/bin/ansible-playbook", "ansible-playbook")
    done = subprocess.run([playbook, "-i", "inventory.example.yml", "--syntax-check", "site.yml"],
                          cwd=ROOT / "ansible", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruby_accepts_the_vagrantfile():
    ruby = tool("ruby")
    done = subprocess.run([ruby, "-c", ROOT / "Vagrantfile", IMAGES / "box.rb"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
