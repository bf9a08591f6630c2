"""Every hospital makes drawn chunks of each sum again, and an auditor the whole: real processes, five chunks a sum.

The auditor's command is run as an auditor runs it. Then one stored upload is altered on the coordinator's disk: the
command names the hospital whose upload it is no more, and says so by its exit code.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest

from fl_protocol.audit.events import event_from_bytes
from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.federation import Federation
from tests.e2e.support.template import BIG, BIG_UPLOAD_BYTES

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]


def test_sums_are_made_again_by_the_sites_and_by_an_auditor(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=BIG.sites)
    federation.start()
    run_id = federation.start_run(BIG)
    federation.wait_for_end(run_id)

    # Each site checked both sums before it acknowledged them, and says how much of them.
    def checks() -> dict[str, list[dict[str, object]]]:
        return {site: sum_checks(federation, site) for site in BIG.sites}

    federation.wait_until(
        "every site has checked both sums", lambda: all(len(found) == 2 for found in checks().values())
    )
    # The weights fill whole chunks, and the 64-bit section begins another.
    n_chunks = BIG_UPLOAD_BYTES // 2**20 + 1
    for found in checks().values():
        train = next(facts for facts in found if facts["round_index"] == 0)
        assert (train["by"], train["n_sites"], train["chunks"]) == ("reexecution", 3, n_chunks)
        # Three sites at a MiB each: one chunk is within the four MiB that a site fetches.
        assert train["chunks_checked"] == 1

    answer = federation.command("--json", "rounds", "check-sum", run_id, "0")
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["sites"] == sorted(BIG.sites)
    assert said["lost_sites"] == []
    assert said["n_bytes"] >= BIG_UPLOAD_BYTES

    altered = alter_an_upload(federation)
    answer = federation.command("--json", "rounds", "check-sum", run_id, "0")
    assert answer.returncode == 1
    assert "not the one that it signed" in answer.stdout + answer.stderr
    assert altered in answer.stdout + answer.stderr
    # The other round's sum is untouched.
    assert federation.command("--json", "rounds", "check-sum", run_id, "1").returncode == 0


def sum_checks(federation: Federation, site: str) -> list[dict[str, object]]:
    """What the site's log says of the sums that it checked."""
    with contextlib.closing(sqlite3.connect(federation.site_dir(site) / "site.db")) as connection:
        rows = connection.execute("SELECT body FROM audit_events ORDER BY seq").fetchall()
    events = [event_from_bytes(bytes(body)).event for (body,) in rows]
    return [dict(event.facts) for event in events if event.kind.value == "sum.checked"]


def alter_an_upload(federation: Federation) -> str:
    """Turn one bit of what a hospital uploaded in round 0, on the coordinator's disk; whose it was."""
    with contextlib.closing(sqlite3.connect(federation.coordinator_dir / "coordinator.db")) as connection:
        query = "SELECT site_id, blob_sha256 FROM uploads WHERE round_index = 0 ORDER BY site_id"
        site, name = connection.execute(query).fetchall()[1]
    (file,) = [path for path in federation.coordinator_dir.rglob(f"*{name}*") if path.is_file()]
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return str(site)
