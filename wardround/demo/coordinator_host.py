"""The coordinator of a demonstration: its folder, its process, its people: an admin, a study lead, a privacy officer.

Each has a token of their own, and the two who sign releases a passphrase; all lie in its folder, since all are you.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from wardround.client.connection import Connection, read_token, write_secret
from wardround.client.rest import RestClient
from wardround.demo.processes import Supervisor, wait_for_file
from wardround.demo.workspace import Programs, Workspace
from wardround.documents import Document, document_from_text, text_of

NAME = "coordinator"
LEAD = "demo-lead"
LEAD_TOKEN = "lead.token"  # noqa: S105 # a file's name
LEAD_PASSPHRASE = "lead.passphrase"  # noqa: S105 # a file's name
PRIVACY_OFFICER = "demo-privacy-officer"
PRIVACY_TOKEN = "privacy-officer.token"  # noqa: S105 # a file's name
PRIVACY_PASSPHRASE = "privacy-officer.passphrase"  # noqa: S105 # a file's name
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatory:
    """Somebody who signs releases: a connection in their name, and where their passphrase lies."""

    name: str
    client: RestClient
    passphrase_file: Path

    def sign(self, release_id: str, *, manifest_sha256: str, meaning: str) -> Document:
        """Sign a release as what one reviewed."""
        request = {
            "meaning": meaning,
            "manifest_sha256": manifest_sha256,
            "passphrase": read_token(self.passphrase_file),
        }
        return self.client.post(f"/api/v1/releases/{release_id}:approve", request)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorHost:
    """A coordinator that runs. ``client`` is signed in as its admin, the others as what they are called.

    Whoever creates a run does not start it, and a release is signed by two. Whoever started the coordinator closes all.
    """

    client: RestClient
    lead: Signatory
    privacy_officer: Signatory
    url: str

    def close(self) -> None:
        """Close the connections of all."""
        self.client.close()
        self.lead.client.close()
        self.privacy_officer.client.close()


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
    return sign_in(url, root_file=folder / "root.pem", admin_token_file=folder / "admin.token", folder=folder)


def sign_in(url: str, *, root_file: Path, admin_token_file: Path, folder: Path) -> CoordinatorHost:
    """All people of a coordinator, signed in; who is not there yet is made, and their token put into ``folder``.

    Raises:
        CommandError: the coordinator does not answer, or refuses.
    """
    client = RestClient(Connection(url=url, root_file=root_file, token=read_token(admin_token_file)))
    for name, role, token in ((LEAD, "study-lead", LEAD_TOKEN), (PRIVACY_OFFICER, "privacy-officer", PRIVACY_TOKEN)):
        if not (folder / token).is_file():
            _add_person(client, name, role=role, token_file=folder / token)
    lead, privacy_officer = signatories(url, root_file=root_file, folder=folder)
    for person in (lead, privacy_officer):
        if person.passphrase_file.is_file():
            continue
        # Each chooses their own; the admin, who made their accounts, does not know it.
        passphrase = secrets.token_urlsafe(18)
        person.client.post("/api/v1/me/passphrase", {"passphrase": passphrase})
        write_secret(person.passphrase_file, passphrase.encode() + b"\n")
    return CoordinatorHost(client=client, lead=lead, privacy_officer=privacy_officer, url=url)


def signatories(url: str, *, root_file: Path, folder: Path) -> tuple[Signatory, Signatory]:
    """The study lead and the privacy officer of a coordinator's folder, signed in; whoever asks closes both."""

    def person(name: str, token: str, passphrase: str) -> Signatory:
        client = RestClient(Connection(url=url, root_file=root_file, token=read_token(folder / token)))
        return Signatory(name=name, client=client, passphrase_file=folder / passphrase)

    return (
        person(LEAD, LEAD_TOKEN, LEAD_PASSPHRASE),
        person(PRIVACY_OFFICER, PRIVACY_TOKEN, PRIVACY_PASSPHRASE),
    )


def _add_person(admin: RestClient, name: str, *, role: str, token_file: Path) -> None:
    admin.post("/api/v1/users", {"name": name, "roles": [role]})
    made = admin.post("/api/v1/tokens", {"user_id": name, "label": "demonstration"})
    write_secret(token_file, text_of(made, "token").encode() + b"\n")
