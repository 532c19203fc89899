"""Object stores for tests, and the environment that leads clients to them and nowhere else.

A server takes a free port itself and says which, so that no two can want the same one. It ends with the
``with`` body, or when this process dies. ``python -m tests.support.servers.stores`` builds gcsd ahead of the
tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "tests" / "support" / "servers" / "gcsd"
BINARY = ROOT / "build" / "gcsd"
BUILD_S = 600
START_S = 60
PROJECT = "test"

_FOREIGN = ("AWS_", "BOTO", "CLOUDSDK_", "GCE_", "GOOGLE_", "NO_GCE_", "STORAGE_EMULATOR_")


@contextlib.contextmanager
def served(command: Sequence[str], env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Run a server that prints its address first; yields the words of that line (one or two)."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = bool(select.select([process.stdout], [], [], START_S)[0])
        words = process.stdout.readline().split() if said else []
        if not words:
            raise RuntimeError(f"{' '.join(command)} did not start within {START_S} s: code {process.poll()}")
        yield words[0], words[-1]
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def s3_server(**settings: str) -> Iterator[str]:
    """The endpoint of an empty S3; ``settings`` are moto's environment variables.

    ``INITIAL_NO_AUTH_ACTION_COUNT="3"`` lets three requests through and then asks IAM (on the same endpoint)
    about each one, signature included.
    """
    env = environment(None, None) | settings
    with served([sys.executable, "-m", "tests.support.servers.s3d"], env) as (endpoint, _):
        _wait(f"{endpoint}/moto-api/")
        yield endpoint


@contextlib.contextmanager
def gcs_server() -> Iterator[str]:
    """The endpoint of an empty Cloud Storage."""
    with served([str(built())], environment(None, None)) as (endpoint, _):
        _wait(f"{endpoint}/_internal/healthcheck")
        yield endpoint


def _wait(url: str) -> None:
    # The port is bound before it is printed, so the kernel holds the request until somebody answers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=START_S) as response:
        response.read()


def go_or_skip(what: str) -> str:
    """Go's command; without it the test is skipped."""
    go = shutil.which("go")
    if go is not None:
        return go
    told = f"{what} needs Go, which is not installed"
    # Where every test counts, a skip would be taken for a pass.
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


def built() -> Path:
    """The gcsd program; skips the test without Go."""
    return compiled(SOURCE, BINARY)


def compiled(source: Path, binary: Path) -> Path:
    """A Go program of the tests, built if missing or older than its source; skips the test without Go."""
    if shutil.which("go") is None and binary.exists():
        return binary
    go = go_or_skip(binary.name)
    binary.parent.mkdir(exist_ok=True)
    with Path(f"{binary}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in source.iterdir())
        if not binary.exists() or binary.stat().st_mtime < newest:
            aside = f"{binary}.new"
            command = [go, "build", "-trimpath", "-o", aside, "."]
            done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=BUILD_S)
            if done.returncode:
                pytest.fail(f"{binary.name} does not build:\n{done.stderr}")
            Path(aside).replace(binary)
    return binary


def environment(endpoint_s3: str | None, endpoint_gcs: str | None) -> dict[str, str]:
    """This process's environment, without its own clouds and proxies, that leads to these stores.

    google-cloud-storage is anonymous by itself where ``STORAGE_EMULATOR_HOST`` is set. Beam asks google-auth
    all the same, which finds gcsd playing the metadata server.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and not name.lower().endswith("_proxy")
    }
    env |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # The files of whoever runs the tests must not matter.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "CLOUDSDK_CONFIG": os.devnull,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
    }
    if endpoint_s3:
        env["AWS_ENDPOINT_URL"] = endpoint_s3
    if endpoint_gcs:
        address = endpoint_gcs.removeprefix("http://")
        env |= {
            "STORAGE_EMULATOR_HOST": endpoint_gcs,
            "GCE_METADATA_HOST": address,
            "GCE_METADATA_IP": address,
        }
    else:
        env["NO_GCE_CHECK"] = "true"
    return env


def apply(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    """Make ``env`` this process's environment, until the test ends."""
    for name in os.environ.keys() - env.keys():
        monkeypatch.delenv(name)
    for name, value in env.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)


if __name__ == "__main__":
    print(built())
