"""``python -m MODULE …`` and ``python -c CODE …`` in a fork of a zygote, which has imported everything.

``tests.support.jobs`` writes this file, behind a first line that names the interpreter, to the folder of the
zygote's socket. Standard streams, folder, environment, signals and the exit code pass through.
"""

import json
import os
import signal
import socket
import sys
import time


def connected(address: str) -> socket.socket:
    """Reach the zygote, which may still be importing."""
    zygote = socket.socket(socket.AF_UNIX)
    while True:
        try:
            zygote.connect(address)
        except FileNotFoundError:
            time.sleep(0.02)
        else:
            return zygote


def main() -> None:
    me, args = os.path.abspath(sys.argv[0]), sys.argv[1:]
    if args[:1] not in (["-m"], ["-c"]):
        os.execv(sys.executable, [sys.executable, *args])
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    zygote = connected(os.path.join(os.path.dirname(os.path.realpath(me)), "zygote"))
    place = {"folder": os.getcwd(), "group": os.getpgid(0), "executable": me}
    given = {"args": args, "env": dict(os.environ), **place}
    message = json.dumps(given).encode() + b"\n"
    sent = socket.send_fds(zygote, [message], [0, 1, 2])
    zygote.sendall(message[sent:])
    answers = zygote.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(answers.readline() or -signal.SIGKILL)
    if code < 0:
        if -code in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
