"""The processes of one federation: started, killed and started again by name, each with a log; all ended at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

N_TAIL_LINES = 25
_N_STACK_CHARACTERS = 12_000
_GRACE_S = 15.0


@dataclass(slots=True, kw_only=True)
class Process:
    """One program as it is started each time; ``is_wanted`` while it is to run, ``comes_back`` after it was killed."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str]
    is_wanted: bool = False
    comes_back: bool = True
    n_starts: int = 0
    running: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """The number of the running process."""
        assert self.running is not None, f"{self.name} was never started"
        return self.running.pid

    def log_text(self) -> str:
        """Everything that it wrote, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Processes:
    """Starts programs and ends them. What dies by SIGKILL is started again at the next look, as a supervisor would."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**environment, "PYTHONFAULTHANDLER": "1"}
        self._all: dict[str, Process] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, name: str) -> Process:
        return self._all[name]

    def define(self, name: str, arguments: Sequence[str], **environment: str) -> None:
        """Say how a program is called; nothing is started."""
        self._all[name] = Process(
            name=name,
            arguments=tuple(arguments),
            log=self._folder / f"{name}.log",
            environment={**self._environment, **environment},
        )

    def start(self, name: str) -> None:
        process = self._all[name]
        with process.log.open("ab") as output:
            process.running = subprocess.Popen(
                list(process.arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(process.environment),
                start_new_session=True,
            )
        process.is_wanted = True
        process.n_starts += 1

    def is_running(self, name: str) -> bool:
        running = self._all[name].running
        return running is not None and running.poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL, to the program alone; it stays down until it is started."""
        process = self._all[name]
        process.is_wanted = False
        assert process.running is not None
        process.running.kill()
        process.running.wait()

    def stop(self, name: str) -> int:
        """SIGTERM, and wait; returns the exit status."""
        process = self._all[name]
        process.is_wanted = False
        assert process.running is not None
        with contextlib.suppress(ProcessLookupError):
            process.running.terminate()
        try:
            return process.running.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            # Python writes the stack of each thread to the log: what it waits for is what the test has found.
            process.running.send_signal(signal.SIGABRT)
            process.running.wait()
            log = process.log_text()[-_N_STACK_CHARACTERS:]
            raise AssertionError(f"{name} did not stop within {_GRACE_S:.0f} s of SIGTERM\n{log}") from None

    def look(self) -> None:
        """Start again what was killed; anything else that ended by itself fails the test."""
        for process in self._all.values():
            if not process.is_wanted or process.running is None:
                continue
            code = process.running.poll()
            if code == -signal.SIGKILL and process.comes_back:
                self.start(process.name)
            elif code == -signal.SIGKILL:
                process.is_wanted = False
            elif code is not None:
                raise AssertionError(f"{process.name} ended with exit status {code}\n{self.tails()}")

    def tails(self) -> str:
        """The last lines of every log."""
        parts = []
        for process in self._all.values():
            lines = process.log_text().splitlines()[-N_TAIL_LINES:]
            parts.append("\n".join([f"--- {process.name} (started {process.n_starts} times)", *lines]))
        return "\n".join(parts)

    def end_all(self) -> None:
        """End everything, and whatever it left behind."""
        started = [process for process in self._all.values() if process.running is not None]
        for process in started:
            process.is_wanted = False
            if process.running is not None and process.running.poll() is None:
                process.running.send_signal(signal.SIGCONT)
                process.running.terminate()
        for process in started:
            assert process.running is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.running.wait(timeout=_GRACE_S)
            # Safety: the group is the child's own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.running.pid, signal.SIGKILL)
            process.running.wait()


def end_processes_of(folder: Path) -> list[str]:
    """End what still runs on a folder, such as the trainer of an agent that was killed; returns what that was."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(" ".join(words))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return found
