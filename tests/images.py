"""The images, built for real by buildah, on a stand-in for Beam's base image, which no test can pull.

What the stand-in has is what the ``Dockerfile`` asks of the base: Debian's shell and ``useradd``, this
machine's Python as ``python``, and Beam's own ``boot``, built from its source. Everything is kept in
``build/images``, so that only the first build installs TensorFlow. ``python -m tests.images`` makes it all
ahead of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "images"
BOOT = STORE / "bin" / "container"
BASE = "localhost/beam-stand-in"
BUILD_S = 900
# Debian's packages that make the stand-in, as far as a RUN needs them.
PACKAGES = ("base-files", "base-passwd", "bash", "coreutils", "dash", "libc-bin", "libc6", "libgcc-s1", "libstdc++6", "passwd")


def need(*programs: str) -> None:
    """Skip the test where one is missing; where every test counts, fail it."""
    missing = [name for name in programs if shutil.which(name) is None]
    if not missing and os.geteuid() == 0:
        return
    told = f"images need {', '.join(missing)}, not installed" if missing else "images need root"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)


def buildah(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command of buildah on the images of this checkout alone."""
    done = subprocess.run(command(*args), capture_output=True, text=True, check=False, timeout=BUILD_S)
    if check and done.returncode:
        raise RuntimeError(f"buildah {args[0]}: code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def command(*args: str | Path) -> list[str]:
    """The command line of a call of buildah."""
    storage = (f"--root={STORE / 'root'}", f"--runroot={STORE / 'run'}", "--storage-driver=overlay")
    # Or the folder stays mounted, and nothing can remove it.
    return ["buildah", *storage, "--storage-opt=overlay.skip_mount_home=true", *map(str, args)]


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Let one process at a time make what is called so."""
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def boot() -> Path:
    """Beam's entry point of a worker's container, of the version that is locked."""
    text = (ROOT / "requirements-worker.lock").read_text()
    (version,) = re.findall(r"^apache-beam==(\S+)", text, re.MULTILINE)
    with alone("boot"):
        if not BOOT.exists():
            source = f"github.com/apache/beam/sdks/v2/python/container@v{version}"
            env = {**os.environ, "GOBIN": str(BOOT.parent)}
            subprocess.run(["go", "install", source], env=env, check=True, timeout=BUILD_S)
    return BOOT


def base() -> str:
    """The stand-in, by its digest, as a base should be named."""
    program = boot()
    with alone("base"):
        if buildah("inspect", "--type=image", BASE, check=False).returncode:
            container = buildah("from", "scratch").stdout.strip()
            try:
                _fill(Path(buildah("mount", container).stdout.strip()), program)
                buildah("config", "--env=PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
                buildah("commit", "--quiet", container, BASE)
            finally:
                buildah("rm", container)
        told = json.loads(buildah("inspect", "--type=image", BASE).stdout)
    return f"{BASE}@{told['FromImageDigest']}"


def _fill(root: Path, program: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc/ssl/certs", "opt/apache/beam", "proc"):
        (root / name).mkdir(parents=True)
    for name in ("dev", "home", "root", "sys", "tmp", "var/tmp", "run"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], capture_output=True, text=True, check=True).stdout
    kept = [path for path in listed.split("\n") if not path.startswith("/usr/share/") and Path(path).is_file()]
    python = Path(sys.base_prefix)
    inside = root / "usr" / "local"
    unused = shutil.ignore_patterns("site-packages", "test", "idlelib", "__pycache__", "*.a")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copytree(python / "lib" / version, inside / "lib" / version, ignore=unused, symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    for pip in packages.glob("pip*"):
        shutil.copytree(pip, inside / "lib" / version / "site-packages" / pip.name, ignore=unused)
    (inside / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), inside / "bin" / version)
    for name in ("python", "python3"):
        (inside / "bin" / name).symlink_to(version)
    for library in (python / "lib").glob("libpython*.so.*"):
        shutil.copy2(library, root / "usr" / "lib" / library.name)
    programs = [path for path in kept if Path(path).parts[1:2] in (("bin",), ("sbin",), ("usr",))]
    programs += map(str, inside.rglob("*.so"))
    _copy([*kept, *_libraries([*programs, str(inside / "bin" / version)]), *_settings()], root)
    for name in ("passwd", "group"):
        shutil.copy2(f"/usr/share/base-passwd/{name}.master", root / "etc" / name)
    shutil.copy2(program, root / "opt" / "apache" / "beam" / "boot")


def _libraries(programs: Sequence[str]) -> list[str]:
    """What the dynamic linker would load for them, links included."""
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    found = {path for path in re.findall(r"(/\S+) \(0x", told) if path.startswith(("/lib", "/usr/lib"))}
    return sorted(found)


def _settings() -> list[str]:
    """How this machine reaches a package index, which a build must know too."""
    settings = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/login.defs", "/etc/nsswitch.conf")
    return [path for path in settings if Path(path).exists()]


def _copy(paths: Sequence[str], root: Path) -> None:
    for path in dict.fromkeys(paths):
        source = Path(path)
        # Through the links of the stand-in's own: /lib/x is /usr/lib/x.
        aside = root / Path(os.path.realpath(source.parent)).relative_to("/") / source.name
        aside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() and (target := os.path.realpath(source)) != str(source):
            shutil.copy2(target, aside)
        else:
            shutil.copy2(source, aside)


def build(target: str, context: Path = ROOT, *flags: str) -> subprocess.CompletedProcess[str]:
    """Build a target of a context's Dockerfile as ``localhost/TARGET``; its layers are kept."""
    args = ("--pull-never", "--isolation=chroot", "--layers", "--force-rm", f"--build-arg=BASE_IMAGE={base()}", *flags)
    with alone("build"):
        return buildah(
            "bud", *args, f"--target={target}", f"--tag=localhost/{target}", context, check=False
        )


@dataclass(frozen=True)
class Container:
    """A container of an image that was built; ``folder`` is seen at ``at``, and nothing else of the machine."""

    name: str
    folder: Path
    at: str

    @property
    def config(self) -> dict[str, Any]:
        """The image's own settings, as an engine reads them."""
        told = json.loads(buildah("inspect", self.name).stdout)
        return dict(told["OCIv1"]["config"])

    def command(self, *args: str) -> list[str]:
        """The command line that runs ``args`` inside, on the machine's network."""
        # With another host name Beam's services are looked for where they are not.
        flags = ("--isolation=chroot", "--hostname=localhost", f"--volume={self.folder}:{self.at}")
        return command("run", *flags, self.name, "--", *args)

    def run(self, *args: str) -> str:
        """What a program prints inside."""
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@contextlib.contextmanager
def container(image: str, folder: Path, at: str = "/night") -> Iterator[Container]:
    """A container of ``localhost/IMAGE``, gone after the test."""
    name = buildah("from", "--pull-never", f"localhost/{image}").stdout.strip()
    try:
        yield Container(name, folder, at)
    finally:
        buildah("rm", name)


if __name__ == "__main__":
    done = build("launcher")
    sys.exit(f"{done.stdout}\n{done.stderr}" if done.returncode else 0)
