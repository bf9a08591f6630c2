"""A federation in which everything is up: its run is created and started, watched to its end, and told about."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from wardround.client.run_upload import create_run, read_initial_adapter
from wardround.demo.closing import ClosedRun, Closing
from wardround.demo.coordinator_host import CoordinatorHost
from wardround.demo.live_table import Progress
from wardround.demo.picture import Picture, RoundLine, round_lines, site_line
from wardround.demo.processes import Supervisor
from wardround.demo.shown_metric import change_of
from wardround.demo.site_host import SiteHost
from wardround.demo.summary import DemoReport
from wardround.demo.workspace import Programs, Workspace
from wardround.documents import Document, documents_of, optional_number_of, section_of, text_of
from wardround.errors import DemoFailedError, UnavailableError
from wardround.studies.catalogue import Study

_LOOK_EVERY_S = 1.0
_APPROVAL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyFederation:
    """Everything is up for a run.

    Attributes:
        began: of the demonstration, by the monotonic clock.
        patience_s: for how long a coordinator may not answer while a run is watched; it may be restarting.
    """

    coordinator: CoordinatorHost
    sites: tuple[SiteHost, ...]
    run_spec: dict[str, object]
    base_model_dir: Path
    workspace: Workspace
    supervisor: Supervisor
    programs: Programs
    progress: Progress
    began: float
    patience_s: float = 0.0

    def create_run(self) -> str:
        """Create the run as the study lead; returns its id."""
        adapter = read_initial_adapter(self.workspace.adapter)
        return text_of(create_run(self.coordinator.lead.client, self.run_spec, adapter), "run_id")

    def start_run(self, run_id: str) -> None:
        """Start it as another person than the one who created it."""
        self.coordinator.client.post(f"/api/v1/runs/{run_id}:start")
        self.progress.say(f"Run {run_id} is started; each site's policy decides.")

    def watch(self, run_id: str) -> None:
        """Look until the run is completed, and notice what dies or stalls meanwhile.

        Raises:
            DemoFailedError: it ended otherwise, a process died, or sites did not approve.
            UnavailableError: the coordinator did not answer for longer than ``patience_s``.
        """
        with self.progress.watching():
            picture = self._watch(run_id)
        if picture.run_state == "COMPLETED":
            return
        reasons = [f"round {line.index}: {line.reason}" for line in picture.rounds if line.reason]
        raise DemoFailedError(
            f"the run ended as {picture.run_state} ({picture.reason or 'no reason given'})",
            advice="The logs of the sites say more.",
            log_tail=reasons,
        )

    def closing(self) -> Closing:
        """What is to be done after the last round."""
        return Closing(
            coordinator=self.coordinator,
            sites=self.sites,
            run_spec=self.run_spec,
            base_model_dir=self.base_model_dir,
            workspace=self.workspace,
            supervisor=self.supervisor,
            programs=self.programs,
            progress=self.progress,
        )

    def report(self, study: Study, run_id: str, closed: ClosedRun) -> DemoReport:
        """What is told of a run that was closed."""
        base_model = section_of(self.run_spec, "base_model")
        metrics = closed.metrics
        rounds = documents_of(metrics, "rounds")
        return DemoReport(
            run_id=run_id,
            study=study.name,
            sites=tuple(site.name for site in self.sites),
            base_model=str(base_model.get("name")),
            base_model_sha256=str(base_model.get("sha256")),
            rounds=closed.rounds,
            eval_loss_before=optional_number_of(metrics, "eval_loss_before"),
            eval_loss_after=optional_number_of(metrics, "eval_loss_after"),
            metrics={"rounds": list(rounds)},
            change=change_of(study.description.metric, rounds),
            generation=closed.generation,
            release_dir=self.workspace.release,
            work_dir=self.workspace.root,
            audit_rows=closed.audit_rows,
            seconds=time.monotonic() - self.began,
        )

    def _watch(self, run_id: str) -> Picture:
        answered_at = time.monotonic()
        approve_until = answered_at + _APPROVAL_TIMEOUT_S
        while True:
            self.supervisor.check_alive()
            try:
                run, rounds = self._look(run_id)
            except UnavailableError:
                if time.monotonic() - answered_at > self.patience_s:
                    raise
                self.progress.say("The coordinator does not answer; the run goes on when it does.")
                time.sleep(_LOOK_EVERY_S)
                continue
            answered_at = time.monotonic()
            picture = self._picture(run, rounds)
            self.progress.show(picture)
            if picture.has_ended:
                return picture
            if picture.run_state == "AWAITING_SITES" and answered_at > approve_until:
                raise self._unapproved(run)
            time.sleep(_LOOK_EVERY_S)

    def _look(self, run_id: str) -> tuple[Document, tuple[RoundLine, ...]]:
        client = self.coordinator.client
        return client.get(f"/api/v1/runs/{run_id}"), round_lines(client.pages(f"/api/v1/runs/{run_id}/rounds"))

    def _picture(self, run: Document, rounds: tuple[RoundLine, ...]) -> Picture:
        return Picture(
            run_state=text_of(run, "state"),
            reason=None if run.get("reason") is None else str(run.get("reason")),
            waits_for=str(run.get("waits_for") or ""),
            sites=tuple(site_line(site.name, site.status_file) for site in self.sites),
            rounds=rounds,
            seconds=time.monotonic() - self.began,
        )

    def _unapproved(self, run: Document) -> DemoFailedError:
        approved = {str(approval.get("site_id")) for approval in documents_of(run, "approvals")}
        silent = next((site for site in self.sites if site.name not in approved), None)
        message = f"not every site approved the run within {_APPROVAL_TIMEOUT_S:.0f} s: {run.get('waits_for')}"
        tail = () if silent is None else silent.log_tail()
        advice = "The site's log says which rule of its policy denied it."
        return DemoFailedError(message, advice=advice, log_tail=tail)
