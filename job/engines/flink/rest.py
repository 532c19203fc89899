"""A client of a Flink cluster's REST API: its version, slots and jobs, and cancelling a job."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

from job.errors import EngineError, one_line

ANSWER_S: Final = 10.0

# Beam's names for a cluster that the job server finds, or starts within itself.
NO_ADDRESS: Final = ("[auto]", "[local]")
_ENDED: Final = frozenset({"FINISHED", "FAILED", "CANCELED", "SUSPENDED"})
# Keys of clusters that start TaskManagers when a job needs them.
_GROWS: Final = ("kubernetes.cluster-id", "yarn.application.name", "yarn.application.id")


@dataclass(frozen=True)
class TaskManager:
    """One TaskManager; ``cores`` is the number of its machine's, which other TaskManagers may use too."""

    id: str
    host: str
    slots: int
    free_slots: int
    cores: int


@dataclass(frozen=True)
class Job:
    """A job; ``id`` is Flink's, ``name`` is Beam's ``--job_name``."""

    id: str
    name: str
    state: str

    @property
    def has_ended(self) -> bool:
        """Whether it has ended; it then holds no slots."""
        return self.state in _ENDED


@dataclass(frozen=True)
class Overview:
    """The version and the slots of a cluster at one moment."""

    version: str
    task_managers: int
    slots: int
    free_slots: int

    @property
    def minor(self) -> str:
        """The version's first two numbers, which Beam's job server must match."""
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True)
class Cluster:
    """The cluster at a REST address such as ``http://host:8081``.

    Every method raises ``EngineError`` if nothing answers, or what answers is not Flink.
    """

    url: str

    @classmethod
    def at(cls, master: str) -> Cluster | None:
        """Return the cluster that ``--flink_master`` names; ``None`` if only the job server knows it."""
        master = master.strip().rstrip("/")
        if master in NO_ADDRESS:
            return None
        return cls(master if re.match("https?://", master) else f"http://{master}")

    def overview(self) -> Overview:
        """Return the version and the slots."""
        told = self._get("overview")
        try:
            slots = int(told["slots-total"]), int(told["slots-available"])
            return Overview(str(told["flink-version"]), int(told["taskmanagers"]), *slots)
        except (KeyError, TypeError, ValueError) as e:
            raise self._not_flink() from e

    def task_managers(self) -> list[TaskManager]:
        """Return the TaskManagers."""
        return [
            TaskManager(
                id=str(one["id"]),
                # As in pekko.tcp://flink@10.0.0.7:44021/user/rpc/taskmanager_0
                host=str(one["path"]).partition("@")[2].partition("/")[0].rpartition(":")[0],
                slots=int(one["slotsNumber"]),
                free_slots=int(one["freeSlots"]),
                cores=int(one["hardware"]["cpuCores"]),
            )
            for one in self._get("taskmanagers")["taskmanagers"]
        ]

    def config(self) -> dict[str, str]:
        """Return the JobManager's configuration."""
        return {str(one["key"]): str(one["value"]) for one in self._get("jobmanager/config")}

    def grows(self) -> bool:
        """Say whether the cluster starts TaskManagers when a job needs them."""
        return not self.config().keys().isdisjoint(_GROWS)

    def jobs(self) -> list[Job]:
        """Return the running jobs and those that ended recently."""
        found = self._get("jobs/overview")["jobs"]
        return [Job(str(one["jid"]), str(one["name"]), str(one["state"])) for one in found]

    def cancel(self, job_id: str) -> None:
        """Request that a job is cancelled; its slots become free seconds later."""
        self._ask(f"jobs/{urllib.parse.quote(job_id)}?mode=cancel", "PATCH")

    def _get(self, path: str) -> Any:
        try:
            return json.loads(self._ask(path, "GET"))
        except ValueError as e:
            raise self._not_flink() from e

    def _ask(self, path: str, method: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as e:
            raise EngineError(
                f"--flink_master={self.url}: {method} {path} was answered {e.code} {e.reason}; give the "
                f"address of Flink's REST server"
            ) from e
        except (OSError, ValueError, http.client.HTTPException) as e:
            inner = e.reason if isinstance(e, urllib.error.URLError) else e
            why = one_line(inner) if isinstance(inner, BaseException) else inner
            raise EngineError(
                f"--flink_master={self.url}: no answer ({why}); start the cluster, or correct the "
                f"address: that of Flink's REST server, HOST:8081"
            ) from e

    def _not_flink(self) -> EngineError:
        return EngineError(
            f"--flink_master={self.url}: what answers there is not Flink's REST server; correct the address"
        )
