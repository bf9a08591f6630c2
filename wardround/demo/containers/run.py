"""The last stage: the run, from its creation to a verified release."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

from wardround.demo.containers.enrol import ContainerSites
from wardround.demo.containers.places import Places
from wardround.demo.coordinator_host import CoordinatorHost
from wardround.demo.live_table import Progress
from wardround.demo.ready_federation import ReadyFederation
from wardround.demo.summary import DemoReport
from wardround.documents import Document, section_of, text_of

_PATIENCE_S = 600.0
"""For how long the coordinator's container may be away; the sites wait as well."""


def run(
    sites: ContainerSites,
    coordinator: CoordinatorHost,
    run_spec: dict[str, object],
    *,
    progress: Progress,
    is_again: bool,
) -> DemoReport:
    """Create and start the run, or take up the one that an earlier start of this program began; then close it.

    Args:
        sites: as they were enrolled.
        coordinator: its people, signed in.
        run_spec: as it was prepared.
        progress: who is told.
        is_again: make another run, whatever became of the last one.

    Raises:
        CommandError: it failed; what is there is kept.
    """
    places = sites.places
    federation = ReadyFederation(
        coordinator=coordinator,
        # Its own one question in the place of data that it does not see.
        sites=tuple(replace(host, data_file=places.question_file) for host in sites.hosts()),
        run_spec=run_spec,
        base_model_dir=places.models / str(section_of(run_spec, "base_model").get("name")),
        workspace=places.workspace,
        supervisor=sites.supervisor,
        programs=sites.programs,
        progress=progress,
        began=time.monotonic(),
        patience_s=_PATIENCE_S,
    )
    run_id = _begin(places, federation, is_again=is_again)
    federation.watch(run_id)
    for folder in (places.workspace.release, places.home / "candidate"):
        shutil.rmtree(folder, ignore_errors=True)
    report = federation.report(sites.study, run_id, federation.closing().close(run_id))
    text = json.dumps(report.to_document(), ensure_ascii=False, indent=2)
    places.workspace.summary_file.write_text(text + "\n", encoding="utf-8")
    return report


def _begin(places: Places, federation: ReadyFederation, *, is_again: bool) -> str:
    run_id = None if is_again else places.read_run_id()
    if run_id is None:
        run_id = federation.create_run()
        places.keep_run_id(run_id)
    found = federation.coordinator.client.get(f"/api/v1/runs/{run_id}")
    if _is_new(found):
        federation.start_run(run_id)
    else:
        federation.progress.say(f"Run {run_id} was started before; it is {text_of(found, 'state')}.")
    return run_id


def _is_new(run: Document) -> bool:
    return text_of(run, "state") == "DRAFT"
