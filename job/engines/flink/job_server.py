"""Beam's job server for Flink: checks of its jar and of Java, where Beam starts it on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from job.engines.engine import Check
from job.errors import one_line

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_ANSWER_S: Final = 10.0
_JAVA_SAYS_S: Final = 30.0
_OLDEST_JAVA: Final = 11

# Files in the jar that hold the versions of Beam and of Flink.
_BEAM: Final = "org/apache/beam/sdk/sdk.properties"
_FLINK: Final = ".flink-runtime.version.properties"


def is_started(options: PipelineOptions) -> bool:
    """Say whether Beam is to start a job server; it does not if ``--job_endpoint`` is given."""
    from apache_beam.options.pipeline_options import PortableOptions

    return not options.view_as(PortableOptions).job_endpoint


def java(options: PipelineOptions, *, ask: bool) -> Check:
    """Check that Java is installed; with ``ask`` also that its version is new enough."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, JobServerOptions

    name = "Java"
    if options.view_as(FlinkRunnerOptions).flink_submit_uber_jar:
        return Check(
            name, True, "not needed here: --flink_submit_uber_jar runs the job server in the cluster"
        )
    launcher = str(options.view_as(JobServerOptions).job_server_java_launcher)
    fix = (
        "install Java 17, or give --job_server_java_launcher or the --job_endpoint of a job server that runs"
    )
    if shutil.which(launcher) is None:
        return Check(name, False, f"Beam's job server needs Java, and {launcher} is not in PATH", fix)
    if not ask:
        return Check(name, True, launcher)
    try:
        done = subprocess.run(
            [launcher, "-version"], capture_output=True, text=True, check=False, timeout=_JAVA_SAYS_S
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return Check(name, False, f"{launcher} -version: {one_line(e)}", fix)
    found = re.search(r'version "(1\.)?([0-9]+)[^"]*"', done.stderr + done.stdout)
    if found is None:
        return Check(name, False, f"{launcher} -version does not tell a version", fix)
    told = f"{launcher} is {found[0]}"
    if int(found[2]) < _OLDEST_JAVA:
        return Check(name, False, f"{told}; Flink needs {_OLDEST_JAVA} or newer", fix)
    return Check(name, True, told)


def jar(options: PipelineOptions, *, fetch: bool) -> Check:
    """Check that the job server's jar exists; with ``fetch`` download it, else check that it could be."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions
    from apache_beam.utils.subprocess_server import JavaJarServer

    name = "job server jar"
    given = options.view_as(FlinkRunnerOptions).flink_job_server_jar
    if (there := local(options)) is not None:
        return Check(name, True, str(there))
    if given and "://" not in given:
        return Check(name, False, f"--flink_job_server_jar={given}: no such file", "correct the path")
    url = given or published(options)
    file = url.rpartition("/")[2]
    fix = f"fetch {file} where that works and give --flink_job_server_jar=PATH, or --job_endpoint=HOST:PORT"
    try:
        if fetch:
            return Check(name, True, str(JavaJarServer.local_jar(url, _cache(options))))
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_S):
            return Check(name, True, f"{file} is downloaded by the first job, from {url}")
    except (OSError, RuntimeError, ValueError) as e:
        # Beam's error repeats the address; the reason is in the error that it was raised from.
        why = one_line(e.__cause__ or e.__context__ or e)
        return Check(name, False, f"Beam's job server {file} cannot be had from {url} ({why})", fix)


def local(options: PipelineOptions) -> Path | None:
    """Return the path of the jar if it is on this machine, else ``None``."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    given = options.view_as(FlinkRunnerOptions).flink_job_server_jar
    url = given or published(options)
    for path in (Path(url), Path(_cache(options), url.rpartition("/")[2])):
        if path.is_file():
            return path
    return None


def version(options: PipelineOptions, cluster_minor: str) -> Check:
    """Check that a jar on this machine has this Beam's version, and fits the cluster's version of Flink."""
    from apache_beam.version import __version__ as beam

    name, path = "job server version", local(options)
    if path is None:
        return Check(name, None, "the jar is not on this machine yet")
    beam_there, flink_there = versions(path)
    told = f"{path.name} is Beam {beam_there or '?'} for Flink {flink_there or '?'}"
    fix = f"take the job server of Beam {beam} for Flink {cluster_minor or 'of the cluster'}"
    if not beam_there or not flink_there:
        return Check(name, None, f"{told}: it does not say")
    minor = ".".join(flink_there.split(".")[:2])
    if beam_there != beam or (cluster_minor and minor != cluster_minor):
        wanted = f"Beam {beam}" + (f", and the cluster is Flink {cluster_minor}" if cluster_minor else "")
        return Check(name, False, f"{told}; here is {wanted}", fix)
    return Check(name, True, told)


def versions(path: Path) -> tuple[str, str]:
    """Return the versions of Beam and of Flink in a job server's jar; "" for one that it does not tell."""
    named = re.search(r"flink-([0-9.]+)-job-server-([0-9][0-9.]*[0-9])", path.name)
    beam, flink = (named[2], named[1]) if named else ("", "")
    try:
        with zipfile.ZipFile(path) as archive:
            return _property(archive, _BEAM, "version") or beam, _property(
                archive, _FLINK, "project.version"
            ) or flink
    except (OSError, zipfile.BadZipFile):
        return beam, flink


def _property(archive: zipfile.ZipFile, member: str, key: str) -> str:
    try:
        text = archive.read(member).decode(errors="replace")
    except KeyError:
        return ""
    found = re.search(rf"^{re.escape(key)}=(\S+)", text, flags=re.MULTILINE)
    return found[1] if found else ""


def published(options: PipelineOptions) -> str:
    """Return the jar's address at Maven Central, or its path if it was built on this machine."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions
    from apache_beam.utils.subprocess_server import JavaJarServer

    minor = options.view_as(FlinkRunnerOptions).flink_version
    return str(JavaJarServer.path_to_beam_jar(f":runners:flink:{minor}:job-server:shadowJar"))


def _cache(options: PipelineOptions) -> str:
    from apache_beam.options.pipeline_options import JobServerOptions
    from apache_beam.utils.subprocess_server import JavaJarServer

    told = options.view_as(JobServerOptions).jar_cache_dir
    return str(told or JavaJarServer.JAR_CACHE)
