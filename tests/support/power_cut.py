"""A disk that forgets at a power cut what nobody has flushed, as POSIX lets it.

What a file holds is safe once the file is flushed, and that a folder has a name, or has it no more, once the
folder is. Everything else may be there or not, each for itself: more than any one file system loses.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Before each of these there may be a power cut.
_CHANGES = ("mkdir", "replace", "rename", "unlink", "remove", "rmdir", "fsync")

Folders = Mapping[int, Mapping[str, int]]
Contents = Mapping[int, bytes]
# Says whether something that was not flushed is there: of a folder's name, and of a file's content.
Kept = Callable[[], bool]


@dataclass(frozen=True)
class Cut:
    """What was safe and what was there by the number of each file and folder, and what was to come next."""

    before: str
    root: int
    safe_folders: Folders
    folders: Folders
    safe_contents: Contents
    contents: Contents

    def left(self, top: Path, names: Kept, contents: Kept) -> None:
        """Put what the next boot may find in the place of ``top``."""
        shutil.rmtree(top)
        top.mkdir()
        self._fill(top, self.root, names, contents)

    def _fill(self, folder: Path, number: int, names: Kept, contents: Kept) -> None:
        safe, now = self.safe_folders.get(number, {}), self.folders.get(number, {})
        for name in sorted({*safe, *now}):
            one, other = safe.get(name), now.get(name)
            found = one if one == other or not names() else other
            if found is None:
                continue
            if found in self.contents or found in self.safe_contents:
                (folder / name).write_bytes(self._content(found, contents))
            else:
                (folder / name).mkdir()
                self._fill(folder / name, found, names, contents)

    def _content(self, number: int, kept: Kept) -> bytes:
        safe = self.safe_contents.get(number)
        now = self.contents.get(number, safe)
        assert now is not None
        return now if safe == now or kept() else (safe or b"")

    def states(self, top: Path, seeds: int) -> Iterator[str]:
        """Put one after the other there: nothing, names, everything, or some of it has been kept."""
        for told, names, contents in (("nothing", False, False), ("names", True, False), ("all", True, True)):
            self.left(top, lambda names=names: names, lambda contents=contents: contents)  # type: ignore[misc]
            yield f"{told} kept before {self.before}"
        for seed in range(seeds):
            draw = random.Random(f"{self.before} {seed}")
            some = lambda draw=draw: draw.random() < 0.5  # noqa: E731
            self.left(top, some, some)
            yield f"some kept ({seed}) before {self.before}"


@dataclass
class Disk:
    """Watches what is done below a folder; all that is there at first is safe."""

    top: Path
    cuts: list[Cut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._open: dict[int, int] = {}
        self._safe_folders, self._safe_contents = self._look()
        self._last: Contents = self._safe_contents

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note all that changes in the body, and what is there at its end."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _CHANGES:
                patch.setattr(os, name, self._noted(name, getattr(os, name)))
            yield
        self._note("the end")
        for descriptor in self._open.values():
            os.close(descriptor)

    def _noted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                path = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[0])
                self._note(f"{name} {path.removeprefix(str(self.top))}")
                done = real(*args, **kwargs)
                if name == "fsync":
                    self._flushed(os.fstat(args[0]).st_ino)
                return done

        return call

    def _flushed(self, number: int) -> None:
        folders, contents = self._look()
        if number in folders:
            self._safe_folders = {**self._safe_folders, number: folders[number]}
        elif number in contents:
            self._safe_contents = {**self._safe_contents, number: contents[number]}

    def _note(self, what: str) -> None:
        with self._lock:
            root = os.stat(self.top).st_ino
            safe = (self._safe_folders, self._safe_contents)
            folders, contents = self._look()
            # Of files that are gone too: their names may come back.
            contents = self._last = {**self._last, **contents}
            before = f"{len(self.cuts)}: {what}"
            self.cuts.append(Cut(before, root, safe[0], folders, safe[1], contents))

    def _look(self) -> tuple[Folders, Contents]:
        folders: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            found = folders[self._number(folder)] = {}
            for path in folder.iterdir():
                found[path.name] = number = self._number(path)
                if path.is_dir():
                    waiting.append(path)
                else:
                    contents[number] = path.read_bytes()
        return folders, contents

    def _number(self, path: Path) -> int:
        """A number that no other file gets: it is kept open."""
        descriptor = os.open(path, os.O_PATH)
        status = os.fstat(descriptor)
        assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
        if status.st_ino in self._open:
            os.close(descriptor)
        else:
            self._open[status.st_ino] = descriptor
        return status.st_ino
