"""Model references: form, trust and digest, on files made by hand and without Keras."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from job.errors import ModelError, UsageError
from job.model import artifact, builder
from tests.support.nights import module

PLAIN = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {}}]}}
LAMBDA = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {}}]}}
# A lambda given to a layer of Keras' own, as in Dense(activation=lambda x: …).
HIDDEN = {"class_name": "Dense", "config": {"activation": {"class_name": "__lambda__", "config": {}}}}


def archive(path: Path, config: object = PLAIN) -> Path:
    with zipfile.ZipFile(path, "w") as sink:
        sink.writestr("config.json", json.dumps(config))
    return path


def saved_model(path: Path) -> Path:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "variables.index").write_bytes(b"index")
    return path


def test_each_kind_is_told_by_what_is_there(tmp_path: Path) -> None:
    files = {"m.keras": "keras", "m.KERAS": "keras", "m.h5": "h5", "m.hdf5": "h5"}
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    saved_model(tmp_path / "folder")
    assert {name: artifact.kind_of(str(tmp_path / name)).name for name in files} == files
    assert artifact.kind_of(str(tmp_path / "folder")).name == "saved_model"
    assert artifact.kind_of("package.module:function").name == "builder"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.keras", "there is no such file, folder or builder"),
        ("no.module.function", "there is no such file, folder or builder"),
        ("a module:function", "there is no such file, folder or builder"),
        ("empty", "the folder holds no saved_model.pb and no model.weights.h5"),
        ("model.pkl", ".pkl suffix is no kind of model known here"),
        ("model", "no suffix is no kind of model known here"),
    ],
)
def test_what_is_no_model_is_refused_with_the_five_forms(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pkl").write_bytes(b"x")
    (tmp_path / "model").write_bytes(b"x")
    with pytest.raises(ModelError) as error:
        artifact.kind_of(str(tmp_path / name))
    assert message in str(error.value)
    assert f"--model={tmp_path / name}: " in str(error.value)
    assert (
        "give x.keras, x.h5, a folder (a SavedModel, or of zipped=False) or package.module:function"
        in str(error.value)
    )


def test_a_file_has_the_digest_that_sha256sum_prints(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for sha256 in (None, expected, expected.upper()):
        reference = artifact.resolve(str(path), None, trusted=False, sha256=sha256)
        assert (reference.digest, reference.path, reference.trusted) == (expected, str(path), False)


def test_another_sha256_is_refused_with_both(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"its SHA-256 is {found}, --model_sha256 wants {'0' * 64}"):
        artifact.resolve(str(path), None, trusted=True, sha256="0" * 64)


def test_h5_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"m\.h5: .* safe mode does not stop; .*--trust_model"):
        artifact.resolve(str(path), None, trusted=False, sha256=None)
    assert artifact.resolve(str(path), None, trusted=True, sha256=None).trusted


@pytest.mark.parametrize(("config", "found"), [(LAMBDA, "Lambda"), (HIDDEN, "__lambda__")])
def test_code_in_an_archive_needs_trust(tmp_path: Path, config: object, found: str) -> None:
    path = archive(tmp_path / "m.keras", config)
    with pytest.raises(ModelError, match=rf"it carries Python code \({found}\); .*--trust_model"):
        artifact.resolve(str(path), None, trusted=False, sha256=None)
    assert artifact.resolve(str(path), None, trusted=True, sha256=None).trusted


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    broken = {"text.keras": b"not a zip", "empty.keras": b"", "json.keras": None, "config.keras": None}
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "json.keras", "w") as sink:
        sink.writestr("config.json", "{")
    with zipfile.ZipFile(tmp_path / "config.keras", "w") as sink:
        sink.writestr("metadata.json", "{}")
    for name in broken:
        with pytest.raises(ModelError, match=r"it is no \.keras archive .*save it with model\.save") as error:
            artifact.resolve(str(tmp_path / name), None, trusted=True, sha256=None)
        assert "\n" not in str(error.value)


def test_a_folder_is_digested_by_names_and_contents(tmp_path: Path) -> None:
    one, same = saved_model(tmp_path / "one"), saved_model(tmp_path / "same")
    assert artifact.digest(str(one), None) == artifact.digest(str(same), None)
    before = artifact.digest(str(one), None)
    (one / "variables" / "variables.index").write_bytes(b"other")
    assert artifact.digest(str(one), None) != before
    (same / "variables" / "variables.index").rename(same / "variables" / "renamed")
    assert artifact.digest(str(same), None) != before


def test_a_folder_is_the_same_wherever_it_is(tmp_path: Path) -> None:
    one = saved_model(tmp_path / "one")
    before = artifact.digest(str(one), None)
    shutil.move(one, tmp_path / "elsewhere")
    assert artifact.digest(f"{tmp_path}/elsewhere", None) == artifact.digest(f"{tmp_path}/elsewhere/", None)
    assert artifact.digest(str(tmp_path / "elsewhere"), None) == before


def test_a_builder_is_digested_by_its_source_its_name_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, "artifact_builder", "def build(): ...\ndef other(): ...\n", monkeypatch)
    weights = tmp_path / "a.weights.h5"
    weights.write_bytes(b"1")
    digests = [artifact.digest(f"{name}:build", None), artifact.digest(f"{name}:other", None)]
    digests.append(artifact.digest(f"{name}:build", str(weights)))
    weights.write_bytes(b"2")
    digests.append(artifact.digest(f"{name}:build", str(weights)))
    (tmp_path / f"{name}.py").write_text("def build(): return 1\n")
    digests.append(artifact.digest(f"{name}:build", str(weights)))
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        ("", "absent_builder_module:build", "there is no module absent_builder_module"),
        ("", "absent_package.models:build", r"module absent_package\.models cannot be imported"),
        ("raise RuntimeError('no licence')", "artifact_parent.models:build", "no licence"),
        ("def (", "artifact_parent.models:build", "cannot be imported"),
    ],
)
def test_a_builder_that_cannot_be_found_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reference: str, message: str
) -> None:
    module(tmp_path, "artifact_parent", source, monkeypatch)
    with pytest.raises(ModelError, match=message) as error:
        artifact.resolve(reference, None, trusted=False, sha256=None)
    assert str(error.value).startswith(f"--model={reference}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [("absent.weights.h5", "there is no such file"), ("weights.bin", r"files named \*\.weights\.h5")],
)
def test_weights_must_be_there_and_named_as_keras_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, message: str
) -> None:
    name = module(tmp_path, "artifact_weights", "def build(): ...\n", monkeypatch)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=message):
        artifact.resolve(f"{name}:build", str(tmp_path / weights), trusted=False, sha256=None)


def test_weights_go_with_a_builder_only(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    with pytest.raises(UsageError, match=r"only with --model=package\.module:function, not with .*m\.keras,"):
        artifact.resolve(str(path), "a.weights.h5", trusted=False, sha256=None)


PACKAGE = {
    "__init__.py": "raise RuntimeError('the package was run')\n",
    "models/__init__.py": "",
    "models/net.py": "raise RuntimeError('the builder was run')\n",
    "layers/own.py": "UNITS = 1\n",
}


def package(folder: Path, name: str) -> Path:
    for path, source in PACKAGE.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(source)
    return folder / name


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ("layers/own.py", True),
        ("models/net.py", True),
        ("layers/new.py", True),
        ("layers/notes.txt", False),
        ("../beside.py", False),
    ],
)
def test_a_builder_is_digested_by_all_sources_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, counts: bool
) -> None:
    # A name of its own for each case: finding a module imports the packages around it, for good.
    top = package(tmp_path, f"artifact_{tmp_path.name}")
    (top / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = artifact.digest(f"{top.name}.models.net:build", None)
    (top / change).write_text("UNITS = 2\n")
    assert (artifact.digest(f"{top.name}.models.net:build", None) != before) == counts


def test_a_package_has_one_digest_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for place in ("here", "there"):
        top = package(tmp_path / place, "artifact_moved")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(top.parent)
            digests.add(artifact.digest("artifact_moved:build", None))
    assert len(digests) == 1


@pytest.mark.parametrize(("change", "counts"), [("helper.py", True), ("below/helper.py", False)])
def test_a_module_in_no_package_is_digested_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, counts: bool
) -> None:
    name = module(tmp_path, "artifact_alone", "def build(): ...\n", monkeypatch)
    (tmp_path / "below").mkdir()
    (tmp_path / change).write_text("UNITS = 1\n")
    before = artifact.digest(f"{name}:build", None)
    (tmp_path / change).write_text("UNITS = 2\n")
    assert (artifact.digest(f"{name}:build", None) != before) == counts


def test_sharded_weights_are_digested_with_all_their_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, "artifact_shards", "def build(): ...\n", monkeypatch)
    weights = tmp_path / "m.weights.json"
    weights.write_text(json.dumps({"weight_map": {"/a/vars": ["m_00000.weights.h5", "m_00001.weights.h5"]}}))
    for shard in ("m_00000.weights.h5", "m_00001.weights.h5"):
        with pytest.raises(ModelError, match=f"its shard {shard} is not there; put it beside the map"):
            artifact.digest(f"{name}:build", str(weights))
        (tmp_path / shard).write_bytes(b"1")
    before = artifact.digest(f"{name}:build", str(weights))
    assert builder.weights_bytes(str(weights)) == weights.stat().st_size + 2
    (tmp_path / "m_00001.weights.h5").write_bytes(b"2")
    assert artifact.digest(f"{name}:build", str(weights)) != before


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "7", "{}", '{"weight_map": 7}', "[" * 100_000),
        *('{"weight_map": {"a": "../m.weights.h5"}}', '{"weight_map": {"a": "/etc/passwd"}}'),
        *('{"weight_map": {"a": [7]}}', '{"weight_map": {"a": "m.pkl"}}'),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    name = module(tmp_path, "artifact_map", "def build(): ...\n", monkeypatch)
    (tmp_path / "m_00000.weights.h5").write_bytes(b"1")
    (tmp_path / "m.weights.json").write_text(content)
    with pytest.raises(ModelError, match="it is no map of shards") as error:
        artifact.resolve(f"{name}:build", f"{tmp_path}/m.weights.json", trusted=False, sha256=None)
    assert "\n" not in str(error.value)


def test_weights_from_an_archive_carry_no_code_but_may_be_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, "artifact_archive", "def build(): ...\n", monkeypatch)
    path = archive(tmp_path / "m.keras", LAMBDA)
    assert artifact.resolve(f"{name}:build", str(path), trusted=False, sha256=None).weights == str(path)
    with zipfile.ZipFile(path, "a") as sink:
        sink.writestr("../evil", b"")
    with pytest.raises(ModelError, match=rf"--weights={path}: its member '../evil' would leave"):
        artifact.resolve(f"{name}:build", str(path), trusted=False, sha256=None)


def keras_folder(path: Path, config: object = PLAIN) -> Path:
    (path / "assets").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "metadata.json").write_text("{}")
    (path / "model.weights.h5").write_bytes(b"weights")
    (path / "assets" / "vocabulary.txt").write_text("a")
    (path / "README.md").write_text("of a hub")
    (path / ".gitattributes").write_text("of a hub")
    return path


def test_a_folder_of_keras_is_checked_as_an_archive_is(tmp_path: Path) -> None:
    path = keras_folder(tmp_path / "m")
    assert artifact.kind_of(str(path)).name == "keras_folder"
    before = artifact.resolve(str(path), None, trusted=False, sha256=None).digest
    (path / "model.weights.h5").write_bytes(b"others")
    assert artifact.digest(str(path), None) != before
    coded = keras_folder(tmp_path / "coded", LAMBDA)
    with pytest.raises(ModelError, match=r"it carries Python code \(Lambda\); .*--trust_model"):
        artifact.resolve(str(coded), None, trusted=False, sha256=None)
    assert artifact.resolve(str(coded), None, trusted=True, sha256=None).trusted
    (coded / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match=r"its config\.json cannot be read: RecursionError"):
        artifact.resolve(str(coded), None, trusted=True, sha256=None)


@pytest.mark.parametrize("name", ["model.weights.h5", "assets/vocabulary.txt", "assets"])
def test_a_folder_of_keras_has_no_links(tmp_path: Path, name: str) -> None:
    path = keras_folder(tmp_path / "m")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"its entry '{name}' is a link; .* \(cp -rL\)"):
        artifact.resolve(str(path), None, trusted=False, sha256=None)
    if name == "model.weights.h5":
        # What is trusted may lie in a cache, as hubs keep it; a folder's digest has no folders behind links.
        assert artifact.resolve(str(path), None, trusted=True, sha256=None).trusted


def test_a_folder_of_keras_holds_nothing_else(tmp_path: Path) -> None:
    path = keras_folder(tmp_path / "m")
    (path / "evil.py").write_text("")
    with pytest.raises(ModelError, match=r"its entry 'evil.py' is none that Keras writes; take it out"):
        artifact.resolve(str(path), None, trusted=True, sha256=None)
