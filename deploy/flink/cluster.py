"""One JobManager and two TaskManagers of two slots on loopback, started and ended as plain processes.

::

    FOLDER/conf/    config.yaml, written at the first start: its ports are kept until the cluster is ended
    FOLDER/run/     NAME.json of each process that was started; worker-PID of each Python worker
    FOLDER/logs/    what each of them says; logs.before/ is of the cluster before
    FOLDER/worker   the command for --environment_type=PROCESS

Starting again starts what is missing, so it also mends a cluster that has lost a process. A process is known
by its number and the time it began: a number alone may be another's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deploy.flink import settings
from deploy.flink.distribution import HOME, ROOT, DeployError, fetched
from job.engines.flink import rest as flink_rest
from job.errors import EngineError

USUAL_PORT: Final = 8081
TASK_MANAGERS: Final = 2
SLOTS_EACH: Final = 2
_START_S: Final = 90.0
_STOP_S: Final = 10.0
_JOB_MANAGER: Final = "jobmanager"
_ENTRYPOINT: Final = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_RUNNER: Final = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_RESULT: Final = "BASH_JAVA_UTILS_EXEC_RESULT:"


@dataclass(frozen=True)
class Cluster:
    """A cluster that keeps everything in ``folder``."""

    folder: Path = HOME

    @property
    def worker(self) -> Path:
        """The command that starts a Python worker, for ``--environment_type=PROCESS``."""
        return self.folder / "worker"

    def up(self, port: int = 0) -> flink_rest.Cluster:
        """Start what is not running, and return the cluster when its slots are there, and no others.

        One that was killed counts until its heartbeat is missed.

        ``port`` is that of the REST server; 0 takes Flink's usual one, or a free one where that is taken.

        Raises:
            DeployError: Java or the distribution is missing, or a process does not start.
        """
        if shutil.which("java") is None:
            raise DeployError("Flink needs Java, which is not in PATH; install a JDK 17 and run again")
        flink = fetched()
        for part in ("conf", "run", "logs", "tmp"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self._alive(_JOB_MANAGER) is None:
                # Without it the rest is of no use, and its port may be another's by now.
                self._end_all()
                self._put_logs_aside()
                self._configure(port)
                self._start(flink, _JOB_MANAGER, ["-Xmx512m", _ENTRYPOINT])
            missing = [name for name in self.task_managers() if self._alive(name) is None]
            resources = self._resources(flink) if missing else ([], [])
            for name in missing:
                jvm, given = resources
                # A new name each time: one that was killed stays registered until its heartbeat is missed.
                new_id = f"{name}-{time.time_ns()}"
                arguments = [*jvm, _RUNNER, *given, "-D", f"taskmanager.resource-id={new_id}"]
                self._start(flink, name, arguments, new_id)
        return self._wait()

    def down(self) -> list[str]:
        """End every process of the cluster and every Python worker; returns their names."""
        if not self.folder.exists():
            return []
        with self._locked():
            return self._end_all()

    def rest(self) -> flink_rest.Cluster:
        """Return the cluster's REST address, whether it runs or not."""
        return flink_rest.Cluster(f"http://127.0.0.1:{settings.read(self.folder)['rest.port']}")

    def task_managers(self) -> list[str]:
        """Return the names of the TaskManagers that belong to it."""
        return [f"taskmanager{number}" for number in range(1, TASK_MANAGERS + 1)]

    def process(self, name: str) -> psutil.Process:
        """Return the running process of that name.

        Raises:
            DeployError: it does not run.
        """
        found = self._alive(name)
        if found is None:
            raise DeployError(f"{name} does not run; see {self.folder / 'logs' / name}.log")
        return found

    def kill(self, name: str) -> None:
        """Kill a process as a machine that fails would, and return when it is gone.

        Raises:
            DeployError: it does not run.
        """
        process = self.process(name)
        process.kill()
        process.wait(_STOP_S)

    def python_workers(self) -> list[psutil.Process]:
        """Return the Python workers that its TaskManagers have started."""
        found = []
        for told in (self.folder / "run").glob("worker-*"):
            with contextlib.suppress(psutil.Error, ValueError):
                process = psutil.Process(int(told.name.rpartition("-")[2]))
                if "job.boot" in process.cmdline():
                    found.append(process)
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _put_logs_aside(self) -> None:
        logs, before = self.folder / "logs", self.folder / "logs.before"
        shutil.rmtree(before, ignore_errors=True)
        logs.rename(before)
        logs.mkdir()

    def _configure(self, port: int) -> None:
        rest_port = port or (USUAL_PORT if is_free(USUAL_PORT) else free_port())
        if not is_free(rest_port):
            raise DeployError(f"port {rest_port} is taken; give another (FLINK_PORT=…), or end what is there")
        settings.write(self.folder, rest_port=rest_port, rpc_port=free_port(), slots=SLOTS_EACH)
        self.worker.write_text(settings.worker_script(self.folder))
        self.worker.chmod(0o755)

    def _resources(self, flink: Path) -> tuple[list[str], list[str]]:
        """Ask Flink's own helper for the JVM's flags and the ``-D`` settings that a TaskManager needs."""
        command = ["java", "-cp", f"{flink}/bin/bash-java-utils.jar:{flink}/lib/*"]
        command += ["org.apache.flink.runtime.util.bash.BashJavaUtils", "GET_TM_RESOURCE_PARAMS"]
        command += ["--configDir", str(self.folder / "conf")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_START_S)
        told = [
            line.split(_RESULT, 1)[1].split() for line in done.stdout.splitlines() if line.startswith(_RESULT)
        ]
        if len(told) != 2:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DeployError(f"Flink does not say how to start a TaskManager: {why}")
        return told[0], told[1]

    def _start(self, flink: Path, name: str, arguments: list[str], flink_id: str = "") -> None:
        at = next(i for i, one in enumerate(arguments) if one.startswith("org.apache.flink."))
        conf = self.folder / "conf"
        command = [
            "java",
            *settings.OPENS,
            f"-Dlog4j.configurationFile={conf / 'log4j.properties'}",
            *arguments[:at],
        ]
        command += ["-cp", f"{flink}/lib/*", arguments[at], "--configDir", str(conf), *arguments[at + 1 :]]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        log = self.folder / "logs" / f"{name}.log"
        # By a shell that ends at once: the process outlives this one, and is nobody's child.
        begun = ["sh", "-c", '"$@" >> "$0" 2>&1 < /dev/null & echo $!', str(log), "setsid", *command]
        # The workers that a TaskManager starts find the job.
        env = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(begun, cwd=self.folder, env=env, stdout=subprocess.PIPE, check=True)
        pid = int(done.stdout)
        try:
            told = {"pid": pid, "began": psutil.Process(pid).create_time(), "id": flink_id}
        except psutil.Error as e:
            raise DeployError(f"{name} ended at once; see {log}") from e
        (self.folder / "run" / f"{name}.json").write_text(json.dumps(told))

    def _alive(self, name: str) -> psutil.Process | None:
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
            told = json.loads((self.folder / "run" / f"{name}.json").read_text())
            process = psutil.Process(told["pid"])
            if process.create_time() == told["began"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _end_all(self) -> list[str]:
        run = self.folder / "run"
        names = [name for name in (*self.task_managers(), _JOB_MANAGER) if self._alive(name) is not None]
        found = [process for name in names if (process := self._alive(name)) is not None]
        workers = {worker.pid: worker for worker in self.python_workers()}
        for process in found:
            with contextlib.suppress(psutil.Error):
                workers |= {child.pid: child for child in process.children(recursive=True)}
        _end([*found, *workers.values()])
        for left in run.glob("*"):
            left.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        return names

    def _wait(self) -> flink_rest.Cluster:
        rest, give_up_s = self.rest(), time.monotonic() + _START_S
        names = (_JOB_MANAGER, *self.task_managers())
        run = self.folder / "run"
        wanted = {json.loads((run / f"{name}.json").read_text())["id"] for name in self.task_managers()}
        while True:
            with contextlib.suppress(EngineError):
                ids = {one.id for one in rest.task_managers()}
                # A TaskManager is known a moment before its slots are.
                if ids == wanted and rest.overview().slots == TASK_MANAGERS * SLOTS_EACH:
                    return rest
            for name in names:
                self.process(name)
            if time.monotonic() > give_up_s:
                raise DeployError(f"not ready within {_START_S:.0f} s; see {self.folder / 'logs'}")
            time.sleep(0.2)


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_S)


def is_free(port: int) -> bool:
    """Say whether a server could listen at the port of 127.0.0.1."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
