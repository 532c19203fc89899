"""Whole models in Keras' own files: ``x.keras``, the same not packed, and the legacy ``x.h5``.

Files of weights alone (``--weights``) are in ``job.model.builder``.
"""

from __future__ import annotations

import importlib
import zipfile
from typing import TYPE_CHECKING, ClassVar, Final

from job import storage
from job.errors import ModelError
from job.model import archive
from job.model.kind import Held, Kind
from job.spec import ModelReference

if TYPE_CHECKING:
    from job.model.kind import Step

_COLUMNS: Final = "assets/feature_names.json"


class _KerasFile(Kind):
    is_keras: ClassVar[bool] = True

    def load(self, reference: ModelReference, held: Held) -> Step:
        """Have Keras load it, in safe mode unless it is trusted."""
        from job.model import keras_step

        return keras_step.of_file(reference, held)


class KerasArchive(_KerasFile):
    """``x.keras``: opened in safe mode, and refused where it carries code unless it is trusted."""

    name: ClassVar[str] = "keras"
    form: ClassVar[str] = "x.keras"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)

    def check(self, held: Held, *, trusted: bool) -> None:
        """Refuse an archive that is malformed, would not fit the memory or, unless trusted, carries code."""
        archive.check(held.path, trusted=trusted, copy=held.file)

    def columns_file(self, copy: str, /) -> bytes | None:
        """Return the content of the member ``assets/feature_names.json``."""
        with zipfile.ZipFile(copy) as opened:
            return opened.read(_COLUMNS) if _COLUMNS in opened.namelist() else None

    def saved_by(self, copy: str, /) -> str:
        """Return what its ``metadata.json`` says."""
        return archive.keras_version(copy)


class KerasFolder(_KerasFile):
    """What Keras wrote with ``zipped=False``: the same, not packed."""

    name: ClassVar[str] = "keras_folder"
    form: ClassVar[str] = "of zipped=False"
    mark: ClassVar[str] = "model.weights.h5"

    def check(self, held: Held, *, trusted: bool) -> None:
        """Refuse a folder as an archive of its files would be, and links in it."""
        archive.check_folder(held.path, trusted=trusted, copy=held.file, links=list(held.links))

    def columns_file(self, copy: str, /) -> bytes | None:
        """Return the content of ``assets/feature_names.json``."""
        return storage.read_bytes(storage.join(copy, _COLUMNS))


class KerasH5(_KerasFile):
    """``x.h5``, the legacy file. Keras ignores safe mode there, so it is refused unless trusted."""

    name: ClassVar[str] = "h5"
    form: ClassVar[str] = "x.h5"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")

    def check_trust(self, path: str, *, trusted: bool) -> None:
        """Refuse it unless it is trusted."""
        if not trusted:
            raise ModelError(
                f"--model={path}: an .h5 model may carry code that Keras' safe mode does not stop; "
                f"save it as .keras, or add --trust_model"
            )

    def saved_by(self, copy: str, /) -> str:
        """Return what the attribute ``keras_version`` says."""
        # Keras requires it, and has just read the file by it.
        h5py = importlib.import_module("h5py")
        try:
            with h5py.File(copy, "r") as opened:
                return archive.as_version(opened.attrs["keras_version"])
        except (OSError, LookupError, ValueError, TypeError, RuntimeError):
            return ""
