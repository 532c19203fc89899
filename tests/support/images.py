"""The images, built for real by buildah, on a stand-in for Beam's base image, which no test can pull.

What the stand-in has is what the ``Dockerfile`` asks of the base: Debian's shell and ``useradd``, this
machine's Python as ``python``, and Beam's own ``boot``, built from its source. Everything is kept in
``build/images``, so that only the first build installs TensorFlow. ``python -m tests.support.images`` makes
it all
ahead of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "images"
LIMIT_S = 900
# Debian's, as far as a RUN needs them.
PACKAGES = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "libc-bin",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "passwd",
]
# How this machine reaches a package index, which a build must know too.
SETTINGS = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")


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
    done = subprocess.run(command(*args), capture_output=True, text=True, check=False, timeout=LIMIT_S)
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


def beam() -> str:
    """The version of Beam that is locked."""
    text = (ROOT / "requirements-worker.lock").read_text()
    (version,) = re.findall(r"^apache-beam==(\S+)", text, re.MULTILINE)
    return str(version)


def boot() -> Path:
    """Beam's entry point of a worker's container."""
    built = STORE / f"boot-{beam()}" / "container"
    with alone("boot"):
        if not built.exists():
            source = f"github.com/apache/beam/sdks/v2/python/container@v{beam()}"
            env = {**os.environ, "GOBIN": str(built.parent)}
            subprocess.run(["go", "install", source], env=env, check=True, timeout=LIMIT_S)
    return built


def base() -> str:
    """The stand-in, by its digest, as a base should be named."""
    program, name = boot(), "localhost/beam-stand-in"
    tagged = f"{name}:{beam()}"
    with alone("base"):
        if buildah("inspect", "--type=image", tagged, check=False).returncode:
            container = buildah("from", "scratch").stdout.strip()
            try:
                _fill(Path(buildah("mount", container).stdout.strip()), program)
                buildah("config", "--env=PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
                buildah("commit", "--quiet", container, tagged)
            finally:
                buildah("rm", container)
        told = json.loads(buildah("inspect", "--type=image", tagged).stdout)
    return f"{name}@{told['FromImageDigest']}"


def _fill(root: Path, boot: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "opt/apache/beam", "etc", "home"):
        (root / name).mkdir(parents=True)
    for name in ("dev", "proc", "root", "run", "sys", "tmp", "var"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copy2(boot, root / "opt" / "apache" / "beam" / "boot")
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], capture_output=True, text=True, check=True).stdout
    debian = [path for path in listed.splitlines() if not path.startswith("/usr/share/")]
    _copy(debian, root)
    _copy(SETTINGS, root)
    for name in ("passwd", "group"):
        shutil.copy2(f"/usr/share/base-passwd/{name}.master", root / "etc" / name)
    _copy_python(root)
    programs = [*(root / "usr" / "bin").iterdir(), *(root / "usr" / "sbin").iterdir()]
    programs += [*(root / "usr" / "local" / "bin").iterdir(), *(root / "usr" / "local").rglob("*.so")]
    # Fails for scripts among them, having listed the others.
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    _copy(sorted(set(re.findall(r"(/(?:usr/)?lib\S*/\S+) \(0x", told))), root)


def _copy_python(root: Path) -> None:
    """The Python that runs this, with nothing installed but pip, where Beam's image has its own."""
    python, inside = Path(sys.base_prefix), root / "usr" / "local"
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = inside / "lib" / name
    unused = shutil.ignore_patterns("*-packages", "test", "idlelib", "__pycache__", "*.a")
    shutil.copytree(python / "lib" / name, library, ignore=unused, symlinks=True)
    for pip in Path(sysconfig.get_path("purelib")).glob("pip*"):
        shutil.copytree(pip, library / "site-packages" / pip.name, ignore=unused)
    # Debian's own Python has another name for it.
    (library / "dist-packages").symlink_to("site-packages")
    for shared in (python / "lib").glob("libpython*.so.*"):
        shutil.copy2(shared, root / "usr" / "lib")
    (inside / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), inside / "bin" / name)
    (inside / "bin" / "python").symlink_to(name)


def _copy(paths: Sequence[str], root: Path) -> None:
    for path in map(Path, paths):
        if not path.is_file():
            continue
        # Not through this machine's links: /lib/x and /usr/lib/x are one file in the stand-in too.
        into = root / Path(os.path.realpath(path.parent)).relative_to("/")
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, into / path.name)


def build(target: str, context: Path = ROOT, *flags: str) -> subprocess.CompletedProcess[str]:
    """Build a target of a context's Dockerfile as ``localhost/TARGET``; its layers are kept."""
    args = (*_flags(), *flags, f"--target={target}", f"--tag=localhost/{target}")
    with alone("build"):
        done = buildah("build", *args, context, check=False)
        # What no image stands on any more: of another lock, it is gigabytes.
        buildah("rmi", "--prune")
    return done


def _flags() -> list[str]:
    offline = ("--pull-never", "--isolation=chroot", "--layers", "--force-rm")
    return [*offline, f"--build-arg=BASE_IMAGE={base()}"]


def template(program: str) -> subprocess.CompletedProcess[str]:
    """Build the Flex Template's image as ``make`` does, with this script in the place of Google's program."""
    stand_in = "localhost/template-stand-in"
    with alone("build"):
        container = buildah("from", "scratch").stdout.strip()
        try:
            inside = Path(buildah("mount", container).stdout.strip()) / "opt" / "google" / "dataflow"
            inside.mkdir(parents=True)
            (inside / "python_template_launcher").write_text(program)
            (inside / "python_template_launcher").chmod(0o755)
            buildah("commit", "--quiet", container, stand_in)
        finally:
            buildah("rm", container)
        told = {
            "CONTAINERS": shlex.join(command()),
            "BUILD_FLAGS": shlex.join([*_flags(), f"--build-arg=TEMPLATE_BASE={stand_in}"]),
            "LAUNCHER": "localhost/launcher",
            "IMAGE": "localhost/template",
        }
        make = ["make", "template-image", *(f"{name}={value}" for name, value in told.items())]
        return subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)


@dataclass(frozen=True)
class Container:
    """A container of a built image, which sees of this machine's files ``folder`` alone, at ``at``."""

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

    def tried(self, *args: str) -> subprocess.CompletedProcess[str]:
        """How a program ends inside."""
        return subprocess.run(
            self.command(*args), capture_output=True, text=True, check=False, timeout=LIMIT_S
        )

    def run(self, *args: str) -> str:
        """What a program prints inside."""
        done = self.tried(*args)
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
