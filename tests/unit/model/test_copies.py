"""Private copies of models: exchanged while they are looked at, shared by processes, gone when they end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import pytest
from tensorflow.python.saved_model import load

from job.errors import JobError, ModelError, StorageError, UsageError
from job.model import artifact, copies
from job.model.loading import LoadedModel
from job.spec import ModelReference
from tests.support.nights import dense, module

ROOT: Final = Path(__file__).parents[3]
ROWS: Final = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As on a machine where nobody has looked at a model yet."""
    return fresh(tmp_path_factory, monkeypatch)


def fresh(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(top))
    monkeypatch.setattr(tempfile, "tempdir", str(top))
    monkeypatch.setattr(artifact, "_kept", {})
    return top / f"scoring-job-{os.getuid()}" / "models"


class Exchange:
    """Exchanges a model for another at the n-th moment when something of its name is opened or loaded."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.at, self.seen = 0, 0
        self.act: Callable[[], None] = lambda: None

    def look(self, event: str, args: tuple[Any, ...]) -> None:
        """Be told of everything that Python does; see ``sys.addaudithook``."""
        if event == "open" and self.names and os.path.basename(str(args[0])) in self.names:
            self.moment()

    def moment(self) -> None:
        """Do it, if it is time for it."""
        if not self.names:
            return
        self.seen += 1
        if self.seen == self.at:
            names, self.names = self.names, frozenset()
            self.act()
            self.names = names


EXCHANGE: Final = Exchange()
sys.addaudithook(EXCHANGE.look)


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exchange]:
    """The moments are also those when a library's own code is about to open files."""
    for owner, name in (
        *((keras.models, "load_model"), (keras.Model, "load_weights"), (load, "load_partial")),
    ):
        real = getattr(owner, name)

        def wrapped(*args: Any, real: Any = real, **more: Any) -> Any:
            EXCHANGE.moment()
            return real(*args, **more)

        monkeypatch.setattr(owner, name, wrapped)
    yield EXCHANGE
    EXCHANGE.names = frozenset()


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def in_place(path: Path, other: Path) -> None:
    """Write another model over one, file by file, into the same files."""
    for file in files_of(path):
        content = (other / file.relative_to(path) if path.is_dir() else other).read_bytes()
        with file.open("r+b") as target:
            target.write(content)
            target.truncate()


def by_name(path: Path, other: Path) -> None:
    """Put another model in one's place by its name."""
    aside = path.with_name(f"aside-{path.name}")
    (shutil.copytree if other.is_dir() else shutil.copy)(other, aside)
    if path.is_dir():
        shutil.rmtree(path)
    aside.replace(path)


BUILDER: Final = """
from tests.support.nights import dense
def build():
    return dense(seed=2)
"""

FORMS: Final[dict[str, tuple[str, Callable[[keras.Model, Path], Any]]]] = {
    "file": ("m.keras", lambda made, path: made.save(path)),
    "folder": ("m", lambda made, path: made.save(path, zipped=False)),
    "saved_model": ("m", lambda made, path: made.export(path, verbose=False)),
    "weights": ("m.weights.h5", lambda made, path: made.save_weights(path)),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", [in_place, by_name])
@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_exchanged_while_it_is_looked_at_is_never_scored(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    exchange: Exchange,
    form: str,
    how: Callable[[Path, Path], None],
) -> None:
    name, save = FORMS[form]
    builder = module(tmp_path, f"exchanged_{form}_{how.__name__}", BUILDER, monkeypatch)
    pinned, other = dense(4), dense(4, seed=1)
    for folder, made in (("good", pinned), ("evil", other)):
        (tmp_path / folder).mkdir()
        save(made, tmp_path / folder / name)
    path, good, evil = (tmp_path / folder / name for folder in ("model", "good", "evil"))
    path.parent.mkdir()
    expected = pinned.predict(ROWS, batch_size=3, verbose=0)

    def of(there: Path) -> tuple[str, str | None]:
        return (f"{builder}:build", str(there)) if form == "weights" else (str(there), None)

    sha256 = artifact.digest(*of(good))
    outcomes = []
    exchange.act = lambda: how(path, evil)
    for exchange.at in range(1, 40):
        (shutil.copytree if good.is_dir() else shutil.copy)(good, path)
        fresh(tmp_path_factory, monkeypatch)
        exchange.names, exchange.seen = frozenset(file.name for file in files_of(path)), 0
        try:
            loaded = LoadedModel(artifact.resolve(*of(path), trusted=False, sha256=sha256))
            loaded.build(loaded.signature.inputs)
            found = loaded.predict([ROWS])[0]
        except JobError as e:
            outcomes.append(e.exit_code)
        else:
            np.testing.assert_array_equal(found, expected)
            outcomes.append(0)
        exchange.names = frozenset()
        (shutil.rmtree if path.is_dir() else os.remove)(path)
        if exchange.seen < exchange.at:
            break
    # The last time nothing was exchanged. Before, at least once too early, and once too late.
    assert len(outcomes) > 2
    assert {0, 4} >= set(outcomes)
    assert outcomes[0] == 4
    assert outcomes[-2:] == [0, 0]


def test_another_kind_of_model_in_its_place_is_not_loaded(tmp_path: Path) -> None:
    """A folder that is two kinds at once is loaded as the kind that it was when it was looked at."""
    dense(4).export(tmp_path / "m", verbose=False)
    for name, content in (("config.json", "{}"), ("model.weights.h5", "")):
        (tmp_path / "m" / name).write_text(content)
    reference = artifact.resolve(str(tmp_path / "m"), None, trusted=False, sha256=None)
    (tmp_path / "m" / "saved_model.pb").unlink()
    assert artifact.kind_of(str(tmp_path / "m")).name == "keras_folder"
    assert artifact.opened(reference).kind.name == "saved_model"
    assert LoadedModel(reference).signature.inputs[0].shape == (4,)


# Another process of this user; its model is in use until a line comes.
HOLDING: Final = """
import sys
from job.model import artifact
held = artifact.held(sys.argv[1], None)
print(held.file, flush=True)
sys.stdin.readline()
"""


def holder(path: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)


def a_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_processes_share_a_copy_and_the_last_one_removes_it(tmp_path: Path, own_folder: Path) -> None:
    path = a_file(tmp_path / "m.h5", b"model")
    first, copy = holder(path)
    second, same = holder(path)
    try:
        assert copy == same
        assert copy.read_bytes() == b"model"
        assert [entry.name for entry in own_folder.iterdir()] == [copy.parents[1].name]
        assert own_folder.stat().st_mode & 0o077 == own_folder.parent.stat().st_mode & 0o077 == 0
        inode = copy.stat().st_ino
        end(first)
        assert copy.stat().st_ino == inode
        # Another content is another copy, beside it.
        path.write_bytes(b"other")
        third, other = holder(path)
        assert other.read_bytes() == b"other"
        end(third)
        assert sorted(own_folder.iterdir()) == [copy.parents[1]]
    finally:
        end(second)
    assert list(own_folder.iterdir()) == []


def test_what_a_killed_process_leaves_goes_with_the_next_copy(tmp_path: Path, own_folder: Path) -> None:
    process, copy = holder(a_file(tmp_path / "m.h5", b"model"))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert copy.exists()
    held = artifact.held(str(a_file(tmp_path / "n.h5", b"other")), None)
    assert not copy.exists()
    assert [entry.name for entry in own_folder.iterdir()] == [Path(held.file).parents[1].name]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, own_folder: Path) -> None:
    path = tmp_path / "m.keras"
    os.mkfifo(path)
    with pytest.raises(StorageError, match=r"m\.keras: cannot be copied: it is no regular file$"):
        artifact.held(str(path), None)
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    os.mkfifo(folder / "pipe")
    with pytest.raises(StorageError, match=r"m: cannot be copied: pipe is no regular file$"):
        artifact.held(str(folder), None)
    assert list(own_folder.iterdir()) == []


def test_a_process_keeps_the_latest_and_what_is_in_use(tmp_path: Path, own_folder: Path) -> None:
    in_use = artifact.held(str(a_file(tmp_path / "first.h5", b"first")), None)
    paths = [a_file(tmp_path / f"{i}.h5", str(i).encode()) for i in range(8)]
    for path in paths:
        artifact.held(str(path), None)
    names = {file.name for file in own_folder.glob("*/model/*")}
    assert names >= {"first.h5", "4.h5", "5.h5", "6.h5", "7.h5"}
    # Those that are let go of are removed with the next one.
    assert len(names) <= 6
    assert Path(in_use.file).read_bytes() == b"first"
    # Nothing was copied that was there already.
    before = Path(artifact.held(str(paths[7]), None).file).stat().st_ino
    assert Path(artifact.held(str(paths[7]), None).file).stat().st_ino == before


def test_where_the_folder_is_somebody_elses_a_process_has_its_own(tmp_path: Path, own_folder: Path) -> None:
    own_folder.parent.mkdir()
    own_folder.parent.chmod(0o777)
    held = artifact.held(str(a_file(tmp_path / "m.h5", b"model")), None)
    assert Path(held.file).read_bytes() == b"model"
    assert not Path(held.file).is_relative_to(own_folder.parent)
    assert Path(held.file).parents[2].stat().st_mode & 0o077 == 0


def test_a_forked_child_does_not_end_what_its_parent_uses(tmp_path: Path, own_folder: Path) -> None:
    held = artifact.held(str(a_file(tmp_path / "m.h5", b"model")), None)
    copies._end(os.getpid() + 1)
    assert Path(held.file).exists()
    lock = os.open(Path(held.file).parents[1] / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_a_link_in_a_saved_model_may_lead_anywhere(tmp_path: Path) -> None:
    """A vocabulary that is a link to a file which the model's maker cannot read, but the job's user can."""
    (tmp_path / "words.txt").write_text("a\nb\n")
    word = keras.Input((), dtype="string", name="word")
    looked_up = keras.layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))(word)
    keras.Model(word, looked_up).export(tmp_path / "m", verbose=False)
    (tmp_path / "secret").write_text("b\na\n")
    vocabulary = tmp_path / "m" / "assets" / "words.txt"
    vocabulary.unlink()
    vocabulary.symlink_to(tmp_path / "secret")
    told = r"its 'assets/words\.txt' is a link, which may lead to any file of this machine; .*--trust_model"
    with pytest.raises(ModelError, match=told):
        artifact.resolve(str(tmp_path / "m"), None, trusted=False, sha256=None)
    # Nor by a reference to what somebody has let in, or has only looked at.
    trusted = artifact.resolve(str(tmp_path / "m"), None, trusted=True, sha256=None)
    assert LoadedModel(trusted).signature.inputs[0].name == "word"
    with pytest.raises(ModelError, match=told):
        LoadedModel(ModelReference(trusted.path, None, False, trusted.digest))
    # A copy of what it leads to needs no trust, though it is the same to the bit.
    vocabulary.unlink()
    shutil.copy(tmp_path / "secret", vocabulary)
    plain = artifact.resolve(str(tmp_path / "m"), None, trusted=False, sha256=trusted.digest)
    assert LoadedModel(plain).signature.inputs[0].name == "word"
    shutil.move(tmp_path / "m" / "assets", tmp_path / "elsewhere")
    (tmp_path / "m" / "assets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"its 'assets' is a link to a folder; .*\(cp -rL\)"):
        artifact.resolve(str(tmp_path / "m"), None, trusted=True, sha256=None)


def test_a_temporary_folder_that_takes_no_copy_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"weights")
    # A file in the place of the folder: nobody can make one below it, not even root.
    blocked = tmp_path / "tmp" / f"scoring-job-{os.getuid()}"
    blocked.mkdir(0o700, parents=True)
    (blocked / "models").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(blocked.parent))
    told = r"models: no copy of the model can be made there: File exists; .*set TMPDIR"
    with pytest.raises(UsageError, match=told):
        artifact.resolve(str(path), None, trusted=True, sha256=None)


def test_without_any_temporary_folder_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path / "m.h5", b"weights")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(copies, "_own", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(path)])
    with pytest.raises(UsageError, match=r"^the folder for temporary files: .*No usable.*set TMPDIR"):
        artifact.resolve(str(path), None, trusted=True, sha256=None)


def test_a_file_in_place_of_the_folder_stops_no_night(tmp_path: Path, own_folder: Path) -> None:
    a_file(own_folder.parent, b"")
    held = artifact.held(str(a_file(tmp_path / "m.h5", b"model")), None)
    assert Path(held.file).read_bytes() == b"model"
