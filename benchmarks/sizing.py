"""What each program takes: memory, CPU and disk of coordinator, agents and trainers in a real demonstration.

Runs ``wardround demo`` in a folder of its own and looks at its processes four times a second. *Idle* is before the
first trainer starts, *in a round* from then on; memory is resident (RSS), the peak as the kernel kept it (VmHWM); CPU
is user and system time of the whole life. Of several sites the largest is told.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROGRAMS = {
    "coordinator": ("coordinator", "serve"),
    "site agent": ("site_agent", "start"),
    "trainer": ("site_agent.training", "serve"),
}
"""How each is told from the others: module and verb of its command line."""
_LOOK_EVERY_S = 0.25


@dataclass(slots=True)
class Watched:
    """One process, as far as it was seen."""

    program: str
    idle_bytes: int = 0
    peak_bytes: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Found:
    """All that was seen of a demonstration."""

    processes: dict[int, Watched] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    is_training: bool = False

    def look(self, root: psutil.Process, work: Path) -> None:
        """Look once at every process below ``root``, and at the folders."""
        for process in root.children(recursive=True):
            try:
                program = program_of(process.cmdline())
                if program is None:
                    continue
                watched = self.processes.setdefault(process.pid, Watched(program))
                self.is_training = self.is_training or program == "trainer"
                watched.peak_bytes = max(watched.peak_bytes, peak_bytes(process.pid))
                watched.cpu_s = sum(process.cpu_times()[:2])
                watched.seconds = time.monotonic() - watched.began
                if not self.is_training:
                    watched.idle_bytes = process.memory_info().rss
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        for name, folder in folders_of(work):
            self.folders[name] = max(self.folders.get(name, 0), used_bytes(folder))

    def rows(self) -> Iterator[dict[str, str | float | None]]:
        """The largest of each program, then the largest folders."""
        for program in PROGRAMS:
            of_it = [watched for watched in self.processes.values() if watched.program == program]
            if of_it:
                idle = max(watched.idle_bytes for watched in of_it)
                longest = max(of_it, key=lambda watched: watched.cpu_s)
                yield {
                    "what": program,
                    "n": len(of_it),
                    "idle_mb": round(idle / 1e6, 1) if idle else None,
                    "peak_mb": round(max(watched.peak_bytes for watched in of_it) / 1e6, 1),
                    "cpu_s": round(longest.cpu_s, 1),
                    "seconds": round(longest.seconds, 1),
                }
        for name, n_bytes in sorted(self.folders.items()):
            yield {"what": f"disk: {name}", "peak_mb": round(n_bytes / 1e6, 1)}


def program_of(command_line: list[str]) -> str | None:
    """Which of the programs a command line starts, if any."""
    for program, (module, verb) in PROGRAMS.items():
        if module in command_line and verb in command_line:
            return program
    return None


def peak_bytes(process_id: int) -> int:
    """The most that was resident in a process's life so far."""
    for line in Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def folders_of(work: Path) -> Iterator[tuple[str, Path]]:
    """Those whose size matters, by what they are."""
    yield "the coordinator's folder", work / "coordinator"
    for site in (work / "sites").glob("*"):
        yield "a site's folder but for jobs", site
        yield "a site's jobs", site / "jobs"


def used_bytes(folder: Path) -> int:
    """What lies in a folder; the jobs of a site are told apart."""
    n_bytes = 0
    for path in folder.rglob("*"):
        if folder.name != "jobs" and "jobs" in path.relative_to(folder).parts[:1]:
            continue
        try:
            n_bytes += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return n_bytes


def measure(*, study: str, sites: int, rounds: int | None, models_dir: Path) -> dict[str, object]:
    """Run a demonstration and watch it.

    Raises:
        CalledProcessError: it did not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="wardround-sizing-") as folder:
        work, log = Path(folder) / "work", Path(folder) / "demo.log"
        words = ["demo", "--study", study, "--sites", str(sites)]
        words += [] if rounds is None else ["--rounds", str(rounds)]
        words += ["--work-dir", str(work), "--models-dir", str(models_dir)]
        found, began = Found(), time.monotonic()
        with log.open("wb") as output:
            command = [sys.executable, "-m", "wardround", *words]
            with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as demo:
                root = psutil.Process(demo.pid)
                while demo.poll() is None:
                    found.look(root, work)
                    time.sleep(_LOOK_EVERY_S)
        if demo.returncode:
            raise subprocess.CalledProcessError(demo.returncode, command, log.read_bytes()[-2000:])
        model_bytes = max((used_bytes(path) for path in models_dir.iterdir()), default=0)
    return {
        "study": study,
        "sites": sites,
        "rounds": rounds,
        "seconds": round(time.monotonic() - began, 1),
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, {platform.machine()}",
        "load_1_min": round(psutil.getloadavg()[0], 1),
        "model_mb": round(model_bytes / 1e6, 1),
        "rows": list(found.rows()),
    }


def main(arguments: list[str]) -> int:
    """Measure, and print a table or one document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sizing", description=__doc__)
    parser.add_argument("--study", default="phenotype-definitions")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="else as the study says")
    parser.add_argument("--models-dir", type=Path, default=Path(".wardround/models"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    document = measure(study=options.study, sites=options.sites, rounds=options.rounds, models_dir=options.models_dir)
    if options.json:
        print(json.dumps(document, indent=2))
        return 0
    print(f"{document['study']}, {document['sites']} sites: {document['machine']}")
    rows = document["rows"]
    assert isinstance(rows, list)
    for row in rows:
        idle = f"idle {row['idle_mb']} MB, " if row.get("idle_mb") else ""
        cpu = f", {row['cpu_s']} CPU-s in {row['seconds']} s" if "cpu_s" in row else ""
        print(f"  {row['what']:32} {idle}peak {row['peak_mb']} MB{cpu}")
    return 0
