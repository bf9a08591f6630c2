"""A trainer that keeps the contract of a job folder and learns nothing: what it does, a file in the job folder says.

    serve --spool DIR          as a process runner starts it
    do-jobs --answers N        as the overseer of ``serve-spools`` starts it, jobs named on the standard input
    run JOB_DIR                as a container is started

It imports nothing of the product, so that it proves the contract and not the code that reads it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

RESULT = {
    "status": "succeeded",
    "records": 120,
    "patients": 60,
    "held_out_records": 12,
    "seconds": 0.1,
    "peak_memory_bytes": 1,
    "device": "cpu",
    "precision": "float32",
    "versions": {},
    "sha256": "ab" * 32,
    "metrics": {},
}


def close(job: Path, result: dict[str, object]) -> None:
    beside = job / "result.json.new"
    beside.write_text(json.dumps(result))
    beside.replace(job / "result.json")


def say(job: Path, step: int) -> None:
    line = {"state": "training", "step": step, "steps": 9, "loss": 1.5, "records_per_s": 9.0, "at": "now"}
    with (job / "progress.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def write_failure(path: str) -> str:
    """How writing to a path fails; empty where it does not."""
    try:
        Path(path).write_text("x")
    except OSError as error:
        return type(error).__name__
    Path(path).unlink()
    return ""


def connect_failure(address: tuple[str, int]) -> str:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError as error:
        return type(error).__name__
    return ""


def what_is_seen(reach: tuple[str, int] | None) -> dict[str, object]:
    """What this process finds of the isolation that it is in."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return {
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "n_routes": len(routes),
        "connect": None if reach is None else connect_failure(reach),
        "write_root": write_failure("/written-by-a-trainer"),
        "write_tmp": write_failure("/tmp/written-by-a-trainer"),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "capabilities": status["CapEff"],
        "no_new_privileges": status["NoNewPrivs"],
        "environment": sorted(os.environ),
    }


def names_in(path: str) -> list[str] | None:
    """What lies in a folder; None where there is none."""
    return sorted(entry.name for entry in Path(path).iterdir()) if Path(path).is_dir() else None


def die() -> None:
    """End as a process that was killed; the first of a container's processes cannot kill itself."""
    if os.getpid() == 1:
        os._exit(137)
    os.kill(os.getpid(), 9)


def fill_memory() -> None:
    """Take memory, and touch it, until somebody minds."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 16))


def act(job: Path) -> None:
    behaviour = json.loads((job / "behaviour.json").read_text())
    starts = job / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    n_lives = len(starts.read_text())
    (job / "pids").write_text(str(os.getpid()))
    match behaviour["do"]:
        case "succeed":
            for number in range(3):
                say(job, number)
            (job / "payload.safetensors").write_bytes(b"payload")
            close(job, RESULT)
        case "fail":
            close(job, {"status": "failed", "code": "data-malformed", "message": "record 7", "advice": "mend it"})
        case "crash":
            sys.exit(9)
        case "killed":
            die()
        case "crash-once":
            say(job, n_lives)
            if n_lives == 1:
                die()
            close(job, RESULT)
        case "fill-memory":
            fill_memory()
        case "hang-once":
            say(job, n_lives)
            if n_lives == 1:
                time.sleep(600)
            close(job, RESULT)
        case "hang":
            say(job, 1)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (job / "child.pid").write_text(str(child.pid))
            time.sleep(600)
        case "look around":
            around = {path: names_in(path) for path in behaviour["at"]}
            (job / "around.json").write_text(json.dumps(around))
            (job / "writes.json").write_text(json.dumps({path: write_failure(path) for path in behaviour["write"]}))
            close(job, RESULT)
        case "look":
            reach = behaviour.get("reach")
            seen = what_is_seen(None if reach is None else (reach[0], reach[1]))
            (job / "seen.json").write_text(json.dumps(seen))
            close(job, RESULT)


def serve(spool: Path) -> None:
    (spool / "ready.json").write_text("{}")
    while not (spool / "stop").exists():
        for job in sorted(spool.glob("*/job.json")):
            if not (job.parent / "result.json").exists():
                act(job.parent)
        time.sleep(0.02)


def do_jobs(answers: int) -> None:
    for line in sys.stdin.buffer:
        act(Path(line.decode().rstrip("\n")))
        os.write(answers, b"done\n")


def main() -> None:
    match sys.argv[1]:
        case "serve":
            serve(Path(sys.argv[3]))
        case "do-jobs":
            do_jobs(int(sys.argv[sys.argv.index("--answers") + 1]))
        case "run":
            act(Path(sys.argv[2]))


main()
