"""What the cluster's processes are told: Flink's settings, Java's flags, the command of a Python worker."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

# Flink's own list for Java 17 (env.java.opts.all of the configuration that it ships).
OPENS: Final = (
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    *(
        f"--add-exports=jdk.compiler/com.sun.tools.javac.{part}=ALL-UNNAMED"
        for part in ("api", "file", "parser", "tree", "util")
    ),
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    *(
        f"--add-opens=java.base/{part}=ALL-UNNAMED"
        for part in (
            *("java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text"),
            *("java.time", "java.util", "java.util.concurrent", "java.util.concurrent.atomic"),
            "java.util.concurrent.locks",
        )
    ),
)

_LOGGING: Final = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-60c %x - %m%n
"""


def write(folder: Path, *, rest_port: int, rpc_port: int, slots: int) -> None:
    """Write ``conf/`` for a cluster that keeps everything in ``folder``."""
    told = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.bind-host": "127.0.0.1",
        "jobmanager.rpc.port": rpc_port,
        "jobmanager.memory.process.size": "1024m",
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": slots,
        # Multiplied out in docs/engines.md; less for the network is refused.
        "taskmanager.memory.process.size": "1728m",
        "taskmanager.memory.network.min": "256m",
        "taskmanager.memory.network.max": "256m",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": rest_port,
        # Here and not in the job: Beam's batch jobs cannot ask for it. One TaskManager that is killed may use
        # two attempts.
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 10,
        "restart-strategy.fixed-delay.delay": "2 s",
        # A TaskManager that was killed is known to be gone after seconds, not after the usual 20 to 50.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 12000,
        "io.tmp.dirs": folder / "tmp",
        "web.tmpdir": folder / "tmp",
    }
    (folder / "conf" / "config.yaml").write_text(
        "".join(f"{name}: {value}\n" for name, value in told.items())
    )
    (folder / "conf" / "log4j.properties").write_text(_LOGGING)


def read(folder: Path) -> dict[str, str]:
    """Return what was written."""
    lines = (folder / "conf" / "config.yaml").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def worker_script(folder: Path) -> str:
    """Return a shell script that starts a Python worker; its number is in ``run/``, its log in ``logs/``."""
    run, logs, tmp = (shlex.quote(str(folder / part)) for part in ("run", "logs", "tmp"))
    return (
        "#!/bin/sh\n"
        f"touch {run}/worker-$$ && cd {tmp} || exit 1\n"
        f'exec {shlex.quote(sys.executable)} -m job.boot "$@" >> {logs}/worker-$$.log 2>&1\n'
    )
