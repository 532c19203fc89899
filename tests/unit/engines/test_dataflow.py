"""What is found out about a job for Dataflow before anything slow, without a Dataflow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from job.cli import options
from job.engines import choice
from job.engines.engine import Fit
from job.errors import EngineError, UsageError
from job.launch import submission
from job.shards import inputs
from job.spec import ScoringSpec

IN, MODEL, OUT = "--input=gs://b/in", "--model=gs://b/m.keras", "--output=gs://b/out"
NEEDED = ("--project=p", "--region=r", "--temp_location=gs://b/t", "--sdk_container_image=i")
GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"


def checked(*flags: str) -> ScoringSpec:
    spec, beam_args = options.parse(flags)
    return submission.checked(inputs.absolute(spec), beam_args)


def refusal(*flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        checked("--runner=DataflowRunner", *flags)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("without", range(3))
def test_what_dataflow_needs_is_missed_by_name(without: int) -> None:
    left = [flag for number, flag in enumerate(NEEDED) if number != without]
    name = NEEDED[without].partition("=")[0]
    assert refusal(IN, MODEL, OUT, *left) == f"--runner=DataflowRunner needs {name} as well"


def test_all_that_is_missing_is_named_at_once() -> None:
    assert "needs --project, --region, --temp_location as well" in refusal(IN, MODEL, OUT)


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        (("--input=here/in", MODEL, OUT), "/here/in"),
        ((IN, "--input=here/2", MODEL, OUT), "/here/2"),
        ((IN, "--model=here/m.keras", OUT), "/here/m.keras"),
        ((IN, MODEL, "--output=here/out"), "/here/out"),
        ((IN, "--model=models.custom_layer:build", "--weights=w.weights.h5", OUT), "/w.weights.h5"),
    ],
)
def test_what_lies_on_this_disk_is_refused(
    flags: tuple[str, ...], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.keras").touch()
    monkeypatch.chdir(tmp_path)
    message = refusal(*flags, *NEEDED)
    assert f"{path}: on this machine's disk, which Dataflow's workers cannot see" in message


def test_a_list_may_lie_here_but_not_what_it_names() -> None:
    given = choice.beam_options(["--runner=DataflowRunner"])
    choice.engine(given).check_visible(["gs://b/a", "s3://b/a"])
    with pytest.raises(UsageError, match=r"^/here/a: on this machine's disk"):
        choice.engine(given).check_visible(["gs://b/a", "/here/a"])
    choice.engine(choice.beam_options([])).check_visible(["/here/a"])


@pytest.mark.parametrize("flag", ["--temp_location", "--staging_location"])
def test_dataflows_own_files_go_to_a_bucket(flag: str) -> None:
    others = [one for one in NEEDED if not one.startswith(flag)]
    temp = [] if flag == "--temp_location" else ["--temp_location=gs://b/t"]
    message = refusal(IN, MODEL, OUT, *others, *temp, f"{flag}=/tmp/t")
    assert message == f"{flag}=/tmp/t: must be in a bucket, as in gs://bucket/temp"


def test_workers_need_the_package() -> None:
    assert "would not have this package; give --sdk_container_image" in refusal(IN, MODEL, OUT, *NEEDED[:3])


@pytest.mark.parametrize("flag", ["s3_secret_access_key", "s3_session_token", "azure_connection_string"])
def test_a_secret_that_dataflow_would_show_is_refused_without_being_shown(flag: str) -> None:
    message = refusal(IN, MODEL, OUT, *NEEDED, f"--{flag}=a-secret")
    assert message.startswith(f"--{flag}: Dataflow would keep and show it")
    assert "a-secret" not in message


def test_a_gpu_must_be_asked_for() -> None:
    message = refusal(IN, MODEL, OUT, *NEEDED, "--device=gpu")
    assert "--device=gpu: the workers have no GPU; add --dataflow_service_options='worker_acc" in message


def test_a_gpu_is_not_for_a_process_of_each_core() -> None:
    gpu = ("--device=gpu", f"--dataflow_service_options={GPU}", "--machine_type=g2-standard-32")
    # Nor does it help to share a model within a container.
    for more in ((), ("--model_sharing=machine",), ("--experiments=use_multiple_sdk_containers",)):
        message = refusal(IN, MODEL, OUT, *NEEDED, *gpu, *more)
        assert "all would load the model into the machine's GPU; add --experiments=no_use_multiple" in message


@pytest.mark.parametrize("module", ["google.cloud.dataflow", "google_auth_httplib2", "apitools"])
def test_a_missing_package_is_told_with_what_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=r"not installed: pip install 'scoring-job\[dataflow\]'$") as caught:
        checked(IN, MODEL, OUT, "--runner=DataflowRunner")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("flags", "threads"),
    [
        ((), 1),
        (("--experiments=use_multiple_sdk_containers",), 1),
        (("--number_of_worker_harness_threads=4",), 1),
        (("--experiments=no_use_multiple_sdk_containers",), 0),
        (("--experiments=a", "--experiments=no_use_multiple_sdk_containers"), 0),
    ],
)
def test_tensorflow_gets_the_cores_that_a_process_has(flags: tuple[str, ...], threads: int) -> None:
    given = choice.beam_options(["--runner=DataflowRunner", *flags])
    assert choice.engine(given).fit() == Fit(threads, here=False)
