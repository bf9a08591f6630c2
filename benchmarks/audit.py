"""How fast the audit logs grow, and how fast and in how much memory a log of a million events is verified.

The yardstick of an append is an INSERT of the same bytes into one table, in a transaction of its own under the same
settings of the same database; that of verifying is reading the same lines, decoding them twice as JSON and hashing the
bytes once. Both are measured in this run.
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from benchmarks.rows import Row, announce, best_of, print_rows
from coordinator.db.audit import append_all, append_audit
from coordinator.db.engines import engine_from_url
from coordinator.db.models import AuditRow, AuditTip, Base
from coordinator.db.tables import table_of
from coordinator.db.tx import Database
from coordinator.services.prove_audit import AuditProver, LogRange
from fl_protocol.audit.chain import LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import AuditEvent, AuditFact, AuditKind
from fl_protocol.clock import SystemClock
from fl_protocol.signing.keys import EcdsaSigner
from site_agent.audit.store import AuditLog
from site_agent.db.tx import open_site_db
from wardround.evidence.audit_export import ExportFile, verify_export

N_EVENTS = 1_000_000
N_APPENDS = 1_500
N_TOGETHER = 50
N_THREADS = 8
CHECKPOINT_EVERY = 1_000
SMALLEST_APPEND_RATIO = 0.3
SMALLEST_VERIFY_RATIO = 0.3
VERIFY_EXTRA_MB = 64.0
START = datetime(2026, 1, 1, tzinfo=UTC)


def facts_of(number: int) -> dict[str, AuditFact]:
    """What a message of an exchange is recorded with."""
    return {
        "run_id": "run-" + "a" * 26,
        "round_index": number % 100,
        "round_attempt": 0,
        "exchange_attempt": 0,
        "site_id": f"site-{number % 20}",
        "payload_sha256": f"{number:064x}",
    }


BARE_BODY = json.dumps(facts_of(1)).encode() + b" " * 150
"""As many bytes as an event has."""


def append_rows(db: Database, name: str) -> list[Row]:
    """Appends a second: alone, together in a transaction, and from several threads."""
    Base.metadata.create_all(db.engine)
    rows: list[Row] = []

    announce(f"{name}: appends alone")
    alone = _rate(N_APPENDS, lambda: [db.run_tx("append", partial(_append_one, number=n)) for n in range(N_APPENDS)])
    _forget(db)
    bare_alone = _rate(
        N_APPENDS, lambda: [db.run_tx("bare", partial(_insert, first=n, count=1)) for n in range(N_APPENDS)]
    )
    _forget(db)
    rows.append(_append_row(f"{name}: events a second, each in its transaction", alone, bare_alone))

    announce(f"{name}: appends together")
    batches = range(0, 10 * N_APPENDS, N_TOGETHER)
    together = _rate(
        10 * N_APPENDS,
        lambda: [db.run_tx("append", partial(_append_many, first=first)) for first in batches],
    )
    _forget(db)
    bare_together = _rate(
        10 * N_APPENDS,
        lambda: [db.run_tx("bare", partial(_insert, first=first, count=N_TOGETHER)) for first in batches],
    )
    _forget(db)
    rows.append(
        _append_row(f"{name}: events a second, {N_TOGETHER} in a transaction", together, bare_together, has_aim=False)
    )

    announce(f"{name}: appends from {N_THREADS} threads")
    with ThreadPoolExecutor(N_THREADS) as pool:
        threaded = _rate(
            N_APPENDS,
            lambda: list(pool.map(lambda n: db.run_tx("append", partial(_append_one, number=n)), range(N_APPENDS))),
        )
    _forget(db)
    rows.append(_append_row(f"{name}: events a second, {N_THREADS} threads, each in its transaction", threaded, None))
    return rows


def _event(number: int) -> AuditEvent:
    return AuditEvent(
        kind=AuditKind.UPLOAD_ACCEPTED,
        at=START + timedelta(seconds=number),
        actor=f"site:site-{number % 20}",
        facts=facts_of(number),
    )


def _append_one(session: Session, *, number: int) -> int:
    event = _event(number)
    return append_audit(session, event.kind, actor=event.actor, facts=event.facts, now=event.at)


def _append_many(session: Session, *, first: int) -> int:
    return append_all(session, [_event(number) for number in range(first, first + N_TOGETHER)])


def _insert(session: Session, *, first: int, count: int) -> None:
    values = [
        {"seq": seq, "at": START, "kind": "upload.accepted", "body": BARE_BODY, "leaf_sha256": "0" * 64}
        for seq in range(first, first + count)
    ]
    session.execute(insert(table_of(AuditRow)), values)


def site_row(folder: Path) -> Row:
    """A site's appends: each signs a checkpoint and is on the disk when it returns."""
    announce("site: appends")
    db = open_site_db(folder / "site.db")
    log = AuditLog(EcdsaSigner(ec.generate_private_key(ec.SECP256R1())), SystemClock(), "site:a")

    def append(session: Session, *, number: int) -> int:
        return log.append(session, AuditKind.PAYLOAD_SENT, "agent", **facts_of(number))

    rate = _rate(N_APPENDS, lambda: [db.run_tx("append", partial(append, number=n)) for n in range(N_APPENDS)])
    db.close()
    with sqlite3.connect(folder / "bare.db", isolation_level=None) as bare:
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute("PRAGMA synchronous = FULL")
        bare.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, body BLOB, leaf TEXT)")
        add = "INSERT INTO events VALUES (?, ?, ?)"
        bare_rate = _rate(
            N_APPENDS, lambda: [bare.execute(add, (number, BARE_BODY, "0" * 64)) for number in range(N_APPENDS)]
        )
    bare.close()
    return _append_row("site: events a second, each signed and in its transaction", rate, bare_rate, has_aim=False)


def write_export(path: Path, n_events: int) -> list[bytes]:
    """An export of so many events, as the coordinator writes it; returns the leaf hashes."""
    announce(f"making a log of {n_events:,} events")
    signer = EcdsaSigner(ec.generate_private_key(ec.SECP256R1()))
    leaves: list[bytes] = []
    signed: list[str] = []
    tip = LogTip()
    with path.open("w", encoding="utf-8") as file:
        header = {"log": "wardround-audit", "origin": "benchmark", "signing_spki": _b64(signer.spki_der)}
        file.write(json.dumps(header) + "\n")
        for number in range(n_events):
            event = _event(number)
            tip, row = append_event(tip, event)
            leaves.append(bytes.fromhex(row.leaf_sha256))
            file.write(f'{{"body":"{_b64(row.body)}","leaf_sha256":"{row.leaf_sha256}","seq":{row.seq}}}\n')
            if tip.size % CHECKPOINT_EVERY == 0 or tip.size == n_events:
                head = tip.head()
                point = sign_checkpoint(
                    signer, Checkpoint(origin="benchmark", size=head.size, head=head.root, at=event.at)
                )
                checkpoint = {"body": _b64(point.body), "signature": _b64(point.signature)}
                signed.append(json.dumps({"checkpoint": checkpoint}))
        file.write("\n".join(signed) + "\n")
    return leaves


def verify_rows(path: Path, n_events: int) -> list[Row]:
    """Seconds and memory of verifying an export, each in a process of its own."""
    announce(f"verifying {n_events:,} events")
    verified, bare = _in_process("--verify", path), _in_process("--bare", path)
    memory = Row(
        name=f"verify {n_events:,} events: peak memory of the process",
        value=verified["mb"],
        unit="MB",
        yardstick=bare["mb"],
        yardstick_name=f"of the other process (aim: no more than {VERIFY_EXTRA_MB:g} MB beside)",
        ratio=bare["mb"] / verified["mb"],
        within=verified["mb"] <= bare["mb"] + VERIFY_EXTRA_MB,
    )
    ratio = bare["seconds"] / verified["seconds"]
    took = Row(
        name=f"verify {n_events:,} events",
        value=verified["seconds"],
        unit="s",
        yardstick=bare["seconds"],
        yardstick_name=f"decode and hash the same lines once (aim: ratio >= {SMALLEST_VERIFY_RATIO})",
        ratio=ratio,
        within=ratio >= SMALLEST_VERIFY_RATIO,
    )
    return [took, memory]


def proof_rows(folder: Path, leaves: Sequence[bytes]) -> list[Row]:
    """A proof between two sizes of a long log: the first of a process, and every later one."""
    announce(f"proofs about {len(leaves):,} events")
    db = Database(engine_from_url(f"sqlite:///{folder / 'proofs.db'}"))
    Base.metadata.create_all(db.engine)
    tip = LogTip()
    for leaf in leaves:
        tip = LogTip(last_leaf=leaf.hex(), tree=tip.tree.append(leaf))

    def fill(session: Session) -> None:
        session.execute(insert(table_of(AuditTip)), {"id": 1, "encoded": tip.encode()})
        for start in range(0, len(leaves), 10_000):
            values = [
                {"seq": seq, "at": START, "kind": "x", "body": b"", "leaf_sha256": leaves[seq].hex()}
                for seq in range(start, min(start + 10_000, len(leaves)))
            ]
            session.execute(insert(table_of(AuditRow)), values)

    db.run_tx("fill", fill)
    prover = AuditProver()
    asked = [LogRange(from_size=len(leaves) - 1234, to_size=len(leaves) - 7)]

    def prove() -> float:
        began = time.perf_counter()
        db.read("prove", lambda session: prover.prove(session, asked))
        return time.perf_counter() - began

    first = prove()
    later = best_of(20, prove)
    db.dispose()
    name = f"proof about {len(leaves):,} events"
    return [
        Row(name=f"{name}, the first of a process", value=first, unit="s"),
        Row(
            name=f"{name}, each later one",
            value=later * 1000,
            unit="ms",
            yardstick=first * 1000,
            yardstick_name="building the tree anew",
            ratio=first / later,
        ),
    ]


def main(arguments: list[str]) -> int:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audit", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=N_EVENTS, help="of the log that is verified")
    parser.add_argument("--postgres", metavar="URL", help="an empty database to measure as well")
    parser.add_argument("--verify", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.verify or options.bare:
        print(json.dumps(_measured(options.verify, options.bare)))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="wardround-audit-") as name:
        folder = Path(name)
        sqlite = Database.from_path(folder / "coordinator.db")
        rows += append_rows(sqlite, "coordinator, SQLite")
        sqlite.dispose()
        if options.postgres:
            server = Database(engine_from_url(options.postgres))
            rows += append_rows(server, "coordinator, PostgreSQL")
            server.dispose()
        rows.append(site_row(folder))
        leaves = write_export(folder / "audit.jsonl", options.events)
        rows += verify_rows(folder / "audit.jsonl", options.events)
        rows += proof_rows(folder, leaves)
    print_rows(rows, as_json=options.json)
    return 0


def _measured(verify: Path | None, bare: Path | None) -> dict[str, float]:
    began = time.perf_counter()
    if verify is not None:
        verify_export(ExportFile(verify))
    elif bare is not None:
        for line in _bare_lines(bare):
            json.loads(line)
            sha256(line).digest()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _bare_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            document = json.loads(line)
            if "body" in document:
                yield base64.b64decode(document["body"])


def _in_process(flag: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks", "audit", flag, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _append_row(name: str, value: float, bare: float | None, *, has_aim: bool = True) -> Row:
    if bare is None:
        return Row(name=name, value=value, unit="/s")
    ratio = value / bare
    aim = f" (aim: ratio >= {SMALLEST_APPEND_RATIO})" if has_aim else ""
    return Row(
        name=name,
        value=value,
        unit="/s",
        yardstick=bare,
        yardstick_name=f"a bare INSERT of the same bytes{aim}",
        ratio=ratio,
        within=ratio >= SMALLEST_APPEND_RATIO if has_aim else None,
    )


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _forget(db: Database) -> None:
    def forget(session: Session) -> None:
        for table in (AuditRow.__tablename__, AuditTip.__tablename__):
            session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - two constants

    db.run_tx("forget", forget)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
