"""The shards that a spec names: found, waited for where they are late, and their footers read.

``list_shards`` looks once. ``shards`` looks again and again, as long as ``--wait_for_input`` allows, and also
waits for markers such as ``_SUCCESS``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa

from job import storage
from job.errors import NoInputError, ShardChangedError, ShardError, UsageError
from job.model import artifact, builder, challenger_spec, versions
from job.shards import listing, planner, tables
from job.spec import ScoringSpec, Shard
from job.terminal import progress

# In a bucket, reading a footer is one request.
_FOOTER_THREADS = 32
# From this number on, footers are read by the engine's workers if it has any, see ``job.launch.footers``.
ON_WORKERS = 2000


def absolute(spec: ScoringSpec) -> ScoringSpec:
    """Return the spec with absolute paths, since workers have other working directories.

    So a run's id does not depend on the working directory either. A glob or an alias of a model is resolved,
    see ``job.model.versions``.

    Raises:
        UsageError: a path is not in UTF-8, which no file of the job could name.
    """
    _check_readable(spec)
    with challenger_spec.told(spec):
        challenger = spec.challenger and _model(spec.challenger)
    return replace(_with_absolute_files(spec), model=_model(spec.model), challenger=challenger)


def anchored(spec: ScoringSpec) -> ScoringSpec:
    """Return the spec with absolute paths, to be used later and in another working directory.

    No file is looked at: the model may still be a glob or an alias, and a name that looks like a builder is
    taken for one.

    Raises:
        UsageError: a path is not in UTF-8, which no file of the job could name.
    """
    _check_readable(spec)

    def path(model: str) -> str:
        return model if builder.BUILDER.fullmatch(model) else storage.absolute(model)

    challenger = spec.challenger and path(spec.challenger)
    return replace(_with_absolute_files(spec), model=path(spec.model), challenger=challenger)


def _with_absolute_files(spec: ScoringSpec) -> ScoringSpec:
    """Return the spec with absolute paths, except those of models."""
    inputs = tuple(
        f"@{storage.absolute(i[1:])}" if i.startswith("@") else storage.absolute(i) for i in spec.inputs
    )
    return replace(
        spec,
        inputs=inputs,
        weights=spec.weights and storage.absolute(spec.weights),
        golden=spec.golden and storage.absolute(spec.golden),
        challenger_weights=spec.challenger_weights and storage.absolute(spec.challenger_weights),
        output=storage.absolute(spec.output),
        output_template=spec.output_template and storage.absolute(spec.output_template),
    )


def _check_readable(spec: ScoringSpec) -> None:
    paths = {name: getattr(spec, name) for name in ("model", "weights", "golden", "challenger", "output")}
    for name, path in (*paths.items(), *(("input", path) for path in spec.inputs)):
        if path and not planner.is_utf8(path):
            raise UsageError(f"--{name}={path}: the name is not in UTF-8; rename it")


def _model(model: str) -> str:
    if versions.stands_for_another(model):
        return versions.chosen(storage.absolute(model))
    is_builder = not storage.is_remote(model) and not artifact.kind_of(model).has_files
    return model if is_builder else storage.absolute(model)


def model_files(spec: ScoringSpec) -> list[str]:
    """Return the paths of the models' own files; a builder's code is in an installed package."""
    models = [path for path in (spec.model, spec.challenger) if path]
    files = [path for path in models if storage.is_remote(path) or artifact.kind_of(path).has_files]
    return [*files, *(path for path in (spec.weights, spec.challenger_weights) if path)]


def list_shards(spec: ScoringSpec) -> list[Shard]:
    """Return the shards that the inputs name, each once, sorted by path.

    A file that several paths lead to is one shard: under its own path, or under the first link to it if only
    links are found.

    Raises:
        NoInputError: an input matches nothing.
        UsageError: the output lies in an input folder, so that tomorrow's input would hold tonight's output;
            or files lie in a table, which keeps rows that were deleted.
    """
    seen = tables.SeenFolders()
    listed = _listed(spec, seen)
    real = {info.path: _real(info.path) for info in listed}
    _check_apart(spec.output, listed, real)
    tables.check(listed, real, seen)
    one = _one_of_each_file(listed, real)
    for info in listed:
        kept, left_out = planner.hive_folders(one[info.path].path), planner.hive_folders(info.path)
        if left_out and left_out != kept:
            raise UsageError(
                f"--input: {info.path} and {one[info.path].path} are one file in two Hive folders; "
                f"take one of them out of the input"
            )
    found = {info.path: info for info in one.values()}
    return [planner.shard_of(found[path]) for path in sorted(found)]


def _real(path: str) -> str:
    return path if storage.is_remote(path) else os.path.realpath(path)


def _one_of_each_file(
    listed: Sequence[storage.FileInfo], real: Mapping[str, str]
) -> dict[str, storage.FileInfo]:
    """Return for each path the listed file that stands for its file.

    That is the file's own path if it is listed, else the first link to it. Of hard links and bind mounts the
    first path stands for all; their common file number shows that they are one file.
    """
    best_first = sorted(listed, key=lambda info: (info.path != real[info.path], info.path))
    by_path: dict[str, storage.FileInfo] = {}
    by_id: dict[object, storage.FileInfo] = {}
    for info in best_first:
        if real[info.path] in by_path:
            continue
        # File systems without numbers of their own may give one number to two files, but not in one state.
        key = info.file_id and (info.file_id, info.size_bytes, info.stamp)
        first = by_id.setdefault(key, info) if key else info
        by_path[real[info.path]] = first if first is info or _is_one_file(first.path, info.path) else info
    return {info.path: by_path[real[info.path]] for info in listed}


def _is_one_file(path: str, other: str) -> bool:
    """Say whether two paths lead to one file or one folder."""
    opened: list[int] = []
    try:
        # Both at once: a number that nobody holds may be given away.
        opened.extend(os.open(one, os.O_PATH | os.O_CLOEXEC) for one in (path, other))
        return os.path.sameopenfile(*opened)
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _check_apart(output: str, listed: Sequence[storage.FileInfo], real: Mapping[str, str]) -> None:
    """Refuse an output within an input folder, and an input within the output.

    Links and mounts may lead from one to the other.

    Raises:
        UsageError: they are.
    """
    inside, around = f"{_real(output)}/", _FoldersAround(output)
    for info in listed:
        # A file that was named by itself or by a glob stands for no folder.
        path = real[info.path]
        is_in = path.startswith(inside) or info.path.startswith(f"{output}/")
        below = around.any_of(info, is_linked=path != info.path)
        if is_in or below or around.is_within_output(storage.parent(path)):
            raise UsageError(
                f"--output={output}: it and the input {info.root or info.path} lie within each other, "
                f"so predictions would be read as features; choose a folder beside the input"
            )


class _FoldersAround:
    """An output and the folders around it; every other folder is compared with them once.

    Folders are compared by their paths, by the targets of links, and by their numbers: a folder that is
    mounted in a second place has the same number there.
    """

    def __init__(self, output: str) -> None:
        self._inside = {f"{output}/", f"{_real(output)}/"}
        self._paths: dict[tuple[int, int], str] = {}
        self._output: tuple[int, int] | None = None
        if not storage.is_remote(output):
            self._output = _number(output)
            folders = [_real(output), *map(str, PurePosixPath(_real(output)).parents)]
            self._paths = {number: folder for folder in folders if (number := _number(folder)) is not None}
        self._around: dict[str, bool] = {}
        self._within: dict[str, bool] = {}

    def any_of(self, info: storage.FileInfo, *, is_linked: bool) -> bool:
        """Say whether the search for a file went through one of them; a link may be on the way to it."""
        if not info.root:
            return False
        folder = storage.parent(info.path)
        while not self._is_around(folder, is_linked=is_linked):
            if len(folder) <= len(info.root):
                return False
            folder = storage.parent(folder)
        return True

    def is_within_output(self, folder: str) -> bool:
        """Say whether a folder is the output or lies in it, where a mount leads there."""
        if self._output is None or storage.is_remote(folder):
            return False
        if folder not in self._within:
            above = storage.parent(folder)
            self._within[folder] = self._is_known(folder, {self._output}) or (
                above != folder and self.is_within_output(above)
            )
        return self._within[folder]

    def _is_around(self, folder: str, *, is_linked: bool) -> bool:
        if folder not in self._around:
            both = {folder, _real(folder)} if is_linked else {folder}
            by_path = any(inside.startswith(f"{one.rstrip('/')}/") for one in both for inside in self._inside)
            is_local = not storage.is_remote(folder)
            self._around[folder] = by_path or (is_local and self._is_known(folder, self._paths))
        return self._around[folder]

    def _is_known(self, folder: str, numbers: Collection[tuple[int, int]]) -> bool:
        number = _number(folder)
        return number is not None and number in numbers and _is_one_file(folder, self._paths[number])


def _number(folder: str) -> tuple[int, int] | None:
    """Return a folder's device and inode, ``None`` if there is no such folder."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def folders(spec: ScoringSpec) -> list[str]:
    """Return the folders that the inputs name, sorted; for a single file, the folder that it lies in.

    Raises:
        NoInputError: an input matches nothing.
    """
    return sorted({info.root or storage.parent(info.path) for info in _listed(spec, None)})


def _listed(spec: ScoringSpec, seen: tables.SeenFolders | None) -> list[storage.FileInfo]:
    return [info for pattern in spec.inputs for info in listing.listing(pattern, seen)]


def read_footers(shards: Sequence[Shard]) -> list[planner.Footer]:
    """Read every footer, several at a time. A footer that cannot be read says why in its ``error``.

    Raises:
        ShardChangedError: a shard is gone.
    """
    known: list[pa.Schema] = []
    footers = []
    # Threads take longer to start than the only footer to be read.
    threads = (
        ThreadPoolExecutor(_FOOTER_THREADS, thread_name_prefix="footer") if shards[1:] else nullcontext()
    )
    with threads as pool:
        for footer in pool.map(_footer, shards) if pool else map(_footer, shards):
            # Shards by the thousand share a few schemas; one object for each keeps them small. Their
            # metadata is of no use here, and all differ in it: pandas writes the number of rows there.
            schema = next((schema for schema in known if schema.equals(footer.schema)), None)
            if schema is None:
                schema = footer.schema.remove_metadata()
                known.append(schema)
            footers.append(replace(footer, schema=schema))
    return footers


def _footer(shard: Shard) -> planner.Footer:
    try:
        return planner.read_footer(shard)
    except ShardChangedError:
        raise
    except ShardError as e:
        # Without the path, so that shards with one and the same fault are told in one line.
        return planner.Footer(pa.schema([]), (), str(e).removeprefix(f"{shard.path}: "))


# Waiting for input that is late. The pauses grow from the first to the longest.

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


def shards(
    spec: ScoringSpec,
    announce: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Shard]:
    """Return the shards that the inputs name, once there are some and every marker is there.

    ``clock`` returns seconds and ``sleep`` takes them.

    Raises:
        NoInputError: after the wait an input still matches nothing, or a marker is missing.
    """
    end_s = clock() + spec.wait_for_input_s
    pause_s = _FIRST_PAUSE_S
    told = False
    while True:
        try:
            return _complete(spec)
        except NoInputError as e:
            left_s = end_s - clock()
            if left_s <= 0:
                waited = f"; waited {progress.duration(spec.wait_for_input_s)} for it" if told else ""
                raise NoInputError(f"{e}{waited}") from e
            if not told:
                announce(f"{e}; waiting for it, at most {progress.duration(spec.wait_for_input_s)}")
                told = True
        sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _complete(spec: ScoringSpec) -> list[Shard]:
    if not spec.input_marker:
        return list_shards(spec)
    # The files are listed again when the markers have been seen: some may have come in between.
    _check_markers(spec.input_marker, folders(spec))
    return list_shards(spec)


def _check_markers(name: str, folders: Sequence[str]) -> None:
    def is_there(folder: str) -> bool:
        return storage.describe(storage.join(folder, name)) is not None

    found = storage.parallel(is_there, folders, name="marker")
    missing = [folder for folder, there in zip(folders, found, strict=True) if not there]
    if missing:
        others = f", nor have {len(missing) - 1:,} other folders" if missing[1:] else ""
        raise NoInputError(f"--input_marker={name}: {missing[0]} has none{others}, so it is not complete")
