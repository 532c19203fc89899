"""The JSON Schema of a configuration says what the job says, by a validator of other people's.

It is Airflow's, and lives in Airflow's environment.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from docs import flags
from job.cli import options
from job.errors import UsageError
from tests.support.servers import airflow

BASE = "input = 'a'\nmodel = 'm.keras'\noutput = 'o'\n"
SHA = "0123456789abcdef" * 4
TAKEN = [
    "",
    "keys = 'id'",
    "keys = ['id', 'a,b', ' x']",
    "keys = []",
    "cast = {price = 'float32', 'a,b' = 'decimal128(10,2)'}",
    "cast = ['a=int8']",
    "cast = 'a=int8, b=timestamp[us]'",
    "batch_size = 4096",
    "batch_size = 'auto'",
    "batch_size = '7'",
    "max_rejected = 0.5",
    "max_rejected = 1e-3",
    "max_rejected = 0",
    "max_rejected = '.5'",
    "min_rows = 5",
    "max_rows_change = 2.5",
    "max_psi = 0.25",
    "max_psi = 'delay=0.1,0.2'",
    "golden_rtol = 1e-4",
    "trust_model = true",
    "trust_model = false",
    "wait = true",
    "no_wait = true",
    "ds = 2026-11-25",
    "ds = '2026-11-25'",
    "timezone = 'Europe/Berlin'",
    "wait_for_input = '2h'",
    "input_marker = '_SUCCESS'",
    "on_null = 'nan'",
    "on_null = 'fill=0'",
    "on_bad_shard = 'reject'",
    f"model_sha256 = '{SHA}'",
    "compression = 'none'",
    "device = 'gpu'",
    "notify_on = 'failure'",
    "[engine]\nrunner = 'FlinkRunner'\nparallelism = 4",
    "[engine]\nstreaming = true\nexperiments = ['a', 'b=c']",
]
REFUSED = [
    "bach_size = 1",
    "print_config = true",
    "debug = true",
    "config = 'x'",
    "start = 2026-11-25",
    "keys = ['id', ['x']]",
    "keys = ['id', 'id']",
    "keys = {}",
    "keys = ''",
    "features = 'a,,b'",
    "cast = {a = true}",
    "cast = ['a']",
    "cast = 'a'",
    "batch_size = 0",
    "batch_size = true",
    "batch_size = 1.5",
    "batch_size = 'many'",
    "max_rejected = 1.5",
    "max_rejected = -0.1",
    "min_rows = 0",
    "max_psi = ['p=1']",
    "max_psi = 'p='",
    "golden_rtol = -1",
    "trust_model = 'yes'",
    "ds = '20261125'",
    "wait_for_input = 5",
    "wait_for_input = '2 h'",
    "input_marker = 'a/b'",
    "on_null = 'zero'",
    "on_null = 'fill='",
    "on_bad_row = 'keep'",
    f"model_sha256 = '{SHA[1:]}'",
    "compression = 'zip'",
    "signature = ''",
    "engine = 'flink'",
    "[engine]\nrunner = {}",
]
VALIDATES = """\
import json, sys, jsonschema
schema, configurations = json.load(sys.stdin)
jsonschema.Draft7Validator.check_schema(schema)
validator = jsonschema.Draft7Validator(schema)
print(json.dumps([validator.is_valid(one) for one in configurations]))
"""


@pytest.fixture(scope="module")
def valid() -> dict[str, bool]:
    """What the validator says of each configuration. To it a date is a text, as to editors."""
    every = {text: tomllib.loads(BASE + text) for text in (*TAKEN, *REFUSED)}
    done = subprocess.run(
        [airflow.built(), "-c", VALIDATES],
        input=json.dumps([json.loads(flags.schema()), [*every.values()]], default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(every, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("text", TAKEN)
def test_what_the_job_takes_is_valid(valid: dict[str, bool], tmp_path: Path, text: str) -> None:
    path = tmp_path / "night.toml"
    path.write_text(BASE + text)
    assert options.parse([f"--config={path}"])
    assert valid[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_the_job_refuses_is_not(valid: dict[str, bool], tmp_path: Path, text: str) -> None:
    path = tmp_path / "night.toml"
    path.write_text(BASE + text)
    with pytest.raises(UsageError):
        options.parse([f"--config={path}"])
    assert not valid[text]
