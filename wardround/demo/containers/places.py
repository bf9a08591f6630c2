"""Where the volumes of the demonstration are mounted, and what has been done already. Knows paths, starts nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from wardround.client.run_upload import read_spec_file
from wardround.demo.workspace import Workspace
from wardround.documents import document_from_text, text_of
from wardround.errors import UsageInvalidError

STATE_AT_SITE = Path("/srv/wardround")
"""Where a site's agent has its state folder; this program has it elsewhere, beside those of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The mount points.

    Attributes:
        home: the demonstration's own volume: specification, adapter, tokens of its people, release, logs; below
            ``sites`` the state folders of the sites.
        models: base models, as every trainer sees them, too.
        data: below it one volume a site, which that site's trainer sees as ``data_at_trainer``.
        handover: what the coordinator's ``init`` handed over: the admin's token and the root certificate.
    """

    home: Path = Path("/srv/demo")
    models: Path = Path("/models")
    data: Path = Path("/data")
    data_at_trainer: Path = Path("/data")
    handover: Path = Path("/srv/handover")

    @property
    def workspace(self) -> Workspace:
        """The volume, as a demonstration's folder."""
        return Workspace(root=self.home, is_named=True)

    @property
    def is_prepared(self) -> bool:
        """Whether the first stage came to its end: the adapter is its last work."""
        return self.prepared_file.is_file()

    @property
    def prepared_file(self) -> Path:
        """Names the study that was prepared."""
        return self.home / "prepared.json"

    @property
    def question_file(self) -> Path:
        """One held-out record of the first site, to show what was learned; all that this program keeps of any."""
        return self.home / "question.jsonl"

    def read_run_spec(self) -> dict[str, object]:
        """The specification that the first stage wrote.

        Raises:
            UsageInvalidError: it has not been run.
        """
        if not self.is_prepared:
            raise UsageInvalidError(
                "the demonstration is not prepared", advice="Start it whole: docker compose --profile demo up"
            )
        return dict(read_spec_file(self.workspace.run_file))

    def read_run_id(self) -> str | None:
        """The run that an earlier start created."""
        file = self._run_id_file
        return text_of(document_from_text(file.read_text(), source=file.name), "run_id") if file.is_file() else None

    def keep_run_id(self, run_id: str) -> None:
        """Remember it, for a start after this one."""
        self._run_id_file.write_text(json.dumps({"run_id": run_id}) + "\n")

    @property
    def _run_id_file(self) -> Path:
        return self.home / "run-id.json"
