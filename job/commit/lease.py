"""The lock of an output, and the lease that is renewed where a lock is not enough.

``output.lease`` takes one or both. On a disk it is the lock; in a bucket the lease; and on a disk whose locks
cannot be relied on, both.

**The lock** (``locked``) is ``flock``: the system frees it when its process dies. What it is worth depends on
the file system. Some have no locks, and say so. Some are seen by other machines too: of these, some ask their
server, and others keep the lock on this machine alone and do not say so. The two cannot be told apart from
here. There the lock counts among the processes of this machine only, and the lease counts among machines.

**The lease** (``held``) is an object or a file. The store lets only one process create it. The owner writes
it again every ``RENEW_S``, which changes its stamp; a write succeeds only if the lease is still the owner's.
Another process that finds a lease watches the stamp. If it changes, the owner lives and the process is
refused. If it does not change for ``EXPIRES_S``, the process takes the lease over. Only differences of one
machine's clock are used; clocks of two machines are never compared. If the owner was a process of this very
machine, the process is looked up instead, so that nobody waits after a crash.

A process may be suspended, and wake up when the lease is another's. It must not change anything then:

* Before each step that cannot be undone (``_SUCCESS`` removed or written, a file moved to its final name,
  files removed) it reads the lease (``check``). It does so too before it sends a request a second time.
* Before any other request about the output, it writes the lease again if the last write is more than
  ``EXPIRES_S / 2`` ago. :class:`Moment` measures that, and counts the time for which the machine was
  suspended.

Two cases are left: a machine that is suspended with all its clocks between such a look and the one request
after it, and a request that arrives half a minute after it was sent. Then the next owner's manifest has other
digests than the file, and ``verify`` finds it.

A process that ends before its job hands the lease over to the job, see ``job.commit.handover``. Nobody
renews such a lease, and it does not expire. The job knows it by its token.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from job import storage
from job.commit import handover
from job.errors import JobError, OutputConflictError, StateUnknownError, StorageError, of_place
from job.storage import disk
from job.storage.buckets import guarded

if TYPE_CHECKING:
    from job.storage.sinks import Conditional

RENEW_S: Final = 10.0
EXPIRES_S: Final = 60.0
_LOOK_EVERY_S: Final = 2.0

# As proc_pid_mountinfo(5) calls them; those in user space have names that begin with "fuse".
_SHARED: Final = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("vmhgfs", "wekafs"),
    }
)
# A disk's, though its driver is in user space.
_OF_A_DISK: Final = "fuseblk"
_MOUNTS: Final = "/proc/self/mountinfo"

# Those that this process holds, by their tokens.
_held: dict[str, _Lease] = {}


@dataclass(frozen=True)
class Lock:
    """What came of trying to take a lock.

    ``holder`` is what somebody else who has it wrote into it, ``None`` where nobody has. ``is_sure`` says
    that nobody else can have it, on whichever machine.
    """

    holder: str | None
    is_sure: bool


@contextmanager
def locked(path: str, owner: str) -> Iterator[Lock]:
    """Hold a lock file while the body runs, and remove it afterwards, if nobody else has it.

    The system lets go of it when its holder dies, however that happens.
    """
    descriptor = _opened(path)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            content = storage.read_bytes(path) or b""
            yield Lock(content.decode(errors="replace").strip() or "unknown", True)
            return
        except OSError:
            # There are none here. What is written in the file is another machine's, which has some.
            is_empty = not os.fstat(descriptor).st_size
            os.close(descriptor)
            try:
                yield Lock(None, False)
            finally:
                if is_empty:
                    with suppress(StorageError):
                        storage.remove(path)
            return
        # The holder before us may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.stat(storage.local(path)).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
        descriptor = _opened(path)
    try:
        # Only so that others can say who holds it: a full disk is told by whoever needs to write.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, owner.encode())
        yield Lock(None, not is_shared(path))
    finally:
        with suppress(StorageError):
            storage.remove(path)
        os.close(descriptor)


def _opened(path: str) -> int:
    with of_place(fix="choose another output"):
        try:
            return os.open(storage.local(path), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise StorageError(f"{path}: cannot be written: {storage.reason(e)}") from e


def is_shared(path: str) -> bool:
    """Say whether the file system of a path is of a kind that other machines may write to as well."""
    kind = file_system(path)
    return kind in _SHARED or (kind.startswith("fuse") and kind != _OF_A_DISK)


def file_system(path: str) -> str:
    """Return what kind of file system a path is on, in the kernel's word; empty where that is not known."""
    try:
        device = os.stat(storage.local(path)).st_dev
        mounts = Path(_MOUNTS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] == number:
            # Optional fields end with a dash; the kind comes next.
            return fields[fields.index("-") + 1]
    return ""


@dataclass(frozen=True)
class Moment:
    """The time at which a lease was written or looked at; its age counts the machine's sleep too.

    A process that *waits* for another's lease uses ``time.monotonic`` instead, which stops during sleep: the
    owner may be on the same machine, and sleep with it.
    """

    boot_s: float
    wall_s: float

    @classmethod
    def now(cls) -> Moment:
        """Return the present moment."""
        return cls(_boot_s(), time.time())

    @property
    def passed_s(self) -> float:
        """Seconds since then.

        The larger of two clocks' differences. The boot clock goes on while the machine is suspended. It does
        not while a virtual machine is paused, but then the wall clock is corrected when it is resumed.
        """
        return max(_boot_s() - self.boot_s, time.time() - self.wall_s)


def _boot_s() -> float:
    # Linux has it; elsewhere the steady clock may count sleep, or not.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _never(_: handover.Job) -> bool:
    return False


@contextmanager
def held(path: str, announce: Callable[[str], None], ended: handover.Ended = _never) -> Iterator[str]:
    """Hold a lease while the body runs, and remove it afterwards; yields what ``check`` needs.

    ``ended`` is asked about a job that has the lease.

    Raises:
        OutputConflictError: somebody else holds it.
    """
    lease = _Lease(storage.conditional(path), path)
    lease.take(announce, ended)
    lease.keep()
    with ExitStack() as end:
        end.callback(lease.let_go)
        try:
            yield lease.token
        except KeyboardInterrupt:
            # Threads of the engine go on until the process has ended: until then the lease is theirs.
            end.pop_all()
            raise


def hand_over(token: str, job: handover.Job) -> None:
    """Leave a lease of this process to a job, also when the body of ``held`` has ended.

    Raises:
        StateUnknownError: it is another's, or gone.
        StorageError: it cannot be written; the job has it all the same for as long as nobody takes it over.
    """
    _held[token].hand_over(job)


def check(path: str, token: str) -> None:
    """Refuse to go on with a lease that is no longer one's own; it is read, whatever is known of it.

    Raises:
        StateUnknownError: it is another's, or gone.
    """
    while True:
        began = Moment.now()
        owner = handover.parsed(storage.conditional(path).read_bytes(path))
        if owner.get("token") != token:
            raise StateUnknownError(_lost(path, owner))
        # An answer that was waited for so long, or slept over, is old.
        if began.passed_s < EXPIRES_S / 2:
            return


@contextmanager
def watched(path: str, token: str) -> Iterator[None]:
    """Look at a lease in the body, before requests about its output and not more often than it is renewed.

    For a process that publishes for the owner; in the owner's own nothing needs to be done.
    """
    if token in _held:
        yield
        return
    looked: Moment | None = None

    def look(again: bool) -> None:
        nonlocal looked
        if again or looked is None or looked.passed_s >= RENEW_S:
            now = Moment.now()
            check(path, token)
            looked = now

    unguard = guarded(_output(path, "/"), path, look)
    try:
        yield
    finally:
        unguard()


def taken(output: str, owner: str) -> OutputConflictError:
    """Return the error of a run that is refused, because ``owner`` works on the output."""
    return OutputConflictError(
        f"{output}: another run is at work on it ({owner}); run again when it has ended"
    )


def _lost(path: str, owner: dict[str, Any]) -> str:
    told = f"{handover.of(owner) or _who(owner)} has it now" if owner else "it is gone"
    return (
        f"{path}: this run's lease expired while the machine stood still: {told}; nothing more was "
        f"published, run again to see what is there"
    )


class _Lease:
    """What one process knows of the lease that it holds."""

    def __init__(self, store: Conditional, path: str) -> None:
        self._store, self._path = store, path
        self.token = os.urandom(8).hex()
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewals = 0
        self._stamp = self._lost = ""
        self._written = Moment(-math.inf, -math.inf)
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._job: handover.Job | None = None
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._unguard: Callable[[], None] = lambda: None

    def take(self, announce: Callable[[str], None], ended: handover.Ended) -> None:
        """Become the owner.

        Raises:
            OutputConflictError: there is one that lives.
        """
        while True:
            found = self._store.read_stamped(self._path)
            stamp = "" if found is None else found[1]
            if found is not None:
                owner = handover.parsed(found[0])
                job = handover.of(owner)
                if job is None:
                    self._wait(owner, stamp, announce)
                else:
                    handover.check_ended(_output(self._path), job, ended)
            self._written = Moment.now()
            new = self._store.write_if(self._path, self._content(), stamp)
            if new is not None:
                self._stamp = new
                return

    def _wait(self, owner: dict[str, Any], stamp: str, announce: Callable[[str], None]) -> None:
        """Return when the lease's owner is dead; raise when it lives."""
        alive = _is_alive(owner)
        if alive is False:
            return
        give_up_s = time.monotonic() + EXPIRES_S
        if alive is None:
            announce(
                f"{self._path}: {_who(owner)} holds it; waiting up to {EXPIRES_S:.0f} s to see if it lives"
            )
        while not alive and time.monotonic() < give_up_s:
            time.sleep(_LOOK_EVERY_S)
            found = self._store.read_stamped(self._path)
            if found is None:
                return
            alive = found[1] != stamp
        if alive:
            raise taken(_output(self._path), _who(owner))

    def keep(self) -> None:
        """Renew the lease from now on, and let no request about its output pass that might come too late."""
        self._unguard = guarded(_output(self._path, "/"), self._path, self.assure)
        _held[self.token] = self
        self._thread.start()

    def hand_over(self, job: handover.Job) -> None:
        """Write the job down as the owner; from then on the lease is not renewed, and not removed."""
        self._ended.set()
        self._thread.join()
        self._job = job
        with self._writing:
            self._write()

    def let_go(self) -> None:
        """Remove the lease if it is still one's own, and not handed over."""
        del _held[self.token]
        self._unguard()
        self._ended.set()
        self._thread.join()
        if self._job is not None:
            return
        # One that stays behind expires; what the body ended with matters more.
        with suppress(JobError):
            self._store.remove([self._path], self._stamp)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S) and not self._lost:
            # One that fails is followed by others before the lease expires; then ``assure`` tells.
            with suppress(JobError), self._writing:
                self._write()

    def assure(self, again: bool) -> None:
        """Return while nobody else can have the lease; where that is not sure, write it anew.

        Args:
            again: of a request that is sent again: nobody knows what its first try has waited for.

        Raises:
            StateUnknownError: it is another's, or gone.
            StorageError: it cannot be written.
        """
        if not self._is_sure():
            with self._writing:
                if not self._is_sure():
                    self._write()
        elif again:
            check(self._path, self.token)

    def _is_sure(self) -> bool:
        return not self._lost and self._written.passed_s < EXPIRES_S / 2

    def _write(self) -> None:
        if self._lost:
            raise StateUnknownError(self._lost)
        self._renewals += 1
        began = Moment.now()
        while (new := self._store.write_if(self._path, self._content(), self._stamp)) is None:
            # One that was given up may have been carried out all the same.
            found = self._store.read_stamped(self._path)
            owner = handover.parsed(None if found is None else found[0])
            if found is None or owner.get("token") != self.token:
                self._lost = _lost(self._path, owner)
                raise StateUnknownError(self._lost)
            self._stamp = found[1]
        self._stamp, self._written = new, began

    def _content(self) -> bytes:
        own = {"token": self.token, "since": self._since, "renewals": self._renewals}
        job = {} if self._job is None else handover.fields(self._job)
        return json.dumps({**own, **_process(os.getpid()), **job}).encode()


def _process(pid: int) -> dict[str, Any]:
    """Return what tells a process of this machine from all others; ``began`` is empty for one that ended."""
    began = namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    with suppress(OSError, IndexError):
        # Fields 3 and 22 of proc_pid_stat(5), state and start: numbers of processes are used again.
        state, *told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # One that was killed keeps its number until its parent asks for it, which may be never.
        began = "" if state in "ZX" else told[18]
    host = f"{socket.gethostname()} {disk.boot_id()} {namespace}"
    return {"host": host, "process": pid, "began": began}


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Say whether a lease's owner lives, ``None`` if that cannot be seen from this machine."""
    if not owner:
        return False
    pid = owner.get("process")
    if not isinstance(pid, int) or not disk.boot_id():
        return None
    found = _process(pid)
    if found["host"] != owner.get("host"):
        return None
    return bool(found["began"]) and found["began"] == owner.get("began")


def _who(owner: dict[str, Any]) -> str:
    host = str(owner.get("host", "?")).partition(" ")[0]
    return f"process {owner.get('process', '?')} on {host} since {owner.get('since', '?')}"


def _output(path: str, end: str = "") -> str:
    return path.rpartition("/_staging/")[0] + end
