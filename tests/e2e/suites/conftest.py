"""What the suites share: one federation that is set up and copied, and each study's undisturbed outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.support.federation import Federation, Place
from tests.e2e.support.template import Study, Template, make_template
from tests.e2e.support.verdicts import Outcome, verified_outcome
from tests.support.postgres import DATABASE, PostgresServer

MakeFederation = Callable[..., Federation]
Undisturbed = Callable[[Study], Outcome]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def make_federation(template: Template, tmp_path: Path) -> Iterator[MakeFederation]:
    """Federations of this test, ended with it."""
    made: list[Federation] = []

    def make(
        *,
        sites: Sequence[str],
        place: Place | None = None,
        source: Template = template,
        database_url: str | None = None,
    ) -> Federation:
        folder = tmp_path / f"federation-{len(made)}"
        federation = Federation(source, folder, sites=sites, place=place, database_url=database_url)
        made.append(federation)
        return federation

    yield make
    for federation in made:
        federation.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPostgres:
    """A PostgreSQL server and a template whose coordinator lives in its first database."""

    server: PostgresServer
    template: Template

    def copy(self) -> str:
        """A database of a test's own: the address of a copy of the template's."""
        return self.server.url_for(self.server.create_database(template=DATABASE))


@pytest.fixture(scope="session")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPostgres]:
    server = PostgresServer.create()
    try:
        root = tmp_path_factory.mktemp("template-on-postgres")
        yield OnPostgres(server=server, template=make_template(root, database_url=server.url))
    finally:
        server.dispose()


@pytest.fixture(scope="session")
def undisturbed(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The outcome of a study in which nothing breaks, run once a session."""
    outcomes: dict[Study, Outcome] = {}

    def outcome_of(study: Study) -> Outcome:
        if study not in outcomes:
            federation = Federation(template, tmp_path_factory.mktemp("undisturbed") / "work", sites=study.sites)
            try:
                federation.start()
                outcomes[study] = verified_outcome(federation, federation.start_run(study), study)
            finally:
                federation.end()
        return outcomes[study]

    return outcome_of
