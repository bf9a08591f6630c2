"""Where a token comes from: a file by name, a redirection, or a person."""

from __future__ import annotations

import io
import os
import pty
import sys
from pathlib import Path

import pytest

from wardround.cli.account import ask_for_token
from wardround.errors import UsageInvalidError

_PROGRAM = "import sys; from wardround.cli.account import ask_for_token; print('got ' + ask_for_token(sys.stdin))"


def test_token_of_a_redirection_is_read() -> None:
    assert ask_for_token(io.StringIO("wrt-secret\n")) == "wrt-secret"


def test_redirection_of_nothing_says_how_to_give_a_token() -> None:
    with pytest.raises(UsageInvalidError, match="standard input") as refused:
        ask_for_token(io.StringIO(""))
    assert "--token-file" in refused.value.advice


def test_redirection_counts_where_there_is_a_terminal_too(tmp_path: Path) -> None:
    file = tmp_path / "admin.token"
    file.write_text("wrt-secret\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.dup2(os.open(file, os.O_RDONLY), 0)
        os.execv(sys.executable, [sys.executable, "-c", _PROGRAM])
    said = b""
    while True:
        try:
            found = os.read(terminal, 1024)
        except OSError:  # the terminal's other end is closed
            break
        if not found:
            break
        said += found
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"got wrt-secret" in said
    assert b"Token" not in said
