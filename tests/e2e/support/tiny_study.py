"""A study of made-up definitions for the tiny model: quick, and with record counts that appear nowhere by chance."""

from __future__ import annotations

from pathlib import Path

RECORD_COUNTS = (211, 223, 227)
"""Records of each site: primes, so that a count that travels is recognised."""

MODEL_NAME = "tiny"

RUN_YAML = """\
apiVersion: wardround/v1
kind: Run
name: tiny-definitions
purpose: Try the whole way with a model that knows nothing
task: {kind: instruction-tuning, template: chat}
base_model: {name: tiny, sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
adapter: {kind: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj]}
data: {dataset: tiny-definitions, min_records: 50}
local: {steps: 6, batch_size: 4, max_length: 96, learning_rate: 2.0e-2, schedule: cosine, seed: 7}
aggregation: {algorithm: fedavg-lora}
cohort: {sites: [st-mary, charite, ucsf], quorum: 3, round_deadline_s: 240, phase_deadline_s: 60}
secure_aggregation: {min_cohort: 3}
privacy: {clip_norm: 20.0, weight_cap: 10000}
evaluation: {holdout_fraction: 0.1, max_records: 16}
rounds: 3
"""

PREPARE_PY = """\
import argparse, json, pathlib

COUNTS = {counts}

parser = argparse.ArgumentParser()
parser.add_argument("--sites", type=int)
parser.add_argument("--out", type=pathlib.Path)
arguments = parser.parse_args()
for number in range(1, arguments.sites + 1):
    with (arguments.out / f"site-{{number}}.jsonl").open("w") as file:
        for index in range(COUNTS[number - 1]):
            name = f"sign {{number}}-{{index}}"
            record = {{"id": f"T{{number}}:{{index}}", "prompt": f"Define {{name}}."}}
            record["completion"] = f"It is a {{name}} of organ {{number}}."
            file.write(json.dumps(record) + "\\n")
"""


STUDY_YAML = """\
title: Made-up definitions
seed_system: OpenFedLLM
data: {source: made up on the spot}
sites: 3
metric: {name: loss, unit: nats a token, better: lower}
table: {seeds: 2}
"""


def write_tiny_study(folder: Path) -> None:
    """Write ``study.yaml``, ``run.yaml`` and ``prepare.py``."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY_YAML)
    (folder / "run.yaml").write_text(RUN_YAML)
    (folder / "prepare.py").write_text(PREPARE_PY.format(counts=RECORD_COUNTS))
