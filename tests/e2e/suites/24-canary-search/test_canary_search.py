"""Records, file names, keys, tokens and codes are planted texts; after whole runs everything is searched for them.

Everything: each party's folder with its databases and logs, what the programs printed, every message as it was before
TLS, what REST answers, the release, both logs' exports as JSON and for a SIEM; and the same after a site was given
records that cannot be read, at registration and behind the register's back. A canary may be where it belongs and
nowhere else; each such place is named here. That the search finds what is there is tested first.
"""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.e2e.support import recording_site
from tests.e2e.support.canaries import (
    Canary,
    Sighting,
    key_canary,
    new_text,
    search_bytes,
    search_file,
    secret_canary,
    text_canary,
)
from tests.e2e.support.federation import Federation
from tests.e2e.support.template import ENVIRONMENT, SMALL, Template, make_template, records_of
from tests.e2e.support.verdicts import verified_outcome
from wardround.client.rest import RestClient
from wardround.documents import Document

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

BAD_SITE = "ucsf"
REGISTER = "datasets-register"
FIELDS = ("id", "prompt", "completion")
REST = (
    "/api/v1/me",
    "/api/v1/runs",
    "/api/v1/runs/{run_id}",
    "/api/v1/runs/{run_id}/rounds",
    "/api/v1/runs/{run_id}/metrics",
    "/api/v1/sites",
    "/api/v1/users",
    "/api/v1/releases",
    "/api/v1/audit/events",
    "/api/v1/audit/checkpoints",
    "/openapi.json",
    "/readyz",
)


@dataclass(slots=True)
class Planted:
    """What was planted: the texts of each site's records and paths, and the codes that were given out."""

    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    codes: list[str] = field(default_factory=list)

    def write_data(self, site: str, folder: Path) -> Path:
        """A site's records, each with the site's canaries, in a file and a folder whose names are canaries."""
        self.texts[site] = {name: new_text(f"{name} of a patient of {site}") for name in FIELDS}
        self.paths[site] = f"cohort-{secrets.token_hex(6)}"
        file = folder / f"data-{self.paths[site]}" / f"records-{self.paths[site]}.jsonl"
        file.parent.mkdir(parents=True)
        records = [self.record(site, record) for record in records_of(site)]
        file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self.files[site] = file
        return file

    def record(self, site: str, record: dict[str, str]) -> dict[str, str]:
        """A record with the canaries first, so that nothing cuts them off."""
        return {name: f"{self.texts[site][name]} {record[name]}" for name in FIELDS}


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def template_of_canaries(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Set up with planted data, and every code that was given out remembered."""
    post = RestClient.post

    def remembering(self: RestClient, path: str, body: Document | None = None) -> Document:
        answer = post(self, path, body)
        if isinstance(answer.get("code"), str):
            planted.codes.append(str(answer["code"]))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RestClient, "post", remembering)
        template = make_template(tmp_path_factory.mktemp("canaries"), write_data=planted.write_data)
    assert len(planted.codes) >= len(planted.files)
    return template


@pytest.fixture(scope="module")
def federation(template_of_canaries: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation whose sites note every message that they send and get, as it is before TLS."""
    made = Federation(template_of_canaries, tmp_path_factory.mktemp("searched") / "work", sites=SMALL.sites)
    for site in SMALL.sites:
        made.define_site(site, program=str(Path(recording_site.__file__)))
        made.processes.define(
            site, made.processes[site].arguments, WIRE_RECORD_DIR=str(made.folder.parent / "wire" / site)
        )
    yield made
    made.end()


@pytest.fixture(scope="module")
def run_id(federation: Federation) -> str:
    """A run to its end, its release downloaded, its logs exported in both forms."""
    federation.start()
    run_id = federation.start_run(SMALL)
    verified_outcome(federation, run_id, SMALL)
    federation.client.download("/api/v1/audit/export", federation.folder / "coordinator.jsonl")
    for site in SMALL.sites:
        for form in ("jsonl", "cef"):
            said = call(
                federation, site, "audit", "export", str(federation.folder / f"{site}.{form}"), "--format", form
            )
            assert said.returncode == 0, said
    return run_id


def canaries_of(federation: Federation, planted: Planted) -> list[Canary]:
    """Everything that was planted, and where it belongs."""
    found: list[Canary] = []
    for site in planted.files:
        folder = federation.site_dir(site)
        for name, text in planted.texts[site].items():
            # The data folder alone, which is not searched at all.
            found.append(text_canary(f"{name} of a record of {site}", text))
        # The declaration that the site's people wrote. The register needs it as well: see ``register_of``.
        register = {folder / name for name in ("dataset.yaml", "site.db", "site.db-wal")}
        # What 'datasets register' answered to the person who had typed the path; a fault names the file that it is in.
        register.add(federation.template.root / "work" / "logs" / f"site-{site}-setup.log")
        register.add(federation.folder / "logs" / f"{site}-{REGISTER}.log")
        found.append(text_canary(f"a path in the data folder of {site}", planted.paths[site], allowed=register))
        if site in federation.site_names:
            found += [key_canary(file, f"{file.name} of {site}") for file in sorted((folder / "keys").glob("*.pem"))]
    keys = sorted((federation.coordinator_dir / "keys").glob("*.key.pem"))
    assert len(keys) >= 3
    found += [key_canary(file, f"{file.name} of the coordinator") for file in keys]
    for name in ("admin.token", "lead.token"):
        files = [federation.coordinator_dir / name, federation.folder / name]
        found.append(secret_canary(name, files[0].read_text().strip(), allowed=files))
    # An enrolment code belongs nowhere: what is kept is its hash.
    found += [secret_canary("an enrolment code", code.rsplit("-", 1)[-1]) for code in planted.codes]
    found += [secret_canary("a whole enrolment code", code) for code in planted.codes]
    return found


def files_of(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]


def messages_of(federation: Federation) -> Iterator[tuple[str, bytes]]:
    """Every message of every site, decoded: method and direction, and its bytes as they went into TLS."""
    for file in files_of(federation.folder.parent / "wire"):
        for line in file.read_text().splitlines():
            noted = json.loads(line)
            if "body" in noted:
                yield f"{file.parent.name}: {noted['method']} {noted['direction']}", base64.b64decode(noted["body"])


def rest_answers(federation: Federation, run_id: str) -> Iterator[tuple[str, bytes]]:
    for path in REST:
        yield path, federation.client.text(path.format(run_id=run_id)).encode()


def register_of(folder: Path, path_canary: Canary) -> list[Sighting]:
    """Every value of every table of a site but the one column that has to hold the path: where its data lies."""
    with sqlite3.connect(f"file:{folder / 'site.db'}?mode=ro", uri=True) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found: list[Sighting] = []
        for table in tables:
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                for column, value in zip(columns, row, strict=True):
                    if (table, column) == ("datasets", "path"):
                        continue
                    data = value if isinstance(value, bytes) else str(value).encode()
                    found += search_bytes(data, [path_canary], f"{folder.name}: {table}.{column}")
    connection.close()
    return found


def search_everything(federation: Federation, planted: Planted, run_id: str) -> list[Sighting]:
    canaries = canaries_of(federation, planted)
    setup = federation.template.root / "work"
    # Of the set-up: what its programs printed. Its keys and folders are those of the copies that are searched.
    places = files_of(federation.folder, setup / "logs")
    found = [sighting for file in places for sighting in search_file(file, canaries)]
    for place, data in (*messages_of(federation), *rest_answers(federation, run_id)):
        found += search_bytes(data, canaries, place)
    for site in SMALL.sites:
        path = next(canary for canary in canaries if canary.name == f"a path in the data folder of {site}")
        found += register_of(federation.site_dir(site), path)
    return found


def assert_nothing(found: list[Sighting]) -> None:
    told = sorted({f"{sighting.canary} ({sighting.form}) in {sighting.place}" for sighting in found})
    assert not told, "\n".join(told)


def call(federation: Federation, site: str, *words: str, kept_as: str = "commands") -> subprocess.CompletedProcess[str]:
    """One command of one site; what it printed is kept with the logs, to be searched."""
    said = subprocess.run(
        [sys.executable, "-m", "site_agent", "--state-dir", str(federation.site_dir(site)), *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    with (federation.folder / "logs" / f"{site}-{kept_as}.log").open("a") as log:
        log.write(said.stdout + said.stderr)
    return said


def test_search_finds_every_form_of_every_canary(federation: Federation, planted: Planted, tmp_path: Path) -> None:
    canaries = canaries_of(federation, planted)
    assert len(canaries) >= 40
    for number, canary in enumerate(canaries):
        for form, needle in canary.forms.items():
            assert len(needle) >= 9, (canary.name, form)
            file = tmp_path / f"{number}.bin"
            file.write_bytes(secrets.token_bytes(500) + needle + secrets.token_bytes(500))
            assert Sighting(canary=canary.name, form=form, place=str(file)) in search_file(file, [canary])
    # And where they belong they are: what is searched for was really planted.
    for site in SMALL.sites:
        content = planted.files[site].read_bytes()
        for name in FIELDS:
            canary = next(each for each in canaries if each.name == f"{name} of a record of {site}")
            assert list(search_bytes(content, [canary], "data"))
    for canary in canaries:
        for file in canary.allowed:
            if file.suffix in {".pem", ".token"}:
                assert list(search_bytes(file.read_bytes(), [canary], "its place")), (canary.name, file)


def test_nothing_of_a_record_a_path_a_key_or_a_secret_is_anywhere_after_a_run(
    federation: Federation, planted: Planted, run_id: str
) -> None:
    methods = {place.split()[1].rpartition("/")[2] for place, _ in messages_of(federation)}
    # The whole conversation was noted, the masked vector included.
    assert {"PollAssignment", "AdvertiseKeys", "ShareKeys", "UploadBlob", "RevealShares", "DownloadBlob"} <= methods
    assert "GetAuditConsistency" in methods
    n_bytes = sum(len(data) for place, data in messages_of(federation) if "UploadBlob" in place)
    # Three vectors of two training rounds, four bytes a weight and more.
    assert n_bytes > 3 * 2 * 4 * 1000
    assert_nothing(search_everything(federation, planted, run_id))


def test_nothing_of_it_is_anywhere_after_a_site_was_given_records_that_cannot_be_read(
    federation: Federation, planted: Planted, run_id: str
) -> None:
    texts, file = planted.texts[BAD_SITE], planted.files[BAD_SITE]
    good = file.read_text()
    declaration = federation.site_dir(BAD_SITE) / "dataset.yaml"
    bad = file.with_name(f"bad-{planted.paths[BAD_SITE]}.jsonl")
    document = yaml.safe_load(declaration.read_text())
    declaration.write_text(yaml.safe_dump({**document, "name": "bad", "path": str(bad)}))
    half_a_pair = json.dumps({name: texts[name] for name in FIELDS})[:-2] + '\\ud800"}\n'
    for spoilt in (
        f'{{"id": "{texts["id"]}", "prompt": {texts["prompt"]}\n',
        json.dumps({"id": texts["id"], "prompt": {"x": texts["prompt"]}, "completion": [texts["completion"]]}) + "\n",
        json.dumps({"id": texts["id"], texts["prompt"]: texts["completion"]}) + "\n",
        half_a_pair,
    ):
        bad.write_text(good + spoilt)
        said = call(federation, BAD_SITE, "datasets", "register", str(declaration), kept_as=REGISTER)
        assert said.returncode != 0, said
        # It says where to look.
        assert f"{bad.name}, line {len(good.splitlines()) + 1}" in said.stdout + said.stderr
    # Behind the register's back: the trainer itself meets the line.
    file.write_text(good + half_a_pair)
    second = federation.start_run(SMALL)
    log = federation.processes[BAD_SITE].log_text
    federation.wait_until("the trainer failed", lambda: "training_failed" in log(), timeout_s=120)
    federation.client.post(f"/api/v1/runs/{second}:cancel")
    assert_nothing(search_everything(federation, planted, second))
    assert_nothing(search_everything(federation, planted, run_id))
