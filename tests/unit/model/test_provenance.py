"""What a builder reads is part of the run: seen, named in the manifest, and looked at without the builder."""

from __future__ import annotations

import hashlib
import importlib
import os
import py_compile
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from job.binding.predictions import Tolerance
from job.cli import options
from job.commit import protocol
from job.compare.verify import ALL, verify
from job.errors import ModelError, OutputConflictError
from job.launch import forecast, score
from job.model import provenance
from job.model.loading import acquire, forget
from job.scoring import worker
from job.spec import ModelReference
from tests.support.nights import Night, module


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_by(act: Callable[[], object]) -> dict[str, str]:
    with provenance.recorded() as recorder:
        act()
    return dict(recorder.found(()))


def constant(path: Path, value: float) -> Path:
    """A model that multiplies by ``value``; the file is another one for another value."""
    keras.utils.set_random_seed(0)
    x = keras.Input((1,))
    kernel = keras.initializers.Constant(value)
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer=kernel, use_bias=False)(x))
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def by_numpy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.zeros(3))
    return folder / "a.npy"


def by_pandas(folder: Path) -> Path:
    (folder / "a.csv").write_text("a,b\n1,2\n")
    return folder / "a.csv"


def by_sqlite(folder: Path) -> Path:
    (folder / "a.db").write_bytes(b"")
    return folder / "a.db"


def text(folder: Path) -> Path:
    (folder / "a.txt").write_text("a\n")
    return folder / "a.txt"


def h5(folder: Path) -> Path:
    return constant(folder / "a.weights.h5", 1)


def archive(folder: Path) -> Path:
    return constant(folder / "a.keras", 1)


def read_sqlite(path: str) -> None:
    import sqlite3

    sqlite3.connect(path).close()


def read_h5(path: str) -> None:
    with importlib.import_module("h5py").File(path) as file:
        list(file)


def read_gfile(path: str) -> None:
    import tensorflow as tf

    with tf.io.gfile.GFile(path) as file:
        file.read()


def read_csv(path: str) -> None:
    import pandas as pd

    pd.read_csv(path)


WAYS: list[tuple[Callable[[Path], Path], Callable[[str], object]]] = [
    (text, lambda path: Path(path).read_text()),
    (text, lambda path: os.close(os.open(path, os.O_RDONLY))),
    (text, read_gfile),
    (text, lambda path: keras.layers.StringLookup(vocabulary=path)),
    (by_numpy, lambda path: np.load(path, mmap_mode="r")),
    (by_pandas, read_csv),
    (by_sqlite, read_sqlite),
    (h5, read_h5),
    (archive, lambda path: keras.models.load_model(path)),
    (archive, lambda path: keras.models.load_model(path).load_weights(path)),
]


@pytest.mark.parametrize(("made", "act"), WAYS)
def test_a_file_that_is_read_is_seen(
    tmp_path: Path, made: Callable[[Path], Path], act: Callable[[str], object]
) -> None:
    path = made(tmp_path)
    assert read_by(lambda: act(str(path))) == {str(path): sha256(path)}


def test_paths_are_absolute_and_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text(tmp_path)
    assert list(read_by(lambda: [Path("a.txt").read_text(), Path("./a.txt").read_text()])) == [
        f"{tmp_path}/a.txt"
    ]


def test_all_files_of_a_saved_model_count(tmp_path: Path) -> None:
    import tensorflow as tf

    keras.models.load_model(constant(tmp_path / "m.keras", 1)).export(tmp_path / "m", verbose=False)
    found = read_by(lambda: tf.saved_model.load(tmp_path / "m"))
    assert found == {str(path): sha256(path) for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert f"{tmp_path}/m/variables/variables.index" in found


def test_what_is_written_vanishes_or_is_installed_does_not_count(tmp_path: Path) -> None:
    path = text(tmp_path)

    def act() -> None:
        (tmp_path / "log").write_text("begun")
        Path("/proc/self/status").read_text()
        Path(pytest.__file__).read_text()
        Path(provenance.__file__).read_text()
        gone = tmp_path / "gone"
        gone.write_text("x")
        gone.read_text()
        gone.unlink()
        reader = threading.Thread(target=path.read_text)
        reader.start()
        reader.join()

    assert read_by(act) == {}
    # Nor what is read when nobody records.
    path.read_text()


def test_what_is_downloaded_and_then_read_counts(tmp_path: Path) -> None:
    """As it is afterwards, whether it was there before or not."""
    path = tmp_path / "cache"

    def act() -> None:
        if not path.exists():
            Path(f"{path}.part").write_text("fetched")
            os.replace(f"{path}.part", path)
        path.read_text()

    assert read_by(act) == read_by(act) == {str(path): hashlib.sha256(b"fetched").hexdigest()}


def test_threads_that_record_are_told_apart(tmp_path: Path) -> None:
    file = importlib.import_module("h5py").File
    begin, path = file.__init__, h5(tmp_path)
    found: dict[int, dict[str, str]] = {}

    def record(number: int) -> None:
        found[number] = read_by(lambda: read_h5(str(path)) if number % 2 else None)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found[number]) for number in range(8)] == [0, 1] * 4
    assert file.__init__ is begin


def test_a_file_that_is_changed_meanwhile_is_told(tmp_path: Path) -> None:
    path = text(tmp_path)
    with provenance.recorded() as recorder:
        path.read_text()
    path.write_text("another\n")
    with pytest.raises(ModelError, match=rf"{path}: it was changed while .* builder read it; run again"):
        recorder.found(())


def test_modules_count_by_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However Python comes by their code; those that count anyway are left out."""
    names = [module(tmp_path, name, "X = 1\n", monkeypatch) for name in ("read_as_source", "read_compiled")]
    py_compile.compile(f"{tmp_path}/read_compiled.py")
    wanted = {f"{tmp_path}/{name}.py" for name in names}
    with provenance.recorded() as recorder:
        for name in names:
            __import__(name)
    assert {path for path, _ in recorder.found(())} == wanted
    assert recorder.found(wanted) == ()


def test_a_folder_counts_by_its_files_and_models(tmp_path: Path) -> None:
    text(tmp_path)
    before = read_by(lambda: list(tmp_path.glob("*.keras")))
    assert list(before) == [f"{tmp_path}/"]
    assert read_by(lambda: os.listdir(tmp_path)) == before
    for name in ("out", "__pycache__", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "_log").write_text("")
    assert provenance.now(before) == tuple(before.items())
    (tmp_path / "b.keras").write_text("")
    with_file = dict(provenance.now(before))
    assert with_file != before
    (tmp_path / "out" / "saved_model.pb").write_text("")
    assert dict(provenance.now(before)) not in (before, with_file)


def test_what_is_no_file_has_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths = [f"{tmp_path}/pipe", f"{tmp_path}/none", f"{tmp_path}/none/", "/dev/zero"]
    assert dict(provenance.now(paths)) == dict.fromkeys(paths, "")


LOADING = """import os, keras
HERE = os.path.dirname(__file__)
def build():
    return keras.models.load_model(os.path.join(HERE, "m.keras"))
def from_weights():
    x = keras.Input((1,))
    model = keras.Model(x, keras.layers.Dense(1, use_bias=False)(x))
    model.load_weights(os.path.join(HERE, "m.weights.h5"))
    return model
def newest():
    names = sorted(name for name in os.listdir(HERE) if name.endswith(".keras"))
    return keras.models.load_model(os.path.join(HERE, names[-1]))
"""


@pytest.fixture
def rows(night: Night) -> Night:
    """Two shards of four splits together; each row's feature is 1."""
    for shard in range(2):
        ids = np.arange(40) + 40 * shard
        table = pa.table({"id": ids, "x": np.ones(40, np.float32)})
        night.shard(f"{shard}", table, group_rows=20)
    return night


def run(
    night: Night, model: str, *flags: str, announce: Callable[[str], None] = lambda line: None
) -> score.Outcome:
    spec, beam_args = options.parse(night.args(model, "--keys=id", "--split_rows=20", *flags))
    return score.score(spec, beam_args, announce=announce)


def predicted(night: Night, column: int = 1) -> set[float]:
    return set(night.scored().column(column).to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "first", "then"),
    [
        ("build", "m.keras", "m.keras"),
        ("from_weights", "m.weights.h5", "m.weights.h5"),
        ("newest", "1.keras", "2.keras"),
    ],
)
def test_a_model_that_was_trained_again_is_another_run(
    rows: Night, monkeypatch: pytest.MonkeyPatch, function: str, first: str, then: str
) -> None:
    name = module(rows.folder, f"provenance_{function}", LOADING, monkeypatch)
    model = f"{name}:{function}"
    constant(rows.folder / first, 2)
    begun = run(rows, model)
    assert predicted(rows) == {2.0}
    assert f"{rows.folder}/{first}" in rows.manifest()["model"]["reads"]
    again = run(rows, model)
    assert again.already_published
    spec, _ = options.parse(rows.args(model, "--keys=id", "--split_rows=20"))
    assert forecast.look(spec, announce=lambda line: None).run_id == begun.report.run_id
    constant(rows.folder / then, 10)
    said: list[str] = []
    with pytest.raises(OutputConflictError, match=rf"it holds run {begun.report.run_id[:12]}, this is run"):
        run(rows, model, announce=said.append)
    what = f"{rows.folder}/{'' if function == 'newest' else first}"
    assert f"{what}: it is not what the model's builder read for the night at {rows.output}" in said
    replaced = run(rows, model, "--if_exists=replace")
    assert replaced.report.run_id != begun.report.run_id
    assert predicted(rows) == {10.0}
    assert run(rows, model, "--if_exists=replace").already_published


def test_verify_tells_which_file_is_another(rows: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(rows.folder, "provenance_verified", LOADING, monkeypatch)
    path = constant(rows.folder / "m.keras", 2)
    run(rows, f"{name}:build")
    assert verify(str(rows.output), sample_rows=ALL, seed=0, tolerance=Tolerance()).is_right
    before = sha256(path)
    constant(path, 3)
    (finding,) = verify(str(rows.output), sample_rows=ALL, seed=0, tolerance=Tolerance()).findings
    assert f"its builder read {path}, whose SHA-256 is {sha256(path)} now, the night's {before}" in finding


def test_a_worker_whose_builder_reads_another_file_scores_nothing(
    rows: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the weights are the same, as of a model that differs in its vocabulary alone."""
    name = module(rows.folder, "provenance_worker", LOADING, monkeypatch)
    path = constant(rows.folder / "m.keras", 2)
    planned = rows.planned(f"{name}:build", "--keys=id").loaded
    wanted = planned.reads
    reference = ModelReference(f"{name}:build", None, False, planned.digest, reads=wanted)
    assert acquire(reference).reads == wanted == ((str(path), sha256(path)),)
    with zipfile.ZipFile(path, "a") as sink:
        sink.comment = b"another file, the same model"
    forget()
    with pytest.raises(
        ModelError, match=rf"its builder read {path} here, whose SHA-256 is {sha256(path)}; whe"
    ):
        acquire(reference)
    other = replace(reference, reads=(("/elsewhere/m.keras", "0" * 64),))
    assert acquire(other).reads == ((str(path), sha256(path)),)


def interrupted(night: Night, model: str, monkeypatch: pytest.MonkeyPatch, place: Any, function: str) -> None:
    """Run a night that ends at the third call of a function."""
    real, calls = getattr(place, function), list[int]()

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("as if it had died")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, function, failing)
        with pytest.raises(Exception, match="as if it had died"):
            run(night, model, "--direct_num_workers=1")


@pytest.mark.slow
def test_an_interrupted_run_resumes_unless_the_file_is_another(
    rows: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(rows.folder, "provenance_resumed", LOADING, monkeypatch)
    constant(rows.folder / "m.keras", 2)
    interrupted(rows, f"{name}:build", monkeypatch, worker, "score_split")
    report = run(rows, f"{name}:build").report
    assert (report.splits, report.splits_reused) == (4, 2)
    assert predicted(rows) == {2.0}
    constant(rows.folder / "m.keras", 3)
    other = rows.beside("other")
    interrupted(other, f"{name}:build", monkeypatch, worker, "score_split")
    constant(rows.folder / "m.keras", 4)
    report = run(other, f"{name}:build").report
    assert (report.splits, report.splits_reused) == (4, 0)
    assert predicted(other) == {4.0}


@pytest.mark.slow
def test_a_run_that_ended_while_it_was_published_is_finished_by_its_command(
    rows: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but staging knows of it then: the builder is asked before anything is looked for there."""
    name = module(rows.folder, "provenance_publishing", LOADING, monkeypatch)
    constant(rows.folder / "m.keras", 2)
    interrupted(rows, f"{name}:build", monkeypatch, protocol, "_move")
    assert not (rows.output / "_SUCCESS").exists()
    report = run(rows, f"{name}:build").report
    assert (report.splits, report.splits_reused) == (4, 4)
    assert predicted(rows) == {2.0}


@pytest.mark.slow
def test_what_a_challengers_builder_reads_counts_too(rows: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(rows.folder, "provenance_challenger", LOADING, monkeypatch)
    champion = str(constant(rows.folder / "champion.keras", 2))
    constant(rows.folder / "m.keras", 3)
    first = run(rows, champion, f"--challenger={name}:build").report
    assert run(rows, champion, f"--challenger={name}:build").already_published
    constant(rows.folder / "m.keras", 4)
    second = run(rows, champion, f"--challenger={name}:build", "--if_exists=replace").report
    assert first.run_id != second.run_id
    assert (predicted(rows), predicted(rows, 2)) == ({2.0}, {4.0})


@pytest.mark.slow
def test_the_same_command_again_needs_neither_keras_nor_beam(
    rows: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(rows.folder, "provenance_again", LOADING, monkeypatch)
    constant(rows.folder / "m.keras", 2)
    run(rows, f"{name}:build")
    args = rows.args(f"{name}:build", "--keys=id", "--split_rows=20", "--model_sharing=machine")
    program = f"import sys; from job.cli import main as cli; code = cli.main(['score', *{args}]); "
    program += "print(sorted({'apache_beam', 'tensorflow', 'keras'} & set(sys.modules))); sys.exit(code)"
    paths = os.pathsep.join([str(rows.folder), str(Path(__file__).parents[3])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
    assert "already published" in done.stdout + done.stderr
