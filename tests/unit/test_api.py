"""What other programs import: keyword arguments as flags, a night, errors, and imports that cost nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import job
from job import errors, secrets
from job.cli import options
from job.errors import DataError, JobError, SchemaError, UsageError
from tests.support.nights import Night, dense, features, saved

ROOT = Path(__file__).parents[2]
PATHS = {"input": "in", "model": "m.keras", "output": "out"}
FLAGS = ["--input=in", "--model=m.keras", "--output=out"]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, []),
        ({"keys": ["id", "a,b", " c"]}, ['--keys=id,"a,b"," c"']),
        ({"keys": "id,name"}, ["--keys=id,name"]),
        ({"keys": ("id",), "features": []}, ["--keys=id"]),
        ({"input": ["x", Path("y")]}, ["--input=x", "--input=y"]),
        ({"cast": {"hour": "int64", "a b": "float32"}}, ["--cast=hour=int64,a b=float32"]),
        ({"max_psi": "0.25,delay=0.1", "min_rows": 5}, ["--max_psi=0.25,delay=0.1", "--min_rows=5"]),
        ({"max_psi": 0.25, "batch_size": 64}, ["--max_psi=0.25", "--batch_size=64"]),
        ({"trust_model": True, "ds": "2026-11-25"}, ["--trust_model", "--ds=2026-11-25"]),
        ({"trust_model": False, "weights": None, "wait": True}, []),
        ({"no_wait": True}, ["--no_wait"]),
        ({"wait": False}, ["--no_wait"]),
        ({"wait_for_input": "2h", "json": False}, ["--wait_for_input=2h"]),
    ],
)
def test_keyword_arguments_are_the_flags(given: dict[str, Any], flags: list[str]) -> None:
    named = {flag.partition("=")[0] for flag in flags}
    others = [flag for flag in FLAGS if flag.partition("=")[0] not in named]
    assert job.make_spec(**{**PATHS, **given}) == options.parse([*others, *flags])[0]


def test_a_file_gives_the_rest_and_an_argument_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "night.toml"
    path.write_text('input = "in"\nmodel = "m.keras"\noutput = "out"\ntrust_model = true\nkeys = ["id"]\n')
    spec = job.make_spec(config=path, output="elsewhere", trust_model=False)
    assert (spec.inputs, spec.output, spec.keys, spec.trust_model) == (("in",), "elsewhere", ("id",), False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kyes": ["id"]}, r"^unknown flag --kyes; did you mean --keys\?$"),
        ({"batch_size": 0}, r"^--batch_size=0: must be a whole number of rows from 1, or auto$"),
        ({"keys": ["id", "id"]}, r"^--keys: id is listed more than once; list it once$"),
        ({"keys": ["id"], "ignore": ["id"]}, r"^--ignore=id: also in --keys; leave it out of one of them$"),
        ({"model": None}, r"^--model must be given; see scoring-job score --help$"),
        ({"trust_model": "yes"}, r"^--trust_model: 'yes' must be true or false$"),
        ({"keys": {"id": 1}}, r"^--keys: \{'id': 1\} is no value that --keys could have$"),
        ({"runner": "FlinkRunner"}, r"^--runner=FlinkRunner: a flag of the engine; give it as score\(spec, "),
        ({"json": True}, r"^--json: a flag of the command line alone; leave it out here$"),
        ({"notify_url": "https://hooks.example/x"}, r"^--notify_url: a flag of the command line alone; "),
    ],
)
def test_what_is_wrong_is_told_as_on_the_command_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        job.make_spec(**{**PATHS, **given})


def test_a_night_is_scored_once_and_told_to_the_log(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    night.shard("a", features(40))
    night.shard("b", features(40, seed=1, first_id=40))
    model = saved(dense(), night.folder / "m.keras")
    spec = job.make_spec(input=night.input, model=model, output=night.output, keys=["id"])
    with caplog.at_level(logging.INFO, logger="job"):
        first = job.score(spec)
    assert (first.report.rows_scored, first.already_published, first.kept) == (80, False, False)
    # Its own seconds, and not those since this process began.
    assert 0 < first.report.wall_s < 60
    assert isinstance(first, job.Outcome)
    assert isinstance(first.report, job.RunReport)
    assert any(line.startswith("model inputs: f0, f1, f2, f3") for line in caplog.messages)
    night.check_as_embedded(model, "--keys=id")
    told: list[str] = []
    again = job.score(spec, announce=told.append)
    assert (again.already_published, again.report, told) == (True, first.report, [])
    with pytest.raises(job.NoInputError) as missing:
        job.score(job.make_spec(input=night.folder / "no*", model=model, output=night.output))
    assert missing.value.exit_code == 3


def test_the_log_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    secrets.learn(["--s3_secret_access_key=abcdefgh12345678"])
    from job import api

    with caplog.at_level(logging.INFO, logger="job"):
        api.log("asked with abcdefgh12345678, 100 % of it")
    assert caplog.messages == ["asked with ***, 100 % of it"]


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as e:  # noqa: BLE001 - any
        return e


FLATTENED = (
    'Traceback (most recent call last):\n  File "x.py", line 1, in process\njob.errors.SchemaError: a: int64 '
    "[while running 'ScoreParquet/Score a night/Prepare']\n"
)


def test_an_engines_error_is_looked_through_for_ours() -> None:
    own = DataError("2 rows")
    assert job.find_error(own) is own
    assert job.find_error(raised(RuntimeError("failed"), own)) is own
    found = job.find_error(raised(RuntimeError(FLATTENED)))
    assert (type(found), str(found)) == (SchemaError, "a: int64")
    found = job.find_error(raised(RuntimeError("failed"), RuntimeError(FLATTENED)))
    assert isinstance(found, SchemaError)
    assert job.find_error(raised(ValueError("of somebody else"))) is None


def test_every_error_is_public() -> None:
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    kinds = {name for name, kind in classes.items() if issubclass(kind, JobError)}
    assert len(kinds) > 10
    assert kinds <= set(job.__all__)
    assert all(getattr(job, name) is getattr(errors, name) for name in kinds)
    assert set(job.__all__) <= set(dir(job))
    with pytest.raises(AttributeError, match="module 'job' has no attribute 'scoer'"):
        _ = job.scoer  # type: ignore[attr-defined]


@pytest.mark.slow
def test_what_is_imported_is_what_is_asked_for() -> None:
    program = """
import sys
def slow():
    return sorted({"apache_beam", "keras", "numpy", "pyarrow", "tensorflow"} & set(sys.modules))
import job
print(slow(), "job.errors" in sys.modules)
from job import JobError, ScoringSpec, find_error, make_spec, score
print([name for name in slow() if name not in ("numpy", "pyarrow")])
from job import ScoreParquet
print([name for name in slow() if name not in ("numpy", "pyarrow")])
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] False", "[]", "['apache_beam']"], done.stderr
