"""Make the base model of the study: its vocabulary, as the run of vocabulary.yaml would release it, and a small model.

The counts of all fifteen sites are added up here in the open, for the data are public; what is counted, left out and
published is what the vocabulary run counts, leaves out and publishes. The same files come out on every machine.

    python examples/trial-timelines/make_base.py --out DIR [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from fl_protocol.errors import WardroundError
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from site_agent.training.code_list import count_patients, published_layout, vocabulary_of_state
from site_agent.training.data import Dataset, split_dataset
from site_agent.training.formats import format_called
from site_agent.training.timeline_base import TimelineShape, make_timeline_base
from site_agent.training.timelines.timeline import Timeline
from site_agent.training.timelines.vocabulary import Vocabulary, read_vocabulary

STUDY = Path(__file__).parent


def read_sites(spec: RunSpec, data: Path) -> dict[str, Dataset]:
    """The datasets of a run's sites, as ``prepare.py`` wrote them."""
    read = format_called("timeline-rows").read
    return {name: read(data / f"{name}.csv", patient_field="patient_id") for name in spec.cohort.names}


def released_vocabulary(spec: RunSpec, datasets: Mapping[str, Dataset], codes: Vocabulary) -> Vocabulary:
    """What a vocabulary run over these sites releases: its own halves, and a plain sum in the middle."""
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    layout = published_layout(spec, len(codes.codes))
    sums: dict[str, np.ndarray] = {}
    for dataset in datasets.values():
        evaluation = spec.evaluation
        split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
        counted = [record for record in split.training if isinstance(record, Timeline)]
        raw = {"code_patients": count_patients(counted, codes.codes)}
        payload = algorithm.weigh(raw, n_records=len(dataset.records), spec=spec, layout=layout, kind=RoundKind.TRAIN)
        sums = {name: sums.get(name, np.zeros_like(counts)) + counts for name, counts in payload.items()}
    state = PublicState(version=0, adapter={"published": np.zeros(len(codes.codes), dtype=np.float32)})
    folded = algorithm.fold(sums, state, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=len(datasets))
    return vocabulary_of_state(folded.state, codes.codes)


def make_base(out: Path, *, data: Path) -> dict[str, object]:
    """Write the base into ``out`` and give its digests.

    Args:
        out: gets the base.
        data: what ``prepare.py`` wrote without ``--sites``.

    Raises:
        WardroundError: a file is not what it should be.
    """
    counting = parse_run_spec(yaml.safe_load((STUDY / "vocabulary.yaml").read_bytes()))
    training = parse_run_spec(yaml.safe_load((STUDY / "run.yaml").read_bytes()))
    vocabulary = released_vocabulary(counting, read_sites(counting, data), read_vocabulary(data / "codes.txt"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_bytes(vocabulary.to_bytes())
        shape = TimelineShape(max_length=training.local.max_length)
        return make_timeline_base(file, out=out, shape=shape, seed=training.local.seed)


def main() -> int:
    """Read the command line; 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets the base")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    sys.path.insert(0, str(STUDY))
    from prepare import PreparationError, prepare

    try:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            made = make_base(arguments.out, data=Path(folder))
    except (PreparationError, WardroundError, OSError) as error:
        print(f"make_base: {error}", file=sys.stderr)
        return 1
    print(json.dumps(made) if arguments.json else "\n".join(f"{key}: {value}" for key, value in made.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
