"""What programs are told of the end of a command: the JSON line (``--json``) and the message to a webhook.

docs/notifications.md describes the fields. A command notes each night that it scores (:func:`night`). At the
end the command line calls :func:`tell`, whatever has happened, so that a wrong flag or a Ctrl-C is reported
too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from job import errors, secrets
from job.errors import JobError, UsageError
from job.report import webhook
from job.terminal import console, signals

if TYPE_CHECKING:
    from job.commit.handover import Job
    from job.report.run_report import RunReport

VERSION: Final = 1
# From the best to the worst.
STATUSES: Final = ("already_published", "published", "submitted", "interrupted", "failed")
NOTIFY_ON: Final = ("always", "failure")


@dataclass
class Night:
    """One night of a command. ``None`` is unknown: a night that failed early has no run yet."""

    output: str | None = None
    ds: str | None = None
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    status: str = "failed"
    exit_code: int = 1
    run_id: str | None = None
    rows: int | None = None
    rejected: int | None = None
    loads: int | None = None
    job: dict[str, str] | None = None
    error: str | None = None
    load_ids: tuple[str, ...] = ()

    def ends(self, report: RunReport | None, job: Job | None, *, already_published: bool) -> None:
        """Set the fields of a night that succeeded, from its report or from the job that was submitted."""
        self.exit_code = 0
        if job is not None:
            self.status, self.run_id = "submitted", job.run
            self.job = {"engine": job.engine, "id": job.id, "link": job.link}
        if report is not None:
            self.status = "already_published" if already_published else "published"
            self.run_id, self.output = report.run_id, report.output
            self.rows, self.rejected = report.rows_scored, report.rows_rejected
            self.load_ids = tuple(one.load for one in report.loads)
            self.loads = len(self.load_ids)

    def fails(self, error: BaseException) -> None:
        """Set the fields of a night that failed."""
        self.exit_code, self.error = code_of(error), line_of(error)
        self.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"

    def _seconds(self) -> float | None:
        if self.started_unix_s is None or self.ended_unix_s is None:
            return None
        return round(max(0.0, self.ended_unix_s - self.started_unix_s), 3)

    def fields(self) -> dict[str, Any]:
        """Return its fields in the JSON line."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "ds": self.ds,
            "output": None if self.output is None else secrets.scrub(self.output),
            "run_id": self.run_id,
            "rows": self.rows,
            "rejected": self.rejected,
            "seconds": self._seconds(),
            "loads": self.loads,
            "job": self.job,
            "started": _utc(self.started_unix_s),
            "ended": _utc(self.ended_unix_s),
            "error": None if self.error is None else secrets.scrub(self.error),
        }


@dataclass
class Asked:
    """Who is to be notified: the reader of standard output, and a webhook.

    Attributes:
        json: whether ``--json`` is given.
        url: the webhook's address; empty if there is none.
        on: the value of ``--notify_on``.
    """

    json: bool
    url: str = field(repr=False)
    on: str

    @classmethod
    def of(cls, args: Sequence[str], environment: Mapping[str, str]) -> Asked:
        """Return what the flags ask for, even if other flags are wrong; a wrong address counts as none."""
        ours = list(args[: args.index("--")] if "--" in args else args)
        url = _last(ours, "notify_url") or environment.get(webhook.URL_IN_ENVIRONMENT, "")
        try:
            webhook.check(url, "--notify_url")
        except UsageError:
            url = ""
        as_json = any(arg.partition("=")[0] == "--json" for arg in ours)
        return cls(as_json, url, _last(ours, "notify_on") or NOTIFY_ON[0])


@dataclass(frozen=True)
class Ended:
    """A command whose end is reported.

    Attributes:
        command: its name.
        args: its arguments.
        asked: who is to be notified.
        started_unix_s: when its process began.
        nights: the nights that it has begun.
        runs: the ids of its runs by their outputs, as far as they are known.
    """

    command: str
    args: tuple[str, ...]
    asked: Asked
    started_unix_s: float
    nights: list[Night] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)

    def fields(self, error: BaseException | None, code: int, now_unix_s: float) -> dict[str, Any]:
        """Return the fields of the JSON line: for ``backfill`` the sums of all nights, and each night."""
        for night in self.nights:
            night.run_id = night.run_id or self.runs.get(night.output or "")
        of_one = self.command == "score"
        whole = self._one_night() if of_one else self._all_nights()
        # From the start of the process, because imports take time too.
        whole.started_unix_s, whole.ended_unix_s = self.started_unix_s, now_unix_s
        if error is not None:
            whole.fails(error)
        whole.exit_code = code
        told = {"version": VERSION, "command": self.command, **whole.fields()}
        told["flags"] = secrets.flags(self.args)
        if not of_one:
            told["nights"] = [night.fields() for night in self.nights]
        return told

    def _one_night(self) -> Night:
        return self.nights[-1] if self.nights else Night()

    def _all_nights(self) -> Night:
        whole = Night()
        if self.nights:
            worst = max(self.nights, key=lambda night: STATUSES.index(night.status))
            whole.status, whole.error = worst.status, worst.error
        for name in ("rows", "rejected"):
            known = [value for night in self.nights if (value := getattr(night, name)) is not None]
            setattr(whole, name, sum(known) if known else None)
        # Counted by id: nights may share a load, and a night that was published before had loads of its own.
        whole.loads = len(
            {load for night in self.nights if night.status == "published" for load in night.load_ids}
        )
        return whole


_ended: Final[ContextVar[Ended | None]] = ContextVar("ended", default=None)


def begin(command: str, args: Sequence[str], environment: Mapping[str, str], now_unix_s: float) -> Ended:
    """Begin a command whose end is reported; ``args`` are its arguments."""
    one = Ended(command, tuple(args), Asked.of(args, environment), now_unix_s)
    _ended.set(one)
    return one


def ask(url: str | None, on: str | None) -> None:
    """Set who is to be notified, from flags that may come from a configuration file.

    Raises:
        UsageError: the webhook's address or the value of ``--notify_on`` is malformed.
    """
    if url is not None:
        webhook.check(url, "--notify_url")
    elif os.environ.get(webhook.URL_IN_ENVIRONMENT):
        webhook.check(os.environ[webhook.URL_IN_ENVIRONMENT], webhook.URL_IN_ENVIRONMENT)
    if on is not None and on not in NOTIFY_ON:
        raise UsageError(f"--notify_on={on}: must be one of {', '.join(NOTIFY_ON)}")
    if (ended := _ended.get()) is not None:
        ended.asked.url = url or ended.asked.url
        ended.asked.on = on or ended.asked.on


@contextmanager
def night(output: str, ds: str | None, clock: Callable[[], float]) -> Iterator[Night]:
    """Note a night that the body scores. The body calls :meth:`Night.ends`, or raises."""
    from job import storage

    path = output
    with suppress(JobError):
        path = storage.absolute(output)
    one = Night(path, ds, clock())
    if (ended := _ended.get()) is not None:
        ended.nights.append(one)
    try:
        yield one
    except BaseException as e:
        one.fails(e)
        raise
    finally:
        one.ended_unix_s = clock()


def add(
    ds: str, output: str, report: RunReport | None, error: BaseException | None, *, already_published: bool
) -> None:
    """Note one of several nights that were scored together; without a report its times are unknown."""
    one = Night(output, ds)
    if error is not None:
        one.fails(error)
    else:
        one.ends(report, None, already_published=already_published)
    if report is not None and not already_published:
        one.started_unix_s = datetime.fromisoformat(report.started_utc).timestamp()
        one.ended_unix_s = one.started_unix_s + report.wall_s
    if (ended := _ended.get()) is not None:
        ended.nights.append(one)


def note_run(output: str, run_id: str) -> None:
    """Note the run of an output, so that it is reported even if the run fails; ``output`` is absolute."""
    if (ended := _ended.get()) is not None:
        ended.runs[output] = run_id


def tell(ended: Ended, error: BaseException | None, code: int, now_unix_s: float) -> None:
    """Print the JSON line if ``--json`` is given, and post the message if there is a webhook."""
    _ended.set(None)
    told, asked = ended.fields(error, code, now_unix_s), ended.asked
    if asked.json:
        # In ASCII, because standard output may have any encoding under a scheduler.
        console.show(json.dumps(told))
    if asked.url and (asked.on == "always" or code):
        stopped = isinstance(error, KeyboardInterrupt)
        most_s = webhook.MOST_WHEN_STOPPED_S if stopped else webhook.MOST_S
        webhook.send(asked.url, {"text": text(told), **told}, most_s=most_s)


def _last(args: Sequence[str], name: str) -> str:
    """Return the last value of a flag, given as ``--name=value`` or ``--name value``."""
    found = ""
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag == f"--{name}":
            found = value if equals else next(iter(args[i + 1 : i + 2]), "")
    return found


def code_of(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return signals.exit_code(error)
    return error.exit_code if isinstance(error, JobError) else 1


def line_of(error: BaseException) -> str:
    """Return the message of an error as one line."""
    if isinstance(error, KeyboardInterrupt):
        return signals.told(error)
    return errors.told(error)


def text(told: Mapping[str, Any]) -> str:
    """Return a message for people, escaped for chats: in Slack ``<!channel>`` would alert everybody."""
    lines = [_line(one) for one in told.get("nights", ())] or [_line(told)]
    if told.get("nights") and told["error"] and told["error"] not in {one["error"] for one in told["nights"]}:
        lines.append(_line(told))
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(one: Mapping[str, Any]) -> str:
    what = f"scoring {one['ds']}" if one["ds"] else "scoring"
    where = f" → {one['output']}" if one["output"] else ""
    run = f" (run {one['run_id'][:12]})" if one["run_id"] else ""
    how = one["status"].replace("_", " ")
    if one["error"]:
        return f"{what}: {how}, exit {one['exit_code']}{where}{run}: {one['error']}"
    rows = "" if one["rows"] is None else f", {one['rows']:,} rows, {one['rejected']:,} rejected"
    took = "" if one["seconds"] is None else f", {one['seconds']:.0f} s"
    return f"{what}: {how}{rows}{took}{where}{run}"


def _utc(unix_s: float | None) -> str | None:
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
