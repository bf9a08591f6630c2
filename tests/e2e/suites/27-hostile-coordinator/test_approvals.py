"""What the approval pins: keys, documents, layouts; and runs that a site never approves (rows 1, 5, 16; decision 5).

Here the agents see the run over the wire, judge it by a real policy and send their own signed word, as in a hospital.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.secagg.messages import KeyAdvertisement, SignedList, StatementKind
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import sign_body, verify_body
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.entropy import seeded_signer
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction
from site_agent.session.events import Step
from tests.support.hostile_federation import ApprovingSite, HostileFederation, HostileFederationOf

ALPHA = SiteId("alpha")
NEW_KEY = seeded_signer("a new key for beta")


def ask_for_approval(federation: HostileFederation) -> None:
    """Show the run as pending, and begin its rounds when everybody has said yes."""
    coordinator = federation.coordinator
    federation.runs.is_run_pending = True
    idle = asked.Idle(retry_after_s=0.0)
    coordinator.alters[asked.TrainRound] = lambda _, true: (
        true if len(coordinator.statements) == len(coordinator.site_ids) else idle
    )


async def run_until_refused(federation: HostileFederation, kind: str, **facts: object) -> None:
    """Every site says no for this reason: no statement leaves, nothing is trained."""
    await federation.run_until_recorded(kind, **facts)
    assert federation.coordinator.statements == {}
    assert federation.coordinator.heard == []
    assert not any(site.runner.seeds for site in federation.sites.values())


async def test_approval_is_the_site_s_own_word_on_the_keys_of_all(federation_of: HostileFederationOf) -> None:
    """The statement names the digest of the very bytes in which each site's key is pinned; then the run goes on."""
    federation = federation_of(site_of=ApprovingSite)
    ask_for_approval(federation)
    await federation.run_to_the_end()
    spec = federation.coordinator.spec
    shown = parse_run_spec(json.loads(spec.canonical_bytes()))
    assert shown.cohort.pins == {
        site: spki_fingerprint(seeded_signer(site).spki_der) for site in federation.coordinator.site_ids
    }
    for site, statement in federation.coordinator.statements.items():
        said = json.loads(verify_body(seeded_signer(site).spki_der, "WR/sig/approval", statement))
        assert (said["decision"], said["run_spec_sha256"]) == ("approved", spec.digest())
        assert federation.sites[site].has_recorded("run.approved", run_spec_sha256=spec.digest())


async def test_row_1_other_key_of_an_approved_site_after_the_approval_is_refused(
    federation_of: HostileFederationOf,
) -> None:
    """Beta, says the coordinator, has a new signing key. The pin is in what the sites approved, and nowhere else."""
    federation = federation_of(site_of=ApprovingSite)
    ask_for_approval(federation)

    def altered(_: SiteId, relayed: Instruction) -> Instruction:
        assert isinstance(relayed, asked.RelayKeys)
        entries = list(SignedList.decode(relayed.message).entries)
        said = replace(KeyAdvertisement.decode(entries[1].body), spki_der=NEW_KEY.spki_der)
        entries[1] = sign_body(NEW_KEY, StatementKind.M1.value, said.encode())
        return replace(relayed, message=SignedList(entries=tuple(entries)).encode())

    federation.coordinator.alters[asked.RelayKeys] = altered
    await federation.run_until_declined("site-not-approved")
    assert federation.coordinator.heard_of(Step.SHARE) == []


def with_the_new_key(federation: HostileFederation) -> Any:
    spec = federation.coordinator.spec
    document = json.loads(spec.canonical_bytes())
    document["cohort"]["sites"][1]["signing_key_sha256"] = spki_fingerprint(NEW_KEY.spki_der)
    return parse_run_spec(document)


async def test_row_1_other_documents_of_an_approved_run_are_refused(federation_of: HostileFederationOf) -> None:
    """The same run, shown again with another key for beta: neither its documents nor its rounds are taken."""
    federation = federation_of(site_of=ApprovingSite)
    ask_for_approval(federation)
    coordinator = federation.coordinator
    await federation.run(lambda: len(coordinator.statements) == 3)
    approved = coordinator.spec
    coordinator.spec = with_the_new_key(federation)
    coordinator.open_round()
    await federation.run_until_recorded("call.refused", code="run-document-invalid", instruction="GetRun")
    await federation.run_until_declined("run-spec-mismatch")
    assert coordinator.heard_of(Step.ADVERTISE) == []
    assert approved.digest() != coordinator.spec.digest()


async def test_documents_that_have_not_the_announced_digest_are_refused(federation_of: HostileFederationOf) -> None:
    federation = federation_of(site_of=ApprovingSite)
    ask_for_approval(federation)
    federation.runs.run_spec_json = with_the_new_key(federation).canonical_bytes()
    await run_until_refused(federation, "call.refused", code="run-document-invalid", instruction="GetRun")
    assert all(site.state_of(federation.coordinator.run_id) is None for site in federation.sites.values())


async def test_row_5_invented_hospital_in_the_roster_is_not_approved_by_a_policy_alone(
    federation_of: HostileFederationOf,
) -> None:
    """Nobody compared that key with anybody: the steward is asked, and the policy gives no word of its own."""
    federation = federation_of(site_of=ApprovingSite)
    for site in federation.sites.values():
        site.peers.pop("gamma", None)
    federation.leave("gamma")
    ask_for_approval(federation)
    await run_until_refused(federation, "policy.evaluated", outcome="denied", rule="peers")


async def test_decision_5_run_of_three_is_not_approved_by_a_site_that_assumes_one_colluder(
    federation_of: HostileFederationOf,
) -> None:
    federation = federation_of(site_of=ApprovingSite)
    for site in federation.sites.values():
        site.write_policy(secure_aggregation={"min_cohort": 3, "assumed_colluders": 1})
    ask_for_approval(federation)
    rule = "secure_aggregation.assumed_colluders"
    await run_until_refused(federation, "policy.evaluated", outcome="denied", rule=rule)


PAIR = (TensorSpec(name="m.lora_A.weight", shape=(2, 3)), TensorSpec(name="m.lora_B.weight", shape=(3, 2)))
SPARSE = {
    "an embedding's weights": (*PAIR, TensorSpec(name="model.embed_tokens.weight", shape=(7, 3))),
    "a pair on an embedding": (
        *PAIR,
        TensorSpec(name="m.embed_tokens.lora_embedding_A", shape=(2, 7)),
        TensorSpec(name="m.embed_tokens.lora_embedding_B", shape=(3, 2)),
    ),
    "an embedding by the name of a linear pair": (
        *PAIR,
        TensorSpec(name="embed_tokens.m.lora_A.weight", shape=(2, 7)),
        TensorSpec(name="embed_tokens.m.lora_B.weight", shape=(3, 2)),
    ),
    "a module that the run does not name": (
        *PAIR,
        TensorSpec(name="other.lora_A.weight", shape=(2, 3)),
        TensorSpec(name="other.lora_B.weight", shape=(3, 2)),
    ),
    "half a pair": PAIR[:1],
    "a pair of full rank": (
        TensorSpec(name="m.lora_A.weight", shape=(3, 3)),
        TensorSpec(name="m.lora_B.weight", shape=(3, 3)),
    ),
}


def offer_layout(federation: HostileFederation, tensors: tuple[TensorSpec, ...]) -> None:
    """A run whose specification honestly names the digest of a layout that no site may sum."""
    coordinator = federation.coordinator
    layout = AdapterLayout(kind="lora", tensors=tensors, peft_config={})
    state = PublicState(version=0, adapter=layout.unflatten(np.zeros(layout.n_parameters, np.float32)))
    adapter = replace(coordinator.spec.adapter, layout_sha256=layout.digest(), initial_sha256=Sha256Hex(state.digest()))
    coordinator.spec, coordinator.state = replace(coordinator.spec, adapter=adapter), state
    coordinator.layout_json = layout.canonical_bytes()
    coordinator.blobs[state.digest()] = state.to_bytes()
    coordinator.open_round()


@pytest.mark.parametrize("tensors", SPARSE.values(), ids=SPARSE)
async def test_row_16_run_with_a_sparse_layout_is_declined_before_training(
    federation_of: HostileFederationOf, tensors: tuple[TensorSpec, ...]
) -> None:
    """Even where the run stands approved in the ledger: an agent of before 0.2 approved by digest alone."""
    federation = federation_of()
    offer_layout(federation, tensors)
    for site in federation.sites.values():
        site.approve(federation.coordinator)
    await federation.run_until_declined("adapter-layout-sparse")
    assert federation.coordinator.heard == []
    assert not any(site.runner.seeds for site in federation.sites.values())


async def test_row_16_run_with_a_sparse_layout_is_never_approved(federation_of: HostileFederationOf) -> None:
    federation = federation_of(site_of=ApprovingSite)
    offer_layout(federation, SPARSE["an embedding's weights"])
    ask_for_approval(federation)
    await run_until_refused(federation, "call.refused", code="adapter-layout-sparse", instruction="GetRun")
