"""Archives that were made to harm, or damaged by chance: refused in one line, and nothing of them is run."""

from __future__ import annotations

import json
import os
import random
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from job import environment
from job.errors import ModelError
from job.model import archive
from tests.support.archives import CHANGES, CONFIG, WEIGHTS, load_in_a_process, members, strange, written
from tests.support.nights import dense, saved


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(dense(), tmp_path_factory.mktemp("good") / "m.keras")


def refused(path: Path, message: str, *, trusted: bool = False) -> None:
    with pytest.raises(ModelError, match=message) as error:
        archive.check(str(path), trusted=trusted)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_what_keras_writes_is_let_through(good: Path, tmp_path: Path) -> None:
    archive.check(str(good), trusted=False)
    # Packed once more by somebody who wanted it smaller.
    small = written(tmp_path / "small.keras", members(good), compression=zipfile.ZIP_DEFLATED)
    archive.check(str(small), trusted=False)
    with_assets = {**members(good), "assets/layers/lookup/vocabulary.txt": b"a\nb\n"}
    archive.check(str(written(tmp_path / "assets.keras", with_assets)), trusted=False)


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.txt", "/etc/cron.d/evil", "assets/../../evil.txt", "assets//evil", "assets/./evil"),
        *("C:/evil.txt", "..\\evil.txt", "assets/..\\..\\evil"),
    ],
)
def test_a_member_that_leaves_the_folder(good: Path, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.keras", {**members(good), name: b"evil"})
    refused(path, r"its member .* would leave the folder|its member .* is none that Keras writes")
    refused(path, "it was tampered with", trusted=True)


@pytest.mark.parametrize("name", ["evil.py", "model.weights.h5.bak", "assets", "variables/variables.index"])
def test_a_member_that_keras_does_not_write(good: Path, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.keras", {**members(good), name: b"evil"})
    refused(path, f"its member '{name}' is none that Keras writes")


def test_links_devices_and_secrets(good: Path, tmp_path: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        path = written(tmp_path / "m.keras", members(good))
        info = zipfile.ZipInfo("assets/x")
        info.external_attr = (kind | 0o644) << 16
        with zipfile.ZipFile(path, "a") as sink:
            sink.writestr(info, "/etc/passwd")
        refused(path, "its member 'assets/x' is a link or a device")
    path = written(tmp_path / "m.keras", members(good))
    content = bytearray(path.read_bytes())
    # Bit 0 of the flags in the central directory's first entry.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(content))
    refused(path, "its member 'metadata.json' is encrypted")


def test_doubled_members(good: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "m.keras", members(good))
    for name in ("Assets/X", "assets/x", "assets/X"):
        with zipfile.ZipFile(path, "a") as sink:
            sink.writestr(name, "")
    refused(path, "is none that Keras writes")
    path = written(tmp_path / "n.keras", {**members(good), "assets/x": b"", "assets/X": b""})
    refused(path, "its member 'assets/X' is there twice")


MB = 1 << 20


def declared(path: Path, name: str, file_size: int, checksum: int | None = None) -> None:
    """Let an archive say of a member that it unpacks to so many bytes."""
    with zipfile.ZipFile(path, "a") as sink:
        member = sink.getinfo(name)
        member.file_size = file_size
        member.CRC = member.CRC if checksum is None else checksum
        sink._didModify = True  # type: ignore[attr-defined]


@pytest.mark.slow
def test_bombs_are_told_by_what_the_machine_has(good: Path, tmp_path: Path) -> None:
    """A thousandfold of what it holds is no harm where there is room for it: zeros are packed so, too."""
    zeros = {**members(good), WEIGHTS: bytes(200 * MB)}
    path = written(tmp_path / "zeros.keras", zeros, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MB
    archive.check(str(path), trusted=False, memory_bytes=500 * MB)
    with pytest.raises(ModelError, match=r"unpack from [\d,]+ bytes to 209,7\d\d,\d+, and 314,572,800 bytes"):
        archive.check(str(path), trusted=True, memory_bytes=300 * MB)
    # As they are they are no bomb on any machine.
    plain = written(tmp_path / "plain.keras", zeros)
    archive.check(str(plain), trusted=False, memory_bytes=100 * MB)


def test_many_small_bombs_are_one_large_one(good: Path, tmp_path: Path) -> None:
    content = {**members(good), **{f"assets/{i}": bytes(3 * MB) for i in range(40)}}
    path = written(tmp_path / "m.keras", content, compression=zipfile.ZIP_DEFLATED)
    archive.check(str(path), trusted=False, memory_bytes=300 * MB)
    with pytest.raises(ModelError, match="its members unpack from"):
        archive.check(str(path), trusted=False, memory_bytes=200 * MB)


def test_a_declared_size_that_no_machine_has(good: Path, tmp_path: Path) -> None:
    content = {**members(good), "assets/0": bytes(MB)}
    path = written(tmp_path / "m.keras", content, compression=zipfile.ZIP_DEFLATED)
    declared(path, "assets/0", 1 << 50)
    refused(path, r"its members unpack from [\d,]+ bytes to 1,125,8")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "assets/0"])
def test_a_member_that_unpacks_to_more_than_it_says(good: Path, tmp_path: Path, name: str) -> None:
    """Of such a one zipfile takes memory for all, and then gives out as much as was declared."""
    content = {**members(good), name: b" " * 50 * MB}
    path = written(tmp_path / "m.keras", content, compression=zipfile.ZIP_DEFLATED)
    declared(path, name, 100, zlib.crc32(b" " * 100))
    with zipfile.ZipFile(path) as lying:
        assert lying.read(name) == b" " * 100
    refused(path, f"{name} is not as long as it says")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bounds(good: Path, tmp_path: Path, method: int) -> None:
    path = written(tmp_path / "m.keras", members(good), compression=method)
    refused(path, "is compressed in a way that no Keras reads or writes")


def test_stored_members_have_one_length(good: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "m.keras", members(good))
    declared(path, WEIGHTS, 1 << 50)
    refused(path, r"is stored in [\d,]+ bytes and says that it has 1,125,8")


@pytest.mark.slow
def test_a_vocabulary_of_any_size_is_let_through_where_there_is_memory(good: Path, tmp_path: Path) -> None:
    """70 MB in 70 words, as they are and packed a thousandfold; 8 MB in a million words."""
    content = members(good)
    config = json.loads(content[CONFIG])
    config["vocabulary"] = ["x" * 1_000_000] * 70
    content[CONFIG] = json.dumps(config).encode()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = written(tmp_path / "long.keras", content, compression=method)
        archive.check(str(path), trusted=False, memory_bytes=1000 * MB)
        with pytest.raises(ModelError, match=r"config\.json of 70,00\d,\d+ bytes takes some 84\d,\d+,\d+ "):
            archive.check(str(path), trusted=True, memory_bytes=500 * MB)
    config["vocabulary"] = ["abcd"] * 1_000_000
    content[CONFIG] = json.dumps(config).encode()
    path = written(tmp_path / "many.keras", content)
    archive.check(str(path), trusted=False, memory_bytes=250 * MB)
    with pytest.raises(ModelError, match="free some, or take a larger machine"):
        archive.check(str(path), trusted=False, memory_bytes=150 * MB)


def test_what_a_configuration_becomes_is_judged_by_its_parts(good: Path, tmp_path: Path) -> None:
    """Empty objects take thirty times their bytes."""
    content = {**members(good), CONFIG: b'{"a":[' + b"{}," * 1_000_000 + b"1]}"}
    path = written(tmp_path / "m.keras", content)
    with pytest.raises(ModelError, match=r"config\.json of 3,000,0\d\d bytes takes some 2\d\d,\d+,\d+ bytes"):
        archive.check(str(path), trusted=False, memory_bytes=180 * MB)


def test_members_that_lie_over_each_other(good: Path, tmp_path: Path) -> None:
    """One member's data, named by many entries of the central directory."""
    content = {**members(good), "assets/0": os.urandom(1000)}
    path = written(tmp_path / "m.keras", content)
    with zipfile.ZipFile(path, "a") as sink:
        info = sink.getinfo("assets/0")
        for i in range(1, 500):
            copy = zipfile.ZipInfo(f"assets/{i}")
            copy.header_offset, copy.file_size = info.header_offset, info.file_size
            copy.compress_size, copy.CRC = info.compress_size, info.CRC
            sink.filelist.append(copy)
            sink.NameToInfo[copy.filename] = copy
        sink._didModify = True  # type: ignore[attr-defined]
    refused(path, "its members lie over each other")


def layer(module: str, kind: str, registered: str | None = None, /, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": registered}


PAYLOADS: dict[str, dict[str, Any]] = {
    "a class of any module": layer("canary", "Evil"),
    "a registered name of any module": layer("canary", "Evil", "canary>Evil"),
    "a function of any module": layer("canary", "function", "evil", name="evil"),
    "os.system": layer("os", "function", "system", name="system"),
    "keras's own way to fetch a file": layer("keras.utils", "get_file", origin="file:///etc/passwd"),
    "a lambda layer": layer("keras.layers", "Lambda", function={"class_name": "__lambda__", "config": {}}),
    "a graph at a path": layer("keras.layers", "TFSMLayer", filepath="/tmp/graph"),
    "a pickle": layer("keras.layers", "TorchModuleWrapper", module="gASV"),
    "a vocabulary at a path": layer("keras.layers", "StringLookup", vocabulary="/etc/passwd", name="x"),
    "a module that runs when imported": layer("canary.sub", "Layer"),
    "a base class of an importable module": layer("keras.src.canary", "Evil"),
}


@pytest.mark.slow
def test_payloads_are_refused_and_nothing_is_run(good: Path, tmp_path: Path) -> None:
    paths = []
    for i, payload in enumerate(PAYLOADS.values()):
        for place in ("model", "layer"):
            content = members(good)
            config = json.loads(content[CONFIG])
            if place == "model":
                config = payload
            else:
                config["config"]["layers"].append(payload)
            content[CONFIG] = json.dumps(config).encode()
            paths.append(written(tmp_path / f"{i}-{place}.keras", content))
    outcomes = load_in_a_process(paths, tmp_path)
    loaded = [path.name for path, outcome in zip(paths, outcomes, strict=True) if outcome == "loaded"]
    assert not loaded
    assert all("\n" not in outcome for outcome in outcomes)


@pytest.mark.slow
def test_three_thousand_damaged_archives_end_in_one_line(good: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    original, path = good.read_bytes(), tmp_path / "m.keras"
    refusals = 0
    for i in range(3000):
        content = bytearray(original)
        CHANGES[i % len(CHANGES)](chance, content)
        path.write_bytes(bytes(content))
        try:
            archive.check(str(path), trusted=False)
        except ModelError as e:
            refusals += 1
            text = str(e)
        else:
            text = ""
        assert "\n" not in text
        assert len(text) < 1000
    assert refusals > 1000


@pytest.mark.parametrize(
    "config", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"7", b"[]", b"NaN", b"", b"1" * 5000]
)
def test_a_configuration_that_is_none(good: Path, tmp_path: Path, config: bytes) -> None:
    path = written(tmp_path / "m.keras", {**members(good), CONFIG: config})
    refused(path, "it is no .keras archive")


@pytest.mark.slow
def test_what_gets_past_the_archive_ends_in_one_line_too(good: Path, tmp_path: Path) -> None:
    """Damaged weights and odd configurations, as far as Keras and HDF5 themselves."""
    chance = random.Random(11)
    content, paths = members(good), []
    for i in range(240):
        changed = dict(content)
        if i % 2:
            weights = bytearray(content[WEIGHTS])
            CHANGES[i // 2 % len(CHANGES)](chance, weights)
            changed[WEIGHTS] = bytes(weights)
        else:
            changed[CONFIG] = strange(chance, content[CONFIG])
        paths.append(written(tmp_path / f"{i}.keras", changed))
    outcomes = load_in_a_process(paths, tmp_path)
    assert all("\n" not in outcome for outcome in outcomes)
    assert sum(outcome.startswith("refused") for outcome in outcomes) > 60


def test_assets_must_fit_the_temporary_folder(good: Path, tmp_path: Path) -> None:
    """Where the memory is not known of. Keras unpacks the whole archive there."""
    content = {**members(good), "assets/0": bytes(MB)}
    path = written(tmp_path / "m.keras", content, compression=zipfile.ZIP_DEFLATED)
    archive.check(str(path), trusted=False, memory_bytes=0)
    declared(path, "assets/0", 1 << 50)
    with pytest.raises(
        ModelError, match=r"it unpacks to 1,125,8[\d,]+ bytes in .*, and [\d,]+ are free there"
    ):
        archive.check(str(path), trusted=False, memory_bytes=0)


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"": ("max", 0, 0)}, None),
        # Of 400 MB 300 are taken, 250 of them by files that can be read again.
        ({"": (400 * MB, 300 * MB, 250 * MB)}, 350 * MB),
        ({"": ("max", 0, 0), "own": (10 * MB, 30 * MB, 5 * MB)}, 0),
        ({"": (20 * MB, 0, 0), "own": (30 * MB, 0, 0)}, 20 * MB),
    ],
)
def test_free_memory_is_what_the_limits_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], wanted: int | None
) -> None:
    for group, (limit, taken, cached) in limits.items():
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / "memory.max").write_text(f"{limit}\n")
        (tmp_path / group / "memory.current").write_text(f"{taken}\n")
        (tmp_path / group / "memory.stat").write_text(f"anon 1\nactive_file {cached}\ninactive_file 0\n")
    machine = environment.memory_bytes()
    monkeypatch.setattr(environment, "_CGROUPS", str(tmp_path))
    monkeypatch.setattr(environment, "_own_group", lambda: "own")
    found = environment.memory_bytes()
    assert found == wanted if wanted is not None else found == pytest.approx(machine, rel=0.2)
