"""The Flex Template: its parameters are the flags of ``score``, and its entry point turns them into these."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from job.cli import options, parser
from job.errors import JobError
from job.flags import declared
from job.spec import COMPRESSIONS, ScoringSpec
from tests.unit.test_repository import pins

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "dataflow"
PARAMETERS: dict[str, dict[str, Any]] = {
    one["name"]: one for one in json.loads((FOLDER / "metadata.json").read_text())["parameters"]
}
ACTIONS = {action.option_strings[-1].removeprefix("--"): action for action in parser.build()._actions}
DEFAULTS = {flag.name: flag.default_text for flag in declared(ScoringSpec)}
REQUIRED = {"input": "gs://b/in", "model": "gs://b/m.keras", "output": "gs://b/out"}
# Of the launch itself: whoever starts a template does not wait for its job in the template, and everybody
# who may look at the job sees the values of parameters, which a webhook's address must not be.
OF_THE_COMMAND = {"help", "wait", "no_wait", "config", "print_config", "json", "notify_url", "notify_on"}
SHA = "0123456789abcdefABCDEF" * 2 + "0" * 20


def entry_point() -> ModuleType:
    spec = importlib.util.spec_from_file_location("entry_point", FOLDER / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FLAGS = entry_point().flags


def test_every_flag_is_a_parameter_and_the_other_way_round() -> None:
    # The image of the workers is Beam's flag, and a template without it would fail on each launch.
    assert PARAMETERS.keys() == (ACTIONS.keys() - OF_THE_COMMAND) | {"sdk_container_image"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_tells_what_the_flags_help_tells(name: str) -> None:
    told = PARAMETERS[name]
    assert told["label"]
    assert len(told["regexes"]) == 1
    assert bool(told.get("isOptional")) == (name not in {*REQUIRED, "sdk_container_image"})
    if name in ("input", "sdk_container_image"):
        return
    action = ACTIONS[name]
    assert told["helpText"] == action.help
    assert told.get("defaultValue", "") == DEFAULTS[name]
    assert (told["paramType"] == "BOOLEAN") == (action.nargs == 0)
    if told["paramType"] == "ENUM":
        assert "|".join(option["value"] for option in told["enumOptions"]) == action.metavar


VALUES = (
    *(("input", value) for value in ("gs://b/in", "s3://b/in/ds=*/*.parquet", "@gs://b/list.txt", "")),
    *(("model", value) for value in ("gs://b/m.keras", "models.custom_layer:build", "gs://b/m.h5", "")),
    *(("output", value) for value in ("gs://b/out", "s3://b/out", "")),
    *(("model_sha256", value) for value in (SHA, SHA[:-1], SHA[:-1] + "g", "")),
    *(("trust_model", value) for value in ("true", "false", "yes", "1")),
    *(("debug", value) for value in ("true", "false", "no")),
    *(
        ("ds", value)
        for value in (
            "2026-11-25",
            "2028-02-29",
            "2026-13-01",
            "2026-11-32",
            "20261125",
            "2026-1-1",
            "yesterday",
        )
    ),
    *(
        ("timezone", value)
        for value in ("UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "1", "A/", "a b")
    ),
    *(("wait_for_input", value) for value in ("0s", "90m", "2h", "1d", "2", "h", "1.5h", "2H")),
    *(("input_marker", value) for value in ("_SUCCESS", ".done", "a b", "..", ".", "a/b", "/")),
    *(("features", value) for value in ("a", "a,b", "a, b", '"a,b",c', "a,,b", ",a", "a,", '"a"b', " ")),
    *(("ignore", value) for value in ("label", "a, b", "a,,b")),
    *(("keys", value) for value in ("id", "id,day", ",", "id,")),
    *(("prediction_columns", value) for value in ("p", "p,q", "p,,q")),
    *(("cast", value) for value in ("a=float32", "a=float32,b=int64", "a", "=int64", "a=", "a=int64,b")),
    *(("cast", value) for value in ('"a=decimal128(10,2)"', "a=timestamp[us]", "a=int64,")),
    *(("on_bad_row", value) for value in ("reject", "fail", "keep", "Reject")),
    *(("on_null", value) for value in ("reject", "fail", "nan", "fill=0", "fill=", "fill")),
    *(("on_nonfinite", value) for value in ("reject", "keep", "fail", "nan")),
    *(("on_nonfinite_prediction", value) for value in ("reject", "keep", "fail", "x")),
    *(("on_bad_shard", value) for value in ("reject", "fail", "keep")),
    *(("max_rejected", value) for value in ("0", "1", "1.0", "0.01", ".5", "5e-2", "1e-3", "00.1")),
    *(("max_rejected", value) for value in ("1.5", "2", "-1", "1%", "x", "1.", "+1", "1e2")),
    *(("min_rows", value) for value in ("1", "+7", "0064", "0", "-1", "1e3", "")),
    *(("max_rows_change", value) for value in ("0", "0.5", "2", ".5", "5e-1", "-1", "50%", "1.")),
    *(("max_psi", value) for value in ("0.25", "p=0.1", "0.2, p=.1", '"a,b=0.1",c=1e-2', "0", " 1 ", "a =1")),
    *(("max_psi", value) for value in ("x", "p=", "=0.1", "0.2,", "p=x", "-1", "a,b=0.1", '"0.1')),
    *(("challenger", value) for value in ("gs://b/c.keras", "models.custom_layer:build", "s3://b/@next", "")),
    *(("challenger_sha256", value) for value in (SHA, SHA[1:], "")),
    *(("signature", value) for value in ("predict", "a b", "")),
    *(("challenger_signature", value) for value in ("predict", "")),
    *(("challenger_features", value) for value in ("a", "a, b", "a,,b")),
    *(("golden_rtol", value) for value in ("0", "1e-4", "x")),
    *(("golden_atol", value) for value in ("1", ".5", "-1")),
    *(("if_exists", value) for value in ("fail", "keep", "replace", "append")),
    *(("compression", value) for value in (*COMPRESSIONS, "lzo", "ZSTD")),
    *(("batch_size", value) for value in ("auto", "1", "+7", "0064", "0", "-1", "1_000", "many", "1.5")),
    *(
        (name, value)
        for name in ("split_rows", "row_group_rows")
        for value in ("1", "262144", "0", "x", "1e6")
    ),
    *(("model_sharing", value) for value in ("process", "machine", "thread")),
    *(("device", value) for value in ("auto", "cpu", "gpu", "tpu")),
    *(("requester_pays", value) for value in ("my-project",)),
    *(("kms_key", value) for value in ("projects/p/locations/l/keyRings/r/cryptoKeys/k",)),
)


def test_every_parameter_is_in_the_table() -> None:
    of_paths = {"weights", "golden", "challenger_weights"}
    assert {name for name, _ in VALUES} == PARAMETERS.keys() - {"sdk_container_image", *of_paths}


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_the_template_takes_what_the_command_takes(name: str, value: str) -> None:
    """With the values of the others that they need. What is empty is left out where it may be."""
    taken = re.fullmatch(PARAMETERS[name]["regexes"][0], value) is not None
    challenger = {"challenger": "gs://b/c.keras"} if name.startswith("challenger_") else {}
    given = {**REQUIRED, **challenger, name: value}
    flags = [*FLAGS(f"--{one}={text}" for one, text in given.items())]
    try:
        options.parse(flags)
    except JobError:
        assert not taken
    else:
        assert taken or value == ""


@pytest.mark.parametrize(
    "name", ["input", "model", "output", "weights", "golden", "challenger", "challenger_weights"]
)
def test_what_lies_on_a_launchers_disk_is_refused_by_the_template_alone(name: str) -> None:
    for value in ("/in", "in", "file:///in", "m.keras"):
        assert re.fullmatch(PARAMETERS[name]["regexes"][0], value) is None
    assert re.fullmatch(PARAMETERS[name]["regexes"][0], "gs://b/w.weights.h5")


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (["--trust_model=true", "--debug=false"], ["--trust_model"]),
        (["--keys=", "--features=a"], ["--features=a"]),
        # As Google's launcher gives them, in either form.
        (["--runner=DataflowRunner", "--experiments="], ["--runner=DataflowRunner", "--experiments="]),
        (["--input", "gs://b/in", "--streaming"], ["--input", "gs://b/in", "--streaming"]),
        (['--labels={"a": "b"}'], ['--labels={"a": "b"}']),
    ],
)
def test_parameters_become_flags(given: list[str], flags: list[str]) -> None:
    assert [*FLAGS(given)] == flags


def test_the_image_is_made_of_what_is_there() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    copied = [line.split()[1] for line in text.splitlines() if re.match(r"COPY (?!--from)", line)]
    assert len(copied) == 1
    for source in copied:
        assert (ROOT / source).is_file(), source
        assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()
    (started,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)", text)
    assert f"COPY deploy/dataflow/main.py {started}\n" in text


def test_the_launcher_submits_with_the_versions_that_were_tested() -> None:
    ours = pins("requirements-launcher.lock")
    assert ours.items() <= pins("requirements.lock").items()
    assert {
        "google-apitools",
        "google-cloud-dataflow-client",
        "google-auth-httplib2",
        "distributed",
    } <= ours.keys()
    assert pins("requirements-worker.lock").items() <= ours.items()
