"""What shells make of the script that ``completion`` prints: keys are typed in a terminal."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from job.cli import main

# How each shell is started without anybody's settings, and told to read the script.
SHELLS = {
    "bash": (["bash", "--noprofile", "--norc", "-i"], "PS1='ready> '; source ./script"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1='ready> '; autoload -Uz compinit; compinit -D -u; eval \"$(cat script)\"",
    ),
    "tcsh": (["tcsh", "-f"], "set prompt='ready> '; source ./script"),
}
TYPED = {
    "scoring-job veri\t": "verify",
    "scoring-job score --trust_m\t": "--trust_model",
    "scoring-job publish --if_exists rep\t": "replace",
    "scoring-job publish --if_exists=rep\t": "--if_exists=replace",
    "scoring-job score --config=nig\t": "--config=night.toml",
    "scoring-job help back\t": "backfill",
}
MOST_S = 60.0


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def shown(shell: str, lines: Iterable[str], folder: Path) -> str:
    """Type lines into a shell, each when it is ready for it, and return all that its terminal shows."""
    program = folder / "bin" / "scoring-job"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done; echo end.\n')
    program.chmod(0o755)
    command, setup = SHELLS[shell]
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "xterm", "HOME": str(folder)}
    spawn = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *command]
    found = b""
    with subprocess.Popen(
        spawn, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        until = time.monotonic() + MOST_S
        for done, line in enumerate([f"{setup}; scoring-job", *lines], 1):
            process.stdin.write(line.encode() + b"\r")
            process.stdin.flush()
            while not re.search(
                rb"end\..*ready> ", b"end.".join(found.split(b"end.")[done - 1 :]), re.DOTALL
            ):
                assert time.monotonic() < until, found
                if select.select([process.stdout], [], [], 1.0)[0]:
                    found += os.read(process.stdout.fileno(), 65536)
        process.kill()
    return found.decode(errors="replace")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_flags_and_values(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    (tmp_path / "script").write_text(script(shell, capsys))
    (tmp_path / "night.toml").touch()
    found = shown(shell, TYPED, tmp_path)
    assert [word for word in TYPED.values() if f"<{word}>" not in found] == [], found


def test_every_command_and_flag_is_in_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    from job.cli.commands import COMMANDS

    text = script("bash", capsys)
    for command in COMMANDS.values():
        for flag in command.parser()._option_string_actions:
            assert flag in text


def test_without_shtab_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "bash"]) == 2
    told = "completion needs a package that is not installed: pip install 'scoring-job[completion]'"
    assert capsys.readouterr() == ("", f"error: {told}\n")
