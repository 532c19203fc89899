"""Checks of the engine that a night is to run on, made from the launching machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement

from job import environment
from job.engines import choice, embedded
from job.engines.engine import Check, cores
from job.engines.flink import checks
from job.errors import EngineError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

ANSWER_S: Final = 5.0
_DISTRIBUTION: Final = "scoring-job"
_ENVIRONMENTS: Final = {"EXTERNAL": "worker pool", "PROCESS": "workers' command"}


def this_machine(extras: Sequence[str]) -> Check:
    """Return the check of this machine: its cores, and whether the installed versions are those required."""
    told = f"{cores()} cores; {', '.join(' '.join(one) for one in environment.versions())}"
    try:
        wrong = _unmet(extras)
    except PackageNotFoundError:
        # A checkout that is not installed has no list of requirements.
        return Check("this machine", None, f"{told}; {_DISTRIBUTION} is not installed", "pip install it")
    if wrong:
        fix = f"pip install '{_DISTRIBUTION}{'[' + ','.join(extras) + ']' if extras else ''}'"
        return Check("this machine", False, f"{told}; but {', '.join(wrong)}", fix)
    return Check("this machine", True, told)


def _unmet(extras: Sequence[str]) -> list[str]:
    unmet = []
    for line in requires(_DISTRIBUTION) or ():
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = ""
        if not found or not wanted.specifier.contains(found, prereleases=True):
            unmet.append(f"{wanted.name} is {found or 'not installed'}, and must be {wanted.specifier}")
    return unmet


def runner(options: PipelineOptions | None) -> Check:
    """Return the check that names the engine; ``None`` stands for the default one."""
    if options is None:
        told = f"{embedded.NAME}, {cores()} threads of this process"
        return Check("runner", True, told)
    return Check("runner", True, choice.engine(options).described())


def calls(options: PipelineOptions) -> dict[str, Callable[[], list[Check]]]:
    """Return the functions that check this engine, by the name of the check; each may take seconds."""
    engine = choice.engine(options)
    found: dict[str, Callable[[], list[Check]]] = {engine.title: engine.checks} if engine.title else {}
    endpoint = _portable(options).job_endpoint
    if endpoint and endpoint != "embed":
        found["job endpoint"] = lambda: [_endpoint(endpoint)]
    kind = _portable(options).environment_type
    if kind and kind != "LOOPBACK":
        found[_ENVIRONMENTS.get(kind, "workers' environment")] = lambda: [_environment(options, kind)]
    return found


def temporary_places(options: PipelineOptions) -> list[tuple[str, str]]:
    """Return the flags that name a place for the engine's own files, with their values."""
    given = options.get_all_options(drop_default=True)
    return [
        (f"--{name}", str(given[name])) for name in ("temp_location", "staging_location") if name in given
    ]


def log_of(options: PipelineOptions | None) -> str:
    """Return where the workers' log is, for messages."""
    if options is None or not (config := _portable(options).environment_config):
        return "the log of the engine and of its workers"
    if _portable(options).environment_type == "EXTERNAL":
        return f"the log of the worker pool at {config}, whose `python` must import apache_beam"
    return "the log of the engine and of its workers"


def _portable(options: PipelineOptions) -> Any:
    from apache_beam.options.pipeline_options import PortableOptions

    return options.view_as(PortableOptions)


def _endpoint(endpoint: str) -> Check:
    check_grpc(endpoint, ANSWER_S)
    return Check("job endpoint", True, f"{endpoint} answers")


def _environment(options: PipelineOptions, kind: str) -> Check:
    config = _portable(options).environment_config or ""
    # An address that the engine uses is on its workers' machine, which may not be the job server's.
    where = choice.engine(options).workers_beside()
    here = not where or is_here(where)
    if kind == "EXTERNAL":
        return _pool(checks.pool_address(config), here=here)
    if kind == "PROCESS":
        return _command(config, here=here)
    told = f"--environment_type={kind}: the engine starts its workers itself"
    return Check("workers' environment", None, told, "see below what they answer")


def _pool(address: str, *, here: bool) -> Check:
    name = _ENVIRONMENTS["EXTERNAL"]
    if not here and is_here(address):
        told = f"{address} is beside each of the engine's workers, and not here"
        return Check(name, None, told, "see below what they answer")
    check_grpc(address, ANSWER_S)
    if not is_here(address):
        return Check(
            name, True, f"{address} answers; whether it is alone on its port is seen only on its machine"
        )
    listening = listeners(split(address)[1])
    if len(listening) > 1:
        told = f"{address} is shared by {', '.join(listening)}; which of them gets a job is left to chance"
        return Check(name, False, told, "end all but one, or give each a port")
    return Check(name, True, f"{address} answers, {', '.join(listening)} alone")


def _command(config: str, *, here: bool) -> Check:
    name = _ENVIRONMENTS["PROCESS"]
    try:
        command = str(json.loads(config)["command"]) if config.startswith("{") else config
    except (ValueError, KeyError) as e:
        raise EngineError(f"--environment_config={config}: no JSON with a command; correct it") from e
    if not here:
        told = f"{command} is started on the engine's machines"
        return Check(name, None, told, "see below what they answer")
    program = command if os.path.isabs(command) else shutil.which(command)
    if not program or not os.access(program, os.X_OK):
        raise EngineError(f"--environment_config: {command} cannot be started here; correct the path")
    return Check(name, True, f"{program} can be started")


# Does a gRPC server answer at a port, and which processes of this machine listen there? gRPC is HTTP/2.

_LISTENING: Final = "0A"
# RFC 9113: what a client sends first, then an empty SETTINGS frame; the type of the server's first frame.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS: Final = 4
_HEADER_BYTES: Final = 9


def split(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        EngineError: it is not of the form HOST:PORT.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        raise EngineError(f"{address} is no address; give HOST:PORT")
    return host.strip("[]"), int(port)


def is_here(address: str) -> bool:
    """Say whether an address is a loopback address of this machine."""
    with suppress(OSError, EngineError):
        found = socket.getaddrinfo(*split(address), type=socket.SOCK_STREAM)
        return all(str(one[4][0]).startswith("127.") or one[4][0] == "::1" for one in found)
    return False


def check_grpc(address: str, limit_s: float) -> None:
    """Exchange the first frames of HTTP/2.

    Raises:
        EngineError: nothing listens, or the server does not answer, or it does not speak HTTP/2.
    """
    try:
        with socket.create_connection(split(address), limit_s) as one:
            one.settimeout(limit_s)
            one.sendall(_PREFACE)
            said = b""
            while len(said) < _HEADER_BYTES and (more := one.recv(_HEADER_BYTES - len(said))):
                said += more
    except TimeoutError as e:
        raise EngineError(
            f"{address}: somebody listens, and says nothing within {limit_s:.0f} s; restart what hangs there"
        ) from e
    except OSError as e:
        raise EngineError(
            f"{address}: nobody answers ({e.strerror or e}); start it, or correct the address"
        ) from e
    if len(said) < _HEADER_BYTES or said[3] != _SETTINGS:
        raise EngineError(f"{address}: who listens there does not speak gRPC; correct the address")


def listeners(port: int) -> list[str]:
    """Return the processes that listen on a port of this machine, as texts.

    A process of another user is named by its socket. Processes that share the port by ``SO_REUSEPORT`` are
    all listed.
    """
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(fields[9])
    owners = {inode: f"a process of another user (socket {inode})" for inode in sockets}
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
            if inode in owners:
                owners[inode] = f"process {link.parts[2]}"
    return sorted(set(owners.values()))
