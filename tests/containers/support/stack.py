"""A compose project of a test: started, asked, and taken down with everything that is its own."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[3]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One project.

    Attributes:
        name: of the project; names of its containers, volumes and networks begin with it.
        files: compose files, in their order.
        environment: what `docker` is called with; the variables of the files are in it.
        profiles: that are on.
        prefix: before every command, such as what enters a network namespace.
    """

    name: str
    files: tuple[Path, ...]
    environment: Mapping[str, str]
    profiles: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    def compose(self, *words: str, timeout_s: float = 300.0, is_checked: bool = True) -> str:
        """`docker compose` on this project; its standard output."""
        options = [word for file in self.files for word in ("--file", str(file))]
        options += [word for profile in self.profiles for word in ("--profile", profile)]
        done = self._run(
            ["docker", "compose", "--ansi=never", "--project-name", self.name, *options, *words], timeout_s
        )
        if is_checked and done.returncode != 0:
            logs = self.compose("logs", "--no-color", "--tail", "40", is_checked=False)
            raise AssertionError(
                f"compose {' '.join(words)}: {done.returncode}\n{done.stderr[-4000:]}\n{logs[-12000:]}"
            )
        return done.stdout

    def docker(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """`docker` on this engine."""
        return self._run(["docker", *words], timeout_s)

    def run_in(self, service: str, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command in the running container of a service."""
        return self.docker("exec", self.container(service), *words, timeout_s=timeout_s)

    def container(self, service: str) -> str:
        """The id of a service's container; those of `compose run` do not count."""
        labels = (f"project={self.name}", f"service={service}", "oneoff=False")
        filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        lines = self.docker("ps", "--all", "--no-trunc", "--quiet", *filters).stdout.split()
        assert len(lines) == 1, f"{service}: {lines}"
        return lines[0]

    def logs(self, service: str) -> str:
        """What a service wrote, byte for byte: `compose logs` puts codes of a terminal before the lines."""
        done = self.docker("logs", self.container(service))
        return done.stdout + done.stderr

    def inspect(self, service: str) -> dict[str, object]:
        """The engine's account of a service's container."""
        done = self.docker("inspect", self.container(service))
        (document,) = json.loads(done.stdout)
        return dict(document)

    def state(self, service: str) -> tuple[str, int]:
        """Whether it runs, and its exit code."""
        state = self.inspect(service)["State"]
        assert isinstance(state, dict)
        return str(state["Status"]), int(str(state["ExitCode"]))

    def wait_until(self, what: str, look: Callable[[], T | None], *, timeout_s: float, every_s: float = 1.0) -> T:
        """Look until there is something; when there is not, the end of every log is in the error."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--no-color", "--tail", "40", is_checked=False)
                raise AssertionError(f"{self.name}: not within {timeout_s:.0f} s: {what}\n{logs[-16000:]}")
            time.sleep(every_s)

    def wait_for_end(self, service: str, *, timeout_s: float) -> int:
        """The exit code of a service that ends by itself."""
        return (
            self.wait_until(
                f"{service} ends",
                lambda: (self.state(service)[1] + 1) if self.state(service)[0] == "exited" else None,
                timeout_s=timeout_s,
            )
            - 1
        )

    def down(self) -> None:
        """Remove containers, networks and volumes of this project, and nothing else."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", is_checked=False)

    def _run(self, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *words],
            cwd=ROOT,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def project_name(label: str) -> str:
    """A name that no other test has, nor another checkout's."""
    return re.sub(r"[^a-z0-9-]", "-", f"wrtest-{ROOT.name}-{label}".lower())
