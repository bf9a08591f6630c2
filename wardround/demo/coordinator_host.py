"""The coordinator of a demonstration: its folder, its process, and its two people, an admin and a study lead."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.client.connection import Connection, read_token, write_secret
from wardround.client.rest import RestClient
from wardround.demo.processes import Supervisor, wait_for_file
from wardround.demo.workspace import Programs, Workspace
from wardround.documents import document_from_text, text_of

NAME = "coordinator"
LEAD = "demo-lead"
LEAD_TOKEN = "lead.token"  # noqa: S105 # a file's name
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHost:
    """A coordinator that runs. ``client`` is signed in as its admin, ``lead`` as a study lead.

    Two people, because whoever creates a run does not start it. Whoever started the coordinator closes both.
    """

    client: RestClient
    lead: RestClient
    url: str

    def close(self) -> None:
        """Close the connections of both."""
        self.client.close()
        self.lead.close()


def start_coordinator(workspace: Workspace, supervisor: Supervisor, programs: Programs) -> CoordinatorHost:
    """``wardround-coordinator init`` and ``serve``, on ports that are free.

    Raises:
        DemoFailedError: it did not come up; the end of its log is in the error.
    """
    folder = workspace.coordinator
    ports = ("--rest-port", "0", "--gateway-port", "0", "--enrolment-port", "0")
    supervisor.run_json(NAME, (*programs.coordinator, "--json", "init", str(folder), *ports))
    supervisor.start(NAME, (*programs.coordinator, "serve", "--config", str(folder / "coordinator.yaml")))
    serve_file = folder / "serve.json"
    wait_for_file(serve_file, supervisor, timeout_s=_READY_TIMEOUT_S, what="the coordinator")
    addresses = document_from_text(serve_file.read_text(encoding="utf-8"), source="serve.json")
    url = f"https://{text_of(addresses, 'rest')}"
    root = folder / "root.pem"
    client = RestClient(Connection(url=url, root_file=root, token=read_token(folder / "admin.token")))
    client.post("/api/v1/users", {"name": LEAD, "roles": ["study-lead"]})
    made = client.post("/api/v1/tokens", {"user_id": LEAD, "label": "demonstration"})
    write_secret(folder / LEAD_TOKEN, text_of(made, "token").encode() + b"\n")
    lead = RestClient(Connection(url=url, root_file=root, token=read_token(folder / LEAD_TOKEN)))
    return CoordinatorHost(client=client, lead=lead, url=url)
