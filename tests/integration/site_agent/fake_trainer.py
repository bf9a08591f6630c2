"""A trainer that obeys the job directory's contract and learns nothing: what it does, a file in the job folder says.

It imports nothing of the product, so that it proves the contract and not the code that reads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

RESULT = {
    "status": "succeeded",
    "records": 120,
    "patients": 120,
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


def act(job: Path) -> None:
    behaviour = json.loads((job / "behaviour.json").read_text())
    starts = job / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    (job / "environment.json").write_text(json.dumps(dict(os.environ)))
    n_lives = len(starts.read_text())
    if behaviour["do"] == "one-step-a-life":
        say(job, n_lives)
        if n_lives < 9:
            os.kill(os.getpid(), 9)
        close(job, RESULT)
        return
    if behaviour["do"] == "die-at-once":
        os.kill(os.getpid(), 9)
    for number in range(3):
        say(job, number)
    match behaviour["do"]:
        case "succeed":
            (job / "payload.safetensors").write_bytes(b"payload")
            close(job, RESULT)
        case "fail":
            close(job, {"status": "failed", "code": "data-malformed", "message": "record 7", "advice": "fix it"})
        case "crash":
            sys.exit(9)
        case "crash-once":
            if n_lives == 1:
                os.kill(os.getpid(), 9)
            close(job, RESULT)
        case "hang-once":
            if n_lives == 1:
                time.sleep(600)
            close(job, RESULT)
        case "beat":
            for _ in range(40):
                time.sleep(0.05)
                os.utime(job / "progress.jsonl")
            close(job, RESULT)
        case "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (job / "child.pid").write_text(str(child.pid))
            time.sleep(600)


def main() -> None:
    verb, flag, folder = sys.argv[1:]
    assert (verb, flag) == ("serve", "--spool")
    spool = Path(folder)
    (spool / "ready.json").write_text("{}")
    while not (spool / "stop").exists():
        for job in sorted(spool.glob("*/job.json")):
            if not (job.parent / "result.json").exists():
                act(job.parent)
        time.sleep(0.02)


main()
