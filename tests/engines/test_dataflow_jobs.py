"""Jobs that are really submitted, to a stand-in for Dataflow and from bucket to bucket of a Cloud Storage's.

What Dataflow would have been asked for is read in the recorded request; what its workers would have done is
done with the graph that was staged for them.
"""

from __future__ import annotations

import io
import json
import signal
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from job import storage
from job.commit import lease as commit_lease
from job.errors import EngineError, OutputConflictError, StateUnknownError, UsageError
from tests.support import dataflow_jobs
from tests.support.dataflow_jobs import IMAGE, ROOT, TIMEOUT_S, Dataflow
from tests.support.servers.clients import BUCKET
from tests.support.servers.scripted import Answer, answering
from tests.support.store_nights import StoreNight, store_night

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]

GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
ASKED_FOR = (
    *(f"--dataflow_service_options={GPU}", "--dataflow_service_options=enable_prime"),
    *("--machine_type=g2-standard-8", "--disk_size_gb=60", "--worker_disk_type=pd-ssd"),
    *("--num_workers=3", "--max_num_workers=20", "--autoscaling_algorithm=THROUGHPUT_BASED"),
    *("--network=net", "--subnetwork=regions/europe-west1/subnetworks/s", "--no_use_public_ips"),
    *("--labels=team=search", "--labels=night=2026-01-01", "--job_name=night-1"),
    *("--experiments=no_use_multiple_sdk_containers", "--number_of_worker_harness_threads=2"),
    *("--service_account_email=scorer@my-project.iam.gserviceaccount.com",),
)
CONSOLE = "https://console.cloud.google.com/dataflow/jobs"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreNight]:
    with store_night("gs", tmp_path_factory.mktemp("night")) as one:
        yield one


@pytest.fixture(scope="module")
def shared(night: StoreNight, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataflow]:
    with dataflow_jobs.dataflow(tmp_path_factory.mktemp("dataflow"), night) as one:
        yield one


@pytest.fixture
def service(shared: Dataflow) -> Dataflow:
    shared.reset()
    return shared


def the_job(service: Dataflow) -> tuple[str, Any]:
    ((number, content),) = service.requests("create").items()
    return number, dataflow_jobs.created(content)


def lease(service: Dataflow, name: str) -> Any:
    return json.loads(service.night.files(name)["_staging/lease"])


def check_pool(job: Any) -> None:
    """The machines are as ``ASKED_FOR`` says."""
    (pool,) = job.environment.worker_pools
    (container,) = pool.sdk_harness_container_images
    assert pool.worker_harness_container_image == container.container_image == IMAGE
    # One process a machine, which scores two bundles at a time. It is the experiment that Dataflow goes by:
    # Beam asks for single cores in any case.
    experiments = list(job.environment.experiments)
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments
    assert pool.num_threads_per_worker == 2
    assert (pool.machine_type, pool.disk_size_gb, pool.disk_type) == ("g2-standard-8", 60, "pd-ssd")
    assert (pool.network, pool.subnetwork) == ("net", "regions/europe-west1/subnetworks/s")
    assert pool.ip_configuration.name == "WORKER_IP_PRIVATE"
    scaling = pool.autoscaling_settings
    assert (pool.num_workers, scaling.max_num_workers) == (3, 20)
    assert scaling.algorithm.name == "AUTOSCALING_ALGORITHM_BASIC"


def test_a_job_that_is_not_waited_for_publishes_the_night_of_the_embedded_engine(service: Dataflow) -> None:
    night = service.night
    with answering(lambda _: Answer()) as hook:
        watched = ("--json", f"--notify_url={hook.endpoint}/secret-path")
        with service.start("alone", "--no_wait", *watched, *ASKED_FOR) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    number, job = the_job(service)
    link = f"{CONSOLE}/europe-west1/{number}?project=my-project"
    assert f"as job {number} of DataflowRunner, see {link}; the night is at" in err
    line = json.loads(out)
    assert (line["status"], line["rows"]) == ("submitted", None)
    assert line["job"] == {"engine": "DataflowRunner", "id": number, "link": link}
    (posted,) = hook.asked
    assert line.items() < json.loads(posted.body).items()

    assert (job.name, dict(job.labels)) == ("night-1", {"team": "search", "night": "2026-01-01"})
    assert job.environment.service_account_email == "scorer@my-project.iam.gserviceaccount.com"
    assert list(job.environment.service_options) == [GPU, "enable_prime"]
    check_pool(job)
    staged = night.bucket.files("temp/night-1")
    assert any(name.endswith("/pipeline.pb") for name in staged)
    for content in (*service.requests("create").values(), *staged.values(), out.encode(), err.encode()):
        # Of the environment of the command.
        assert b"testing-secret" not in content
        assert b"secret-path" not in content

    # Nobody renews the lease. It is the job's all the same.
    assert "_SUCCESS" not in night.files("alone")
    with pytest.raises(OutputConflictError) as refused:
        night.score("alone", "--batch_size=32")
    for told in (f"was submitted as job {number} of DataflowRunner, see {link};", f"--release_job={number}"):
        assert told in str(refused.value)

    ran = service.run(job)
    assert ran.returncode == 0, ran.stderr
    # Nothing is left in staging, and so no lease.
    published = night.check("alone")
    night.score("embedded")
    here = night.check("embedded")
    rows = {path for path in here if path.endswith((".parquet", ".rejected"))}
    assert len(rows) > 3
    assert {path: published[path] for path in rows} == {path: here[path] for path in rows}
    assert service.score("alone", "--no_wait").already_published


def test_ctrl_c_cancels_the_job_and_the_same_command_goes_on_elsewhere(service: Dataflow) -> None:
    flags = (f"--setup_file={ROOT}/setup.py", f"--staging_location=gs://{BUCKET}/staged")
    with service.start("stopped", *flags) as process:
        assert process.stderr is not None
        # Beam makes the package with what it finds, which may say something before that.
        assert any("was submitted as job" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, ""), err
    number, job = the_job(service)
    # One process a core, which is why TensorFlow has one thread in each.
    assert "no_use_multiple_sdk_containers" not in job.environment.experiments
    (container,) = job.environment.worker_pools[0].sdk_harness_container_images
    assert container.use_single_core_per_container
    assert [*service.requests("update")] == [number]
    assert f"cancelling job {number} of DataflowRunner" in err
    assert err.strip().splitlines()[-2].endswith("is CANCELLED")
    # The package goes to the workers, where no image has it.
    staged = service.night.bucket.files("staged/")
    (package,) = [content for name, content in staged.items() if name.endswith("/workflow.tar.gz")]
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"job/scoring/worker.py", "job/py.typed", "pyproject.toml"} <= names
    # The dead command's lease is free on its own machine.
    service.night.score("stopped")
    service.night.check("stopped")


def test_a_job_that_is_waited_for_ends_with_its_report(service: Dataflow) -> None:
    with service.start("waited") as process:
        assert process.stderr is not None
        # The lease is the command's, which renews it: a job of Dataflow publishes under it.
        assert any("was submitted as job" in line for line in process.stderr)
        ran = service.run(the_job(service)[1])
        assert ran.returncode == 0, ran.stderr
        assert "_SUCCESS" in service.night.files("waited")
        assert process.poll() is None
        service.tell(state="DONE")
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert " scored of " in out
    service.night.check("waited")


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        # What Dataflow says and what the bucket holds are two things.
        ("DONE", StateUnknownError, "the engine ended, and run .* is not published; run again to resume"),
        ("CANCELLED", EngineError, "^job .* ended as CANCELLED, and Dataflow gives no reason; run again"),
    ],
)
def test_a_job_that_ends_without_a_night(
    service: Dataflow, state: str, kind: type[Exception], told: str
) -> None:
    service.tell(state=state)
    with pytest.raises(kind, match=told) as ended:
        service.score("ended")
    number, _ = the_job(service)
    if state != "DONE":
        link = f"{CONSOLE}/europe-west1/{number}?project=my-project"
        assert str(ended.value).startswith(f"job {number} of DataflowRunner, see {link} ended as ")
        assert ended.value.exit_code == 7  # type: ignore[attr-defined]


def test_a_job_that_failed_makes_its_output_free_and_one_that_is_waited_for_is_told(
    service: Dataflow,
) -> None:
    first = service.score("failed", "--no_wait").job
    assert first is not None
    other = service.score("other", "--no_wait")
    with pytest.raises(StateUnknownError, match=r"was not waited for: there is no report yet"):
        _ = other.report
    # Jobs of one run for two outputs, each with a name of its own.
    names = {dataflow_jobs.created(content).name for content in service.requests("create").values()}
    assert len(names) == 2
    assert {name.rpartition("-")[0] for name in names} == {f"scoring-job-{first.run[:12]}"}
    token = lease(service, "failed")["token"]
    service.tell(state="FAILED", error="Workflow failed. Causes: there is no more g2-standard-8.")
    with pytest.raises(EngineError, match=r"Causes: there is no more g2-standard-8\.") as failed:
        service.score("failed", "--job_name=second")
    assert failed.value.exit_code == 7
    assert "\n" not in str(failed.value)
    assert f"{first} has ended without publishing: its output is free" in service.said
    # The first one's publisher would learn it from the lease.
    with pytest.raises(StateUnknownError, match="it is gone"):
        commit_lease.check(service.night.path("failed/_staging/lease"), token)


def test_what_dataflow_refuses_is_one_line_and_takes_no_lease(service: Dataflow) -> None:
    service.tell(denied="the caller does not have permission dataflow.jobs.create")
    with pytest.raises(
        EngineError, match=r"the caller does not have permission dataflow\.jobs\.create"
    ) as told:
        service.score("denied", "--no_wait")
    assert "\n" not in str(told.value)
    assert "_staging/lease" not in service.night.files("denied")


def test_a_second_job_of_a_name_is_refused(service: Dataflow) -> None:
    service.score("one", "--no_wait", "--job_name=same")
    with pytest.raises(EngineError, match="already active job named same"):
        service.score("two", "--no_wait", "--job_name=same")


def test_a_bucket_that_is_not_there_is_told_before_anything_is_done(service: Dataflow) -> None:
    with pytest.raises(EngineError) as told:
        service.score("nowhere", "--temp_location=gs://no-such-bucket/t")
    line = "--temp_location=gs://no-such-bucket/t: gs://no-such-bucket/t/_: there is no such bucket"
    assert str(told.value).startswith(line)
    assert service.night.files("nowhere") == {}


def test_what_a_list_names_on_this_disk_is_refused(service: Dataflow) -> None:
    listed = service.night.folder / "list.txt"
    listed.write_text(f"{service.night.path('in')}\n{service.night.folder}/shard.parquet\n")
    args = [one for one in service.args("listed") if not one.startswith("--input=")]
    from job.cli import options
    from job.launch import score

    spec, beam_args = options.parse([f"--input=@{listed}", *args])
    with pytest.raises(UsageError, match=r"shard\.parquet: on this machine's disk"):
        score.score(spec, beam_args, announce=service.said.append)


def test_the_launcher_of_a_flex_template_gets_the_job_written_down(service: Dataflow) -> None:
    written = f"gs://{BUCKET}/launches/job_object"
    # No GPU is needed where the graph is made.
    gpu = (
        f"--dataflow_service_options={GPU}",
        "--experiments=no_use_multiple_sdk_containers",
        "--device=gpu",
    )
    job = service.score("flex", f"--template_location={written}", "--job_name=flexible", *gpu).job
    assert job is not None
    assert (job.id, job.link) == ("flexible", f"{CONSOLE}?project=my-project")
    assert service.requests("create") == {}
    assert json.loads(storage.read_bytes(written) or b"")["name"] == "flexible"
    assert lease(service, "flex")["job"]["id"] == "flexible"
    # Nobody knows its number, so that nobody can ask after it.
    with pytest.raises(OutputConflictError, match="--release_job=flexible"):
        service.night.score("flex")
