"""What the exchange desk refuses before a payload is masked, with a real role and a real relay of shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.secagg.site_role import SitePhase
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.federation import Federation, LastSent, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names
from site_agent.errors import OneShotSpentError, RoundRefusedError
from site_agent.session.events import Step
from site_agent.state.joined_round import survivors_digest
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange
from site_agent.supervision.exchange_desk import ExchangeDesk

EVALUATION = Evaluation(sha256="44" * 32, is_alone=False)


class FakeBook:
    """Remembers what it is made with, and what was claimed."""

    def __init__(
        self,
        *,
        earlier: tuple[MaskedCohort, ...] = (),
        evaluated_among: frozenset[SiteId] | None = None,
        revealed: RevealedExchange | None = None,
    ) -> None:
        self.earlier = earlier
        self.evaluated_among = evaluated_among
        self.revealed = revealed
        self.claimed: list[MaskedCohort] = []

    def cohorts_of(self, evaluation: Evaluation, *, besides: ExchangeContext) -> tuple[MaskedCohort, ...]:
        assert evaluation == EVALUATION
        return tuple(cohort for cohort in self.earlier if cohort.context != besides)

    def survivors_of(self, evaluation: Evaluation) -> frozenset[SiteId] | None:
        assert evaluation == EVALUATION
        return self.evaluated_among

    def claim_mask(self, cohort: MaskedCohort, *, payload_sha256: str, evaluation: Evaluation) -> None:
        assert evaluation == EVALUATION
        assert len(payload_sha256) == 64
        self.claimed.append(cohort)

    def revealed_in(self, _: object) -> RevealedExchange | None:
        return self.revealed

    def is_taken(self, *_: object) -> bool:
        return False


class MaskingScene:
    """The first site of seven before M5: it and the last three dealt shares in exchange attempt 1."""

    def __init__(self) -> None:
        self.federation = Federation(site_names(7), small_layout())
        self.me = self.federation.site_ids[0]
        opened = self.federation.open_exchange(exchange_attempt=1)
        roles = {site: self.federation.open_role(site, opened) for site in (self.me, *self.federation.site_ids[4:])}
        self.scene = Scene(federation=self.federation, opened=opened, roles=roles).play(LastSent.M3)
        self.role = roles[self.me]
        manifest = RoundManifest.decode(opened.manifest.body)
        self.context, self.earlier_context = manifest.exchange(0, 1), manifest.exchange(0, 0)
        self.sharers = frozenset(roles)

    def earlier(self, sites: frozenset[SiteId]) -> MaskedCohort:
        threshold = self.federation.params.threshold(len(sites))
        return MaskedCohort(context=self.earlier_context, sites=sites, threshold=threshold)

    def desk(self, book: FakeBook, *, required: str | None = None) -> ExchangeDesk:
        seams = SimpleNamespace(
            book=book,
            jobs=SimpleNamespace(threads=1, jobs_dir=Path(__file__).parent),
            journal=SimpleNamespace(write_spool=lambda *_: None, read=lambda _: None),
        )
        admitted = SimpleNamespace(
            required_survivors=required,
            params=self.federation.params,
            evaluation=EVALUATION,
            run=None,
            layout=small_layout(),
        )
        jobs = SimpleNamespace(encode=lambda _: self.scene.vector(self.me))
        return ExchangeDesk(seams, admitted, jobs)  # type: ignore[arg-type]

    def mask(self, book: FakeBook, *, required: str | None = None) -> bytes:
        m4 = coordinator_role.make_m4(self.scene.shared, self.me)
        return self.desk(book, required=required)._mask(self.role, self.context, m4)


@pytest.fixture
def scene() -> MaskingScene:
    return MaskingScene()


def assert_refused(act: Callable[[], object], reason: str, book: FakeBook) -> None:
    with pytest.raises((SecAggRefusedError, RoundRefusedError)) as refused:
        act()
    assert str(refused.value.reason) == reason
    assert book.claimed == []


def test_payload_is_not_masked_again_among_newcomers_while_its_earlier_sum_may_be_completed(
    scene: MaskingScene,
) -> None:
    """The earlier cohort of four needs three reveals, and this site was shown no M6: the other three are enough."""
    book = FakeBook(earlier=(scene.earlier(frozenset(scene.federation.site_ids[:4])),))
    assert_refused(lambda: scene.mask(book), "survivors-split", book)
    assert scene.role.phase is SitePhase.SHARED


def test_payload_is_masked_again_among_those_of_the_earlier_exchange(scene: MaskingScene) -> None:
    book = FakeBook(earlier=(scene.earlier(scene.sharers),))
    scene.mask(book)
    assert [cohort.sites for cohort in book.claimed] == [scene.sharers]
    assert [cohort.threshold for cohort in book.claimed] == [3]


def test_masking_that_was_interrupted_is_not_held_against_itself(scene: MaskingScene) -> None:
    own = MaskedCohort(context=scene.context, sites=frozenset(scene.federation.site_ids), threshold=7)
    book = FakeBook(earlier=(own,))
    scene.mask(book)
    assert len(book.claimed) == 1


def test_payload_is_not_masked_among_other_sites_than_those_of_an_unresolved_reveal(scene: MaskingScene) -> None:
    book = FakeBook()
    fewer = survivors_digest(scene.sharers - {scene.federation.site_ids[6]})
    assert_refused(lambda: scene.mask(book, required=fewer), "unresolved-reveal", book)


def test_payload_is_masked_among_the_very_sites_of_an_unresolved_reveal(scene: MaskingScene) -> None:
    book = FakeBook()
    scene.mask(book, required=survivors_digest(scene.sharers))
    assert len(book.claimed) == 1


def test_evaluation_revealed_is_not_masked_among_one_site_less(scene: MaskingScene) -> None:
    book = FakeBook(evaluated_among=scene.sharers | {scene.federation.site_ids[1]})
    assert_refused(lambda: scene.mask(book), "evaluation-revealed", book)


def test_evaluation_revealed_is_masked_among_the_same_sites(scene: MaskingScene) -> None:
    book = FakeBook(evaluated_among=scene.sharers)
    scene.mask(book)
    assert len(book.claimed) == 1


def test_attempt_at_a_round_in_which_shares_were_revealed_advertises_no_keys_again(scene: MaskingScene) -> None:
    book = FakeBook(revealed=RevealedExchange(context=scene.earlier_context, h_survivors=bytes(32)))
    with pytest.raises(OneShotSpentError):
        scene.desk(book)._take(Step.ADVERTISE, scene.context, b"", "")
