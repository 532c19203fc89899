"""What Keras computes with and on: the backend, the device, the threads. Before anything is computed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Any

from job.errors import ModelError, PreflightError, one_line
from job.model import artifact
from job.spec import Device, ModelReference
from job.storage import private_folder
from job.terminal import library_output

# The locks that say which GPU is this process's; held until it ends, however it ends.
_held: dict[int, int] = {}


def configure(reference: ModelReference, device: Device, threads: int) -> None:
    """Choose the backend, the device and TensorFlow's threads within one operation (0: its own choice).

    Raises:
        PreflightError: a GPU is asked for and there is none.
        ModelError: Keras runs on another backend in this process than the run was planned with.
    """
    if artifact.kind_of(reference.path).is_keras:
        _check_backend(reference)
    if reference.backend == "tensorflow":
        _configure_tensorflow(device, threads)
    elif reference.backend == "jax":
        _configure_jax(device)
    elif device == "gpu":
        raise _unfit(reference.backend)


def check_gpu(backend: str) -> None:
    """Say whether Keras on this backend would find a GPU here, without touching it more than that takes.

    Raises:
        PreflightError: there is none.
    """
    if backend == "jax":
        _jax_gpus()
        return
    if backend != "tensorflow":
        raise _unfit(backend)
    with library_output.imports():
        import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise _no_gpu("TensorFlow")


def _check_backend(reference: ModelReference) -> None:
    # Keras reads it once, when it is imported.
    os.environ["KERAS_BACKEND"] = reference.backend
    try:
        with library_output.imports():
            import keras
    except (ImportError, ValueError) as e:
        raise ModelError(f"KERAS_BACKEND={reference.backend}: it cannot be used here: {one_line(e)}") from e
    here = keras.backend.backend()
    if here != reference.backend:
        raise ModelError(
            f"{reference.path}: Keras runs on {here} here, the run was planned with {reference.backend}; "
            f"import Keras later, or set KERAS_BACKEND={reference.backend} for the workers"
        )


def _configure_tensorflow(device: Device, threads: int) -> None:
    with library_output.imports():
        import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise _no_gpu("TensorFlow")
    # TensorFlow refuses each of these once it has started; then the process keeps what it has.
    with contextlib.suppress(RuntimeError):
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        elif len(gpus) > 1:
            gpus = [gpus[own_gpu(len(gpus))]]
            tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus if device != "cpu" else []:
            tf.config.experimental.set_memory_growth(gpu, True)
        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)


def _jax_gpus() -> list[Any]:
    # Or JAX takes three quarters of the card at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        with library_output.imports():
            import jax

            return list(jax.devices("gpu"))
    except RuntimeError as e:
        raise _no_gpu("JAX") from e


def _configure_jax(device: Device) -> None:
    with library_output.imports():
        import jax
        import tensorflow as tf

    # Keras uses it beside JAX, and it would take the GPU for itself.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    try:
        gpus = _jax_gpus()
    except PreflightError:
        if device == "gpu":
            raise
        return
    if len(gpus) > 1:
        jax.config.update("jax_default_device", gpus[own_gpu(len(gpus))])


def _unfit(backend: str) -> PreflightError:
    return PreflightError(f"--device=gpu: not with KERAS_BACKEND={backend}; use tensorflow or jax")


def _no_gpu(who: str) -> PreflightError:
    where = socket.gethostname()
    return PreflightError(
        f"--device=gpu: {who} sees no GPU on {where}; use --device=auto, or workers that have one"
    )


def own_gpu(count: int) -> int:
    """Return which of ``count`` GPUs this process uses: its own; processes beyond their number share."""
    for number in sorted(range(count), key=lambda number: number not in _held):
        if number in _held:
            return number
        path = os.path.join(private_folder.folder(), f"gpu-{number}.lock")
        with private_folder.os_errors("the lock of a GPU cannot be made"):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        _held[number] = lock
        return number
    return os.getpid() % count
