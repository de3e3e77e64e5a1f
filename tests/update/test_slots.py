"""Versions, tries and refusals of `openclaw update`, on directories that look like a machine."""

from __future__ import annotations

import hashlib
import json

import pytest

from appliance import image
from appliance.errors import ConfigError, HostError, OpenClawError
from appliance.update import install, slots
from appliance.update.install import newer, parts, refuse_unproven, refuse_without_room, verify

UUID = "0123abcd012301230123012345678901"


def update(at, version="0.2", root=1000):
    """A directory as images/outputs makes it."""
    at.mkdir(exist_ok=True)
    contents = {
        f"openclaw_{version}.efi": b"kernel",
        f"openclaw_{version}.root-x86-64.{UUID}.raw": b"r" * root,
        f"openclaw_{version}.root-x86-64-verity.{UUID}.raw": b"hashes",
    }
    for name, data in contents.items():
        (at / name).write_bytes(data)
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in contents.items()]
    (at / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return at


@pytest.mark.parametrize(("name", "version", "left", "done"), [
    ("openclaw_0.1.0.171.efi", "0.1.0.171", None, 0),
    ("openclaw_0.2+2.efi", "0.2", 2, 0),
    ("openclaw_0.2+1-1.efi", "0.2", 1, 1),
    ("openclaw_0.2+0-2.efi", "0.2", 0, 2),
])
def test_an_entrys_name_tells_version_and_tries(name, version, left, done):
    assert slots.entry(name) == slots.Entry(version, left, done)
    assert slots.Entry(version, left, done).counted is (left is not None)
    assert slots.Entry(version, left, done).spent is (left == 0)


@pytest.mark.parametrize("name", ["debian.efi", "openclaw_0.2.efi.tmp", "openclaw_.efi", "loader"])
def test_what_is_not_ours_is_no_entry(name):
    assert slots.entry(name) is None


def test_only_our_image_has_a_version(tmp_path, monkeypatch):
    file = tmp_path / "os-release"
    monkeypatch.setattr(image, "OS_RELEASE", file)
    assert image.version() is None and image.facts() == {}
    file.write_text('ID=debian\nIMAGE_ID="openclaw"\nIMAGE_VERSION="0.1.9"\n')
    assert image.version() == "0.1.9"
    file.write_text("ID=debian\nIMAGE_ID=other\nIMAGE_VERSION=3\n")
    assert image.version() is None


@pytest.mark.parametrize(("version", "than", "answer"), [
    ("0.1.10", "0.1.9", True), ("0.1.9", "0.1.10", False), ("0.2", "0.2", False),
    ("0.2.0.5", "0.2.0", True), ("1.0", "0.99.99", True), ("0.1.0.9", "0.1.0.10", False),
])
def test_numbers_of_a_version_are_compared_as_numbers(version, than, answer):
    assert newer(version, than) is answer


def test_an_update_is_three_files_of_one_version(tmp_path):
    version, files = parts(update(tmp_path / "u"))
    assert version == "0.2" and set(files) == {"efi", "root", "verity"}
    verify(tmp_path / "u", files)


def test_an_incomplete_or_mixed_update_is_refused_by_name(tmp_path):
    at = update(tmp_path / "u")
    (at / "openclaw_0.2.efi").rename(at / "openclaw_0.3.efi")
    with pytest.raises(ConfigError, match=r"versions: 0\.2, 0\.3"):
        parts(at)
    (at / "openclaw_0.3.efi").unlink()
    with pytest.raises(ConfigError, match="missing: efi"):
        parts(at)
    with pytest.raises(ConfigError, match="a directory with an update"):
        parts(tmp_path / "none")
    two = update(update(tmp_path / "two", "0.2"), "0.3")
    with pytest.raises(ConfigError, match="one version, not"):
        parts(two)


def test_a_changed_byte_is_seen_before_anything_is_written(tmp_path):
    at = update(tmp_path / "u")
    _, files = parts(at)
    files["root"].write_bytes(b"x" * 1000)
    with pytest.raises(OpenClawError, match=r"root-x86-64\..*damaged"):
        verify(at, files)
    (at / "SHA256SUMS").unlink()
    with pytest.raises(ConfigError, match="SHA256SUMS"):
        verify(at, files)


def test_a_version_on_trial_is_not_overwritten():
    refuse_unproven(slots.Entry("0.1"))
    with pytest.raises(HostError, match=r"0\.2 is on trial itself"):
        refuse_unproven(slots.Entry("0.2", left=1, done=1))


def test_a_root_larger_than_the_slot_is_refused(tmp_path, monkeypatch):
    at = update(tmp_path / "u", root=4096)
    block = tmp_path / "sys/class/block/vda2"
    block.mkdir(parents=True)
    (block / "partition").write_text("2\n")
    (block / "dev").write_text("254:2\n")
    (block / "size").write_text("7\n")  # 3,584 bytes
    facts = tmp_path / "run/udev/data"
    facts.mkdir(parents=True)
    (facts / "b254:2").write_text("E:ID_PART_ENTRY_TYPE=4f68bce3-e8cd-4db1-96e7-fbcaf984b709\n")
    esp = tmp_path / "esp"
    esp.mkdir()
    monkeypatch.setattr(slots, "ENTRIES", (esp,))
    _, files = parts(at)
    with pytest.raises(HostError, match="4096 bytes, the slot 3584"):
        refuse_without_room(files, "0.1", tmp_path)
    (block / "size").write_text("8\n")
    refuse_without_room(files, "0.1", tmp_path)
    monkeypatch.setattr(slots, "ENTRIES", (tmp_path / "none",))
    with pytest.raises(HostError, match="no boot partition"):
        refuse_without_room(files, "0.1", tmp_path)


def test_on_a_host_that_is_no_image_update_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "OS_RELEASE", tmp_path / "none")
    with pytest.raises(HostError, match="no OpenClaw image"):
        install(str(tmp_path))


def test_the_state_file_is_whole_or_not_there(tmp_path, monkeypatch):
    file = tmp_path / "update.json"
    monkeypatch.setattr(image, "STATE", file)
    assert image.last_update() == {}
    slots.write_state({"from": "0.1", "to": "0.2"})
    assert image.last_update() == {"from": "0.1", "to": "0.2"}
    assert json.loads(file.read_text()) and not file.with_suffix(".new").exists()
    file.write_text('{"from": ')
    assert image.last_update() == {}


def test_a_rollback_is_told_at_the_next_login(tmp_path, monkeypatch):
    release, state, motd = (tmp_path / name for name in ("os-release", "update.json", "m/motd"))
    release.write_text("IMAGE_ID=openclaw\nIMAGE_VERSION=0.1\n")
    esp = tmp_path / "esp"
    esp.mkdir()
    (esp / "openclaw_0.1.efi").touch()
    (esp / "openclaw_0.2+0-2.efi").touch()
    monkeypatch.setattr(image, "OS_RELEASE", release)
    monkeypatch.setattr(image, "STATE", state)
    monkeypatch.setattr(slots, "MOTD", motd)
    monkeypatch.setattr(slots, "ENTRIES", (esp,))
    slots.write_state({"from": "0.1", "to": "0.2", "result": "written"})
    slots.note_boot(good=True)
    assert image.last_update()["result"] == "rolled back"
    assert image.facts()["image"]["update"]["result"] == "rolled back"
    assert "0.2 failed its health gate and was rolled back; 0.1 runs" in motd.read_text()


def test_a_good_first_boot_of_the_new_version_is_kept(tmp_path, monkeypatch):
    release, state = tmp_path / "os-release", tmp_path / "update.json"
    release.write_text("IMAGE_ID=openclaw\nIMAGE_VERSION=0.2\n")
    monkeypatch.setattr(image, "OS_RELEASE", release)
    monkeypatch.setattr(image, "STATE", state)
    slots.write_state({"from": "0.1", "to": "0.2", "result": "written"})
    slots.note_boot(good=False)
    assert image.last_update()["result"] == "on trial"
    slots.note_boot(good=True)
    assert image.last_update()["result"] == "kept"
