"""Local copies of models in buckets: Keras and TensorFlow open files."""

from __future__ import annotations

import atexit
import os
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence

from job.errors import StorageError
from job.files import FileInfo


class Copies:
    """This process's copies of one store's objects, and of folders of them; they go when it ends."""

    def __init__(
        self,
        describe: Callable[[str], FileInfo | None],
        tree: Callable[[str], Sequence[FileInfo]],
        pieces: Callable[[FileInfo], Iterable[bytes]],
    ) -> None:
        self._describe, self._tree, self._pieces = describe, tree, pieces
        self._made: dict[tuple[str, Sequence[str]], tuple[str, str]] = {}
        self._making = threading.Lock()

    def of(self, path: str, *, again: bool, beside: Sequence[str] = ()) -> str:
        """Return the local path of a copy, see ``storage.fetched``."""
        with self._making:
            if (path, tuple(beside)) not in self._made or again:
                self._renew(path, tuple(beside))
            return self._made[path, tuple(beside)][1]

    def _renew(self, path: str, beside: tuple[str, ...]) -> None:
        found = self._describe(path)
        every = [found] if found else list(self._tree(path))
        if not every:
            raise StorageError(f"{path}: cannot be read: there is no such object")
        top = posixpath.dirname(path)
        for name in beside:
            if (found := self._describe(f"{top}/{name}")) is None:
                raise StorageError(f"{top}/{name}: cannot be read: there is no such object")
            every.append(found)
        stamp = " ".join(info.stamp for info in every)
        if self._made.get((path, beside), ("", ""))[0] == stamp:
            return
        folder = tempfile.mkdtemp(prefix="scoring-job-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for info in every:
            self._copy_to(info, folder + info.path.removeprefix(top))
        self._made[path, beside] = (stamp, os.path.join(folder, posixpath.basename(path)))

    def _copy_to(self, info: FileInfo, target: str) -> None:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            with open(target, "wb") as sink:
                for piece in self._pieces(info):
                    sink.write(piece)
        except OSError as e:
            raise StorageError(f"{info.path}: cannot be copied to {target}: {e.strerror or e}") from e
