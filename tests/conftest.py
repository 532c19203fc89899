"""What all tests share: silence from C++, and one night in a temporary folder."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Read when TensorFlow is imported, so set before any test module does that.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import hypothesis
import pytest

from tests.support.nights import Night

UNIT = Path(__file__).parent / "unit"
# Fixtures that start processes.
PROCESSES = {"warm", "empty_store", "night_in_store", "lease_place"}

if TYPE_CHECKING:
    from tests.support.jobs import Zygote
    from tests.support.leases import Clock, Place
    from tests.support.remote_store import Remote
    from tests.support.store_nights import StoreNight


# No test is timed: the machine may be busy with others.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    # Raised inside TensorFlow's own array conversion, with NumPy 2, and no business of ours.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")
    # When a run fails, Beam closes its channels while its own threads still read from them; now and then
    # one of these loses that race after the error has been told.
    for thread in ("read_grpc_client_inputs", "forward_grpc_outputs"):
        ignored = f"ignore:Exception in thread {thread}:pytest.PytestUnhandledThreadExceptionWarning"
        config.addinivalue_line("filterwarnings", ignored)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that of several processes none is left with one at the end.

    A unit test that needs a server or another process is slow, as it says by its fixtures.
    """
    for item in items:
        if UNIT in item.path.parents and PROCESSES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (UNIT in item.path.parents, item.path not in slow))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays; to look through it for garbage took a twelfth of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def as_loud_as_before() -> Iterator[None]:
    """``--debug`` speaks to the whole process and its children; the next test is another command."""
    names = ("TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """A folder for shards, a model and an output, and the job to run on them."""
    return Night(tmp_path)


@pytest.fixture(scope="session")
def december(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of the nights of December: real flights, through a model that has learned from two days."""
    from models import flights, flights_data

    folder = tmp_path_factory.mktemp("december")
    flights_data.write_features(folder / "year")
    for day in ("ds=2013-11-29", "ds=2013-11-30"):
        (folder / "before").mkdir(exist_ok=True)
        (folder / "before" / day).symlink_to(folder / "year" / day)
    flights.train(folder / "flights.keras", features=folder / "before", epochs=1)
    shards, model = f"--input={folder}/year/ds=2013-12-*", f"--model={folder}/flights.keras"
    return [shards, model, "--keys=flight_id", "--batch_size=512"]


@pytest.fixture
def nights(night: Night) -> Night:
    """Four nights of two shards each, and a model."""
    from tests.support.backfill_nights import made

    return made(night)


@pytest.fixture(scope="session")
def warm() -> Iterator[Zygote]:
    """What forks jobs that have imported everything already; they find no store that is not told to them."""
    # Only here: most tests need no process of their own.
    from tests.support.jobs import zygote
    from tests.support.servers import stores

    clients = ("job.storage.s3", "job.storage.gcs", "tests.support.servers.boto3_cache")
    with zygote(stores.environment(None, None), clients) as one:
        yield one


@pytest.fixture(scope="module")
def forks(warm: Zygote) -> Iterator[None]:
    """What a module's tests start as another Python, commands and workers, is a fork of that one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm.python))
        yield


@pytest.fixture(scope="module", params=["s3", "gs"])
def empty_store(request: pytest.FixtureRequest) -> Iterator[Remote]:
    """An S3 or a Cloud Storage with one bucket, which the tests of a module share."""
    # Only here: most tests need no store's client.
    from tests.support.remote_store import remote

    with remote(request.param) as one:
        yield one


@pytest.fixture
def bucket(empty_store: Remote) -> Remote:
    """The same, with nothing counted and nothing wrong."""
    empty_store.way.proxy.reset()
    return empty_store


@pytest.fixture
def top(bucket: Remote) -> str:
    """A folder there that no other test uses."""
    return bucket.path(f"top-{uuid.uuid4().hex}")


@pytest.fixture(scope="module", params=["s3", "gs"])
def night_in_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreNight]:
    """A night's shards and model in either store, which the tests of a module share."""
    from tests.support.store_nights import store_night

    with store_night(request.param, tmp_path_factory.mktemp("night")) as one:
        yield one


@pytest.fixture(scope="module", params=["s3", "gs"])
def lease_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A bucket of either store for outputs with leases."""
    from tests.support.leases import place

    with place(request.param) as one:
        yield one


@pytest.fixture
def place(lease_place: Place) -> Place:
    """An output there that no other test uses."""
    return lease_place.fresh


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that leases go by, which passes when the test says so."""
    from job.commit import lease
    from tests.support.leases import Clock

    one = Clock()
    monkeypatch.setattr(lease, "time", one)
    return one
