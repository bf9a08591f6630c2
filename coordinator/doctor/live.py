"""``doctor --live``: is the coordinator that runs here well? For the healthchecks of containers.

Asked every few seconds, so it loads next to nothing: it reads where the processes of the folder say that they listen,
asks each on loopback, and looks that its listeners take connections. It neither opens the database nor reads a key.
With ``--loop`` it asks only whether the processes' loops turn, for whoever would start them again: a process whose
database is away is not well, and is not helped by a restart either.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVE_FILE_VARIABLE = "WARDROUND_SERVE_FILE"
_CONFIG_VARIABLE = "WARDROUND_CONFIG"
_ANSWER_S = 3.0
_LISTENERS = ("rest", "gateway", "enrolment", "gateway_http1", "enrolment_http1")
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # what is compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAnswer:
    """Whether the processes that were asked are well; the sentence says what is not.

    Attributes:
        code: ``well``, ``not-running``, ``no-answer``, ``part-unwell`` or ``listener-deaf``; programs may compare it.
        processes: the ids of those that live.
    """

    code: str
    sentence: str
    processes: tuple[int, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether a healthcheck passes."""
        return self.code == "well"

    def document(self) -> Mapping[str, object]:
        """What ``--json`` says."""
        return {"ok": self.is_well, "code": self.code, "detail": self.sentence}


def is_live_question(arguments: Sequence[str]) -> bool:
    """Whether a command line of ``wardround-coordinator`` is this one, so that the program need not be loaded."""
    return "doctor" in arguments and "--live" in arguments and "--help" not in arguments


def answer_live(arguments: Sequence[str]) -> int:
    """Answer such a command line; the exit code."""
    parser = argparse.ArgumentParser(prog="wardround-coordinator", add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", choices=["doctor"])
    parser.add_argument("--live", action="store_true", required=True)
    parser.add_argument("--loop", action="store_true")
    config = os.environ.get(_CONFIG_VARIABLE) or "coordinator.yaml"
    parser.add_argument("--config", "-c", type=Path, default=Path(config))
    named = os.environ.get(SERVE_FILE_VARIABLE)
    parser.add_argument("--serve-file", type=Path, default=Path(named) if named else None)
    asked = parser.parse_args(arguments)
    answer = ask_live(asked.config.resolve().parent, asked.serve_file, is_loop_only=asked.loop)
    sys.stdout.write((json.dumps(answer.document(), indent=2) if asked.json else answer.sentence) + "\n")
    return 0 if answer.is_well else 1


def ask_live(folder: Path, serve_file: Path | None = None, *, is_loop_only: bool = False) -> LiveAnswer:
    """Ask the coordinators of a folder that are alive on this machine.

    Args:
        folder: where ``serve`` leaves ``serve.json`` and ``serve-ROLES-PID.json``.
        serve_file: the one process to ask, by the file that ``serve --serve-file`` was given.
        is_loop_only: whether a process is well whose loop turns, whatever it says of its parts.
    """
    files = sorted(folder.glob("serve*.json")) if serve_file is None else [serve_file]
    alive = tuple(said for path in files if (said := said_by_process(path)) is not None)
    if not alive:
        where = f"in {folder}" if serve_file is None else f"as {serve_file} says"
        sentence = f"no coordinator runs here {where}; start one with `serve`, and see its log if it was started"
        return LiveAnswer(code="not-running", sentence=sentence)
    processes = tuple(int(str(said["pid"])) for said in alive)
    for said in alive:
        if (fault := _loop_fault(said) if is_loop_only else _fault(said)) is not None:
            return LiveAnswer(code=fault[0], sentence=f"process {said['pid']}: {fault[1]}", processes=processes)
    return LiveAnswer(code="well", sentence=f"well: {_listed(processes)}", processes=processes)


def _listed(processes: tuple[int, ...]) -> str:
    return ("process " if len(processes) == 1 else "processes ") + ", ".join(map(str, processes))


def said_by_process(path: Path) -> Mapping[str, object] | None:
    """What a process that lives says of itself; None where it does not live, or not on this machine."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        process_id = int(said["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Containers that share a folder share process ids as well; each has a name of its own.
    if said.get("machine", socket.gethostname()) != socket.gethostname():
        return None
    try:
        os.kill(process_id, 0)
    except PermissionError:
        return dict(said)
    except OSError:
        return None
    return dict(said)


def _asked(said: Mapping[str, object], path: str) -> tuple[int, object] | str:
    """A process's status and document, or why there is none."""
    address = said.get("live")
    if not isinstance(address, str):
        return "it is of an earlier version, which cannot be asked; start it again"
    try:
        return _get(address, path)
    except (OSError, ValueError, http.client.HTTPException):
        return f"it does not answer at {address} within {_ANSWER_S:.0f} s: it is stuck; see its log"


def _loop_fault(said: Mapping[str, object]) -> tuple[str, str] | None:
    answer = _asked(said, "/loop")
    return ("no-answer", answer) if isinstance(answer, str) else None


def _fault(said: Mapping[str, object]) -> tuple[str, str] | None:
    answer = _asked(said, "/healthz")
    if isinstance(answer, str):
        return "no-answer", answer
    status, document = answer
    if status != 200:
        unwell = ", ".join(_unwell(document)) or f"its answer is {status}"
        return "part-unwell", f"not at work: {unwell}; `doctor` without --live says why"
    for name in _LISTENERS:
        listener = said.get(name)
        if isinstance(listener, str) and not _takes_connections(listener, is_rest=name == "rest"):
            return "listener-deaf", f"its listener {name} at {listener} does not answer; see its log"
    return None


def _unwell(document: object) -> Iterator[str]:
    checks = document.get("checks") if isinstance(document, dict) else None
    for name, is_well in sorted(checks.items()) if isinstance(checks, dict) else ():
        if not is_well:
            yield str(name)


def _get(address: str, path: str, *, context: ssl.SSLContext | None = None) -> tuple[int, object]:
    host, port = _place(address)
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=_ANSWER_S, context=context)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(1 << 16))


def _takes_connections(address: str, *, is_rest: bool) -> bool:
    try:
        if is_rest:
            return _get(address, "/healthz", context=_unchecked())[0] == 200
        # Those for sites ask for a certificate, and would log every handshake without one.
        with socket.create_connection(_place(address), timeout=_ANSWER_S):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Safety: nothing is said and nothing believed; a process of this machine is asked whether it listens.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return _ANYWHERE.get(host, host), int(port)
