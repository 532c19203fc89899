"""One night: shards in, predictions out, and beside them what plain pyarrow and one ``Model.predict`` say."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pytest

    from job.model.loading import LoadedModel
    from job.report.run_report import RunReport
    from job.scoring.task import ScoringTask
    from job.spec import Split

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Planned:
    """What a worker is given, without an engine around it. ``path`` is the written plan."""

    task: ScoringTask
    splits: tuple[Split, ...]
    loaded: LoadedModel
    path: str


@dataclass(frozen=True)
class Night:
    """A folder with ``in/``, ``out/`` and whatever a model is saved as."""

    folder: Path

    @property
    def input(self) -> Path:
        return self.folder / "in"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def shard(self, name: str, table: pa.Table, *, group_rows: int | None = None) -> Path:
        """Write ``in/<name>.parquet``; ``name`` may hold folders."""
        path = self.input / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=group_rows)
        return path

    def args(self, model: str | Path, *flags: str) -> list[str]:
        return [f"--input={self.input}", f"--model={model}", f"--output={self.output}", *flags]

    def score(self, model: str | Path, *flags: str) -> RunReport:
        """Run the job in this process and return its report; errors are raised as they are."""
        from job.cli import options
        from job.launch import score as launch_score

        spec, beam_args = options.parse(self.args(model, *flags))
        outcome = launch_score.score(spec, beam_args, announce=lambda line: None)
        assert not outcome.already_published
        return outcome.report

    def planned(self, model: str | Path, *flags: str) -> Planned:
        """Do what the launcher does before it starts an engine."""
        from job.cli import options
        from job.commit import staging
        from job.launch import preflight
        from job.model import artifact
        from job.model.loading import acquire
        from job.scoring.rejects import RowPolicy
        from job.scoring.task import ScoringTask
        from job.shards import inputs, planner
        from job.spec import Run

        spec, _ = options.parse(self.args(model, *flags))
        shards = inputs.list_shards(spec)
        footers = inputs.read_footers(shards)
        reference = artifact.resolve(spec.model, spec.weights, trusted=spec.trust_model, sha256=None)
        ready = preflight.check(spec, shards, footers, reference, 0)
        splits = planner.plan(
            shards, [footer.group_rows for footer in footers], spec.split_rows, ready.refused
        )
        rows = sum(split.rows for split in splits)
        counts = (len(shards), len(splits), rows)
        scoring = preflight.scoring_text(spec, ready.binding, [field.name for field in ready.predictions])
        shown = (spec.output, reference, ready.signature)
        run = Run("f" * 64, *shown, *counts, spec.max_rejected, False, 1000.0, (), scoring)
        task = ScoringTask(
            run=run,
            binding=ready.binding,
            keys=spec.keys,
            predictions=ready.predictions,
            policy=RowPolicy.of(spec, rows),
            batch_rows=spec.batch_size or 0,
            row_group_rows=spec.row_group_rows,
            compression=spec.compression,
            device=spec.device,
            threads=0,
            weights_digest=ready.weights_digest,
            on_bad_shard=spec.on_bad_shard,
        )
        path = staging.write_plan(spec.output, run.run_id, splits)
        return Planned(task, splits, acquire(reference), path)

    def files(self) -> list[Path]:
        """The visible files of the output, in the order of their shards and rows."""
        return visible(self.output)

    def beside(self, name: str) -> Night:
        """Another night over the same shards."""
        other = Night(self.folder / name)
        if not other.folder.exists():
            other.folder.mkdir()
            other.input.symlink_to(self.input)
        return other

    def check_as_embedded(self, model: str | Path, *flags: str) -> None:
        """Every file is the embedded engine's, to the bit; ``flags`` name a batch size, but no engine."""
        embedded = self.beside("embedded")
        if not embedded.output.exists():
            embedded.score(model, *flags)
        check_same_files(self.files(), embedded.files())

    def scored(self) -> pa.Table:
        """What was published, file by file, with the columns that the files hold themselves."""
        return pa.concat_tables([pq.ParquetFile(path).read() for path in self.files()])

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "_manifest.json").read_text()))


def kept(night: Night) -> Path:
    """Copy a night's folder aside, for :func:`put_back`."""
    return Path(shutil.copytree(night.folder, night.folder.with_name(f"{night.folder.name}-kept")))


def put_back(aside: Path) -> Night:
    """The night where it was scored: whatever a test has done to it is undone."""
    night = Night(aside.with_name(aside.name.removesuffix("-kept")))
    shutil.rmtree(night.folder)
    shutil.copytree(aside, night.folder)
    return night


def check_same_files(ours: Sequence[Path], theirs: Sequence[Path]) -> None:
    """Several files on either side, with the same rows in the same order, to the bit."""
    assert len(ours) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert pq.ParquetFile(one).read().equals(pq.ParquetFile(other).read())


def visible(folder: Path) -> list[Path]:
    """The files that Spark, Hive and Arrow see in a folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(p for p in found if not any(x[0] in "_." for x in p.relative_to(folder).parts))


def run_cli(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run a command line in this process and return exit code, output and error output."""
    from job.cli import main

    capfd.readouterr()
    code = main.main(list(argv))
    out, err = capfd.readouterr()
    return code, out, err


def features(rows: int, width: int = 4, *, seed: int = 0, first_id: int = 0) -> pa.Table:
    """Columns ``id int64`` and ``f0`` … ``float32``; ids count up from ``first_id``."""
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    columns = {f"f{i}": values[:, i] for i in range(width)}
    return pa.table({"id": np.arange(first_id, first_id + rows), **columns})


def matrix(table: pa.Table, names: Sequence[str] = ("f0", "f1", "f2", "f3")) -> Array:
    """The named columns side by side: ``(rows, columns)``."""
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def dense(width: int = 4, units: int = 1, *, name: str = "score", seed: int = 0) -> Any:
    """A small model: ``(rows, width)`` to ``(rows, units)``."""
    import keras

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.layers.Input((width,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(units, name=name),
        ]
    )


def saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def module(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module, make it importable, and return its name."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name
