"""A coordinator's gateway in a process of its own, brought to the moment in which every site has its masked input.

``python -m benchmarks.transport_rig FOLDER --sites N --parameters D`` makes the folder of a coordinator by ``init``'s
own code, lets N sites and the driver act until the exchange is COLLECTING, leaves each site's header, spool and
certificate in ``sites/``, serves, and prints one JSON line. Run again on the same folder it only serves: that is what
a gateway does which was killed. The yardsticks of ``transport_yardsticks`` listen beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from benchmarks.transport_yardsticks import open_yardsticks
from coordinator.ca.authority import GATEWAY_SERVER_NAME
from coordinator.db.models import Approval, Certificate, Run, Site
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.gateway.served_identity import ServedIdentity
from coordinator.gateway.server import open_gateway
from coordinator.installation import CONFIG_FILE, Installation, open_installation
from coordinator.new_installation import Ports, install
from coordinator.rounds.instructions import RoundRef
from coordinator.services import site_instructions as told
from coordinator.services.accept_advertisement import accept_advertisement
from coordinator.services.accept_round import accept_round
from coordinator.services.accept_shares import accept_shares
from coordinator.services.context import EngineContext
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.report_progress import report_ready
from coordinator.services.resources import Addresses, Resources
from coordinator.services.upload_desk import MAX_UPLOADS, UploadDesk
from coordinator.services.wakeups import Wakeups
from fl_protocol.clock import SystemClock
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.free_memory import keep_room_for_chunks
from fl_protocol.ids import RunId, SiteId
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.entropy import SeededEntropy, SeededSealer, seeded_signer
from fl_protocol.testing.run_specs import run_spec_document

RUN_ID = RunId("run-" + "b" * 26)
READY_FILE = "rig.json"
_RANK = 100


@dataclass(slots=True, kw_only=True)
class RigSite:
    """A site as far as its masked input."""

    site_id: SiteId
    manifest: SignedBody | None = None
    role: SiteRole | None = None
    holding: list[RoundRef] = field(default_factory=list)
    shares: told.RelayShares | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The run that the rig carries out: how many sites, how many parameters."""

    names: tuple[str, ...]
    layout: AdapterLayout
    state: PublicState

    @classmethod
    def of(cls, *, n_sites: int, n_parameters: int) -> Study:
        """Two tensors of about half the parameters each, all zero: what is sent is masked anyway."""
        width = n_parameters // (2 * _RANK)
        shapes = {"q_proj.lora_A": (_RANK, width), "q_proj.lora_B": (width, _RANK)}
        tensors = tuple(
            TensorSpec(name=f"base_model.model.{name}.weight", shape=shape) for name, shape in shapes.items()
        )
        return cls(
            names=tuple(f"site-{number:02}" for number in range(n_sites)),
            layout=AdapterLayout(kind="lora", tensors=tensors, peft_config={"peft_type": "LORA", "r": _RANK}),
            state=PublicState(version=0, adapter={spec.name: np.zeros(spec.shape, np.float32) for spec in tensors}),
        )

    def spec(self) -> RunSpec:
        """All sites, one round, a phase that waits for an hour."""
        changes = {
            "cohort.sites": list(self.names),
            "cohort.quorum": len(self.names),
            "cohort.phase_deadline_s": 3600,
            "rounds": 1,
        }
        pins = {SiteId(name): spki_fingerprint(seeded_signer(name).spki_der) for name in self.names}
        resolved = resolve_run_spec(parse_run_spec(run_spec_document(changes)), pins)
        return bind_adapter(resolved, layout_sha256=self.layout.digest(), initial_sha256=self.state.digest())


def open_rig(folder: Path, *, max_uploads: int) -> tuple[Installation, Resources, EngineContext]:
    """The coordinator of a folder that ``install`` made."""
    installation = open_installation(folder / "coordinator" / CONFIG_FILE)
    keys = installation.load_keys()
    resources = installation.resources(
        database=installation.open_database(),
        keys=keys,
        clock=SystemClock(),
        addresses=Addresses(gateway="", enrolment=""),
    )
    engine = EngineContext(
        db=resources.db,
        blobs=resources.blobs,
        clock=SystemClock(),
        signer=keys.signer,
        wakeups=Wakeups(),
        origin=resources.origin,
        uploads=UploadDesk(max_uploads),
    )
    return installation, resources, engine


async def prepare(folder: Path, study: Study, *, settings: str = "") -> None:
    """Make the coordinator and bring its one exchange to COLLECTING; write what the sites need."""
    installed = install(
        folder / "coordinator", consortium="Rig", ports=Ports(rest=0, gateway=0, enrolment=0), clock=SystemClock()
    )
    if settings:
        text = installed.config.read_text()
        head, _, tail = text.partition("blobs:")
        installed.config.write_text(f"{head}{settings}\nkeys:{tail.partition('keys:')[2]}")
    _, resources, engine = open_rig(folder, max_uploads=MAX_UPLOADS)
    sites = [RigSite(site_id=SiteId(name)) for name in study.names]
    blob = engine.blobs.put_bytes(study.state.to_bytes())
    engine.db.run_tx("rig", lambda session: _fill(session, study, blob_sha256=blob.sha256, engine=engine))
    for site in sites:
        _write_identity(folder, resources, site)
    driver = RoundDriver(engine, create_release=_no_release, settings=DriverSettings(lease=timedelta(hours=1)))
    while any(site.shares is None for site in sites):
        while await driver.step(RUN_ID):
            pass
        for site in sites:
            await _act(engine, site, study)
    for site in sites:
        _mask(folder, site, study)
    document = {"initial_sha256": blob.sha256, "n_bytes": _layout_of(study, sites[0]).n_bytes}
    resources.db.dispose()
    (folder / READY_FILE).write_text(json.dumps(document))


def _fill(session: Session, study: Study, *, blob_sha256: str, engine: EngineContext) -> None:
    now, spec = engine.now(), study.spec()
    for name in study.names:
        spki = seeded_signer(name).spki_der
        session.add(
            Site(
                site_id=name,
                state="ENROLLED",
                signing_spki=spki,
                signing_key_sha256=spki_fingerprint(spki),
                created_at=now,
                enrolled_at=now,
            )
        )
    session.add(
        Run(
            run_id=RUN_ID,
            name=spec.name,
            state="AWAITING_SITES",
            run_spec_json=spec.canonical_bytes(),
            run_spec_sha256=spec.digest(),
            layout_json=json.dumps(study.layout.to_document()).encode(),
            layout_blob_sha256=study.layout.digest(),
            initial_blob_sha256=blob_sha256,
            public_state_version=0,
            public_state_sha256=study.state.digest(),
            public_state_blob_sha256=blob_sha256,
            next_round_index=0,
            next_round_attempt=0,
            created_by="rig",
            created_at=now,
        )
    )
    session.flush()
    for name in study.names:
        session.add(
            Approval(
                run_id=RUN_ID,
                site_id=name,
                decision="approved",
                statement_body=b"yes",
                statement_signature=b"",
                at=now,
            )
        )


def _write_identity(folder: Path, resources: Resources, site: RigSite) -> None:
    key = generate_private_key()
    issued = resources.authority.issue_site_certificate(
        site_id=site.site_id, csr_der=make_csr(key), now=resources.now()
    )
    resources.db.run_tx(
        "rig-certificate",
        lambda session: session.add(
            Certificate(
                fingerprint_sha256=issued.sha256,
                site_id=site.site_id,
                serial=issued.serial,
                not_before=issued.not_before,
                not_after=issued.not_after,
            )
        ),
    )
    home = folder / "sites" / site.site_id
    home.mkdir(parents=True)
    (home / "certificate.pem").write_bytes(issued.pem)
    (home / "key.pem").write_bytes(pem_from_private_key(key))
    (home / "root.pem").write_bytes(resources.authority.root_pem)
    (home / "coordinator.spki").write_bytes(resources.signer.spki_der)


async def _act(engine: EngineContext, site: RigSite, study: Study) -> None:
    found = await poll_instruction(engine, site_id=site.site_id, holding=site.holding, wait_s=0.0)
    match found:
        case told.TrainRound(round=ref, manifest=manifest):
            site.manifest = manifest
            site.holding.append(ref)
            await accept_round(engine, site_id=site.site_id, round=ref)
            await report_ready(engine, site_id=site.site_id, round=ref)
        case told.OpenExchange(exchange=context):
            role = site.role = _open_role(engine, site, study, context)
            await accept_advertisement(engine, site_id=site.site_id, exchange=context, m1=role.advertise())
        case told.RelayKeys(exchange=context, m2=m2):
            assert site.role is not None
            await accept_shares(engine, site_id=site.site_id, exchange=context, m3=site.role.share(m2))
        case told.RelayShares():
            site.shares = found
        case _:
            pass


def _open_role(engine: EngineContext, site: RigSite, study: Study, context: ExchangeContext) -> SiteRole:
    assert site.manifest is not None
    return SiteRole.open(
        site_id=site.site_id,
        context=context,
        manifest=site.manifest,
        coordinator_spki=engine.signer.spki_der,
        layout=_layout_of(study, site),
        params=SecAggParams(),
        peers=PeerVerifier(approved=study.spec().cohort.pins),
        signer=seeded_signer(site.site_id),
        entropy=SeededEntropy(f"{site.site_id}/{context}"),
        sealer=SeededSealer(),
    )


def _layout_of(study: Study, site: RigSite) -> PayloadLayout:
    assert site.manifest is not None
    spec = study.spec()
    kind = RoundManifest.decode(site.manifest.body).kind
    return ALGORITHMS[spec.aggregation.algorithm].segments(spec, study.layout, kind)


def _mask(folder: Path, site: RigSite, study: Study) -> None:
    assert site.role is not None
    assert site.shares is not None
    assert site.manifest is not None
    spec = study.spec()
    kind = RoundManifest.decode(site.manifest.body).kind
    values: dict[str, NDArray[Any]] = {
        "adapter_update": np.zeros(study.layout.n_parameters, np.float32),
        "train_loss_sum": np.zeros(1),
        "train_tokens": np.ones(1, np.int64),
        "eval_loss_sum": np.zeros(1),
        "eval_tokens": np.ones(1, np.int64),
        "eval_records": np.ones(1, np.int64),
    }
    weighed = ALGORITHMS[spec.aggregation.algorithm].weigh(
        values, n_records=100, spec=spec, layout=study.layout, kind=kind
    )
    site.role.accept_shares(site.shares.m4)
    upload = site.role.mask(encode_payload(weighed, _layout_of(study, site)))
    home = folder / "sites" / site.site_id
    (home / "m5").write_bytes(upload.header)
    (home / "context").write_bytes(site.shares.exchange.encode())
    with (home / "masked.bin").open("wb") as file:
        for part in upload.vector.buffers():
            file.write(part)
        file.write(b"".join(upload.leaves))


async def _no_release(run_id: RunId) -> None:
    raise AssertionError(f"{run_id} does not get that far")


async def serve(folder: Path, *, port: int, max_uploads: int) -> None:
    """Serve until SIGTERM, as ``serve`` does."""
    keep_room_for_chunks(os.environ)
    _, resources, engine = open_rig(folder, max_uploads=max_uploads)
    identity = resources.authority.issue_server_certificate(names=(GATEWAY_SERVER_NAME,), now=resources.now())
    served = ServedIdentity(resources.authority, names=(GATEWAY_SERVER_NAME,), now=resources.now)
    listener = open_gateway(resources, engine, served=served, host="127.0.0.1", port=port)
    await listener.server.start()
    bare, bare_port = await open_yardsticks(resources.authority, identity, folder=folder)
    said = {**json.loads((folder / READY_FILE).read_text()), "gateway": listener.port, "bare": bare_port}
    print(json.dumps(said), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await listener.server.stop(None)
    await bare.stop(None)
    resources.db.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare where that was not done yet, then serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport_rig", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--parameters", type=int, default=2_500_000)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-uploads", type=int, default=MAX_UPLOADS)
    parser.add_argument("--blobs", type=Path, help="a file with another `blobs:` section for coordinator.yaml")
    options = parser.parse_args(arguments)
    if not (options.folder / READY_FILE).exists():
        settings = "" if options.blobs is None else options.blobs.read_text()
        study = Study.of(n_sites=options.sites, n_parameters=options.parameters)
        asyncio.run(prepare(options.folder, study, settings=settings))
    asyncio.run(serve(options.folder, port=options.port, max_uploads=options.max_uploads))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
