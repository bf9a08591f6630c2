"""The coordinator of a demonstration: its folder, its process, and a client with the first admin's token."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.client.connection import Connection, read_token
from wardround.client.rest import RestClient
from wardround.demo.processes import Supervisor, wait_for_file
from wardround.demo.workspace import Programs, Workspace
from wardround.documents import document_from_text, text_of

NAME = "coordinator"
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHost:
    """A coordinator that runs. ``client`` is signed in as its admin; whoever started it closes it."""

    client: RestClient
    url: str


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
    token = read_token(folder / "admin.token")
    client = RestClient(Connection(url=url, root_file=folder / "root.pem", token=token))
    return CoordinatorHost(client=client, url=url)
