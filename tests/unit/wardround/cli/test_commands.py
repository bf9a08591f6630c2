from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from fl_protocol.testing.run_specs import run_spec_document
from wardround.__main__ import run_command
from wardround.cli.shell import Shell
from wardround.client.connection import Connection
from wardround.client.rest import RestClient

RUN = {
    "run_id": "run-a",
    "name": "first",
    "state": "AWAITING_SITES",
    "waits_for": "2 of 3 approvals are missing: charite, ucsf.",
    "rounds_total": 3,
    "rounds_committed": 0,
    "approvals": [{"site_id": "st-mary", "decision": "approved", "at": "2026-01-02T03:04:05Z"}],
}


class Typed:
    """What came of typing a command against a coordinator with these answers, by method and path."""

    def __init__(self, words: Sequence[str], answers: Mapping[str, object], *, as_json: bool = False) -> None:
        self.requests: list[httpx.Request] = []
        self.bodies: list[object] = []
        out, err = io.StringIO(), io.StringIO()

        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            self.bodies.append(json.loads(request.content) if request.method == "POST" else None)
            found = answers.get(f"{request.method} {request.url.path}")
            if isinstance(found, httpx.Response):
                return found
            if found is None:
                return httpx.Response(404, json={"code": "not-found", "detail": "there is none"})
            return httpx.Response(200, json=found)

        def open_client(environment: Mapping[str, str]) -> RestClient:
            connection = Connection(url="https://c.test", root_file=Path("unused"), token="wrt_t")
            return RestClient(connection, transport=httpx.MockTransport(answer), pause=lambda _: None)

        shell = Shell(
            as_json=as_json,
            environment={},
            out=Console(file=out, width=160),
            err=Console(file=err, width=160),
            open_client=open_client,
        )
        self.exit_code = run_command(words, shell)
        self.out, self.err = out.getvalue(), err.getvalue()


def page(*items: object) -> dict[str, object]:
    return {"items": list(items), "next_cursor": None}


def test_runs_list_says_what_each_run_waits_for() -> None:
    typed = Typed(["runs", "list"], {"GET /api/v1/runs": page(RUN)})
    assert typed.exit_code == 0
    assert "2 of 3 approvals are missing: charite, ucsf." in typed.out
    assert typed.err == ""


def test_runs_list_under_json_is_one_document() -> None:
    typed = Typed(["runs", "list"], {"GET /api/v1/runs": page(RUN)}, as_json=True)
    assert json.loads(typed.out) == {"items": [RUN]}


def test_runs_list_of_nothing_says_what_to_do() -> None:
    typed = Typed(["runs", "list"], {"GET /api/v1/runs": page()})
    assert "wardround runs create" in typed.out


def test_runs_show_tells_what_it_waits_for_and_who_approved() -> None:
    typed = Typed(["runs", "show", "run-a"], {"GET /api/v1/runs/run-a": RUN})
    assert "2 of 3 approvals are missing" in typed.out
    assert "st-mary approved" in typed.out


@pytest.mark.parametrize("action", ["start", "pause", "resume", "cancel"])
def test_runs_action_is_one_write_with_a_key(action: str) -> None:
    typed = Typed(["runs", action, "run-a"], {f"POST /api/v1/runs/run-a:{action}": RUN})
    assert typed.exit_code == 0
    assert [request.method for request in typed.requests] == ["POST"]
    assert typed.requests[0].headers["Idempotency-Key"]


def test_unknown_run_is_exit_code_4_with_the_problem_in_the_document() -> None:
    typed = Typed(["runs", "show", "run-x"], {}, as_json=True)
    assert typed.exit_code == 4
    assert json.loads(typed.out)["error"]["code"] == "not-found"
    assert "there is none" in typed.err


@pytest.mark.parametrize(("status", "exit_code"), [(403, 3), (409, 1), (422, 2), (503, 5)])
def test_refusal_of_the_coordinator_becomes_its_exit_code(status: int, exit_code: int) -> None:
    refusal = httpx.Response(status, json={"code": "c", "detail": "because"})
    typed = Typed(["sites", "suspend", "st-mary"], {"POST /api/v1/sites/st-mary:suspend": refusal})
    assert typed.exit_code == exit_code
    assert "because" in typed.err
    assert typed.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["sites", "invite", "St Mary"],
        ["sites", "revoke", "st-mary"],
        ["runs", "fly"],
        ["rounds", "show", "run-a", "-1"],
        ["demo", "--sites", "2"],
        ["users", "grant", "ada", "king"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_nobody(words: list[str]) -> None:
    typed = Typed(words, {})
    assert typed.exit_code == 2
    assert typed.requests == []
    assert typed.out == ""


def test_wrong_usage_under_json_is_one_document_too() -> None:
    typed = Typed(["users", "grant", "ada", "king"], {}, as_json=True)
    assert (typed.exit_code, json.loads(typed.out)["error"]["code"]) == (2, "usage-invalid")


def test_token_that_could_not_be_written_is_not_made(tmp_path: Path) -> None:
    words = ["tokens", "create", "--label", "laptop", "--file", str(tmp_path / "none" / "laptop.token")]
    typed = Typed(words, {})
    assert (typed.exit_code, typed.requests) == (2, [])
    assert f"there is no folder {tmp_path / 'none'}" in typed.err


def test_invitation_shows_the_command_whole() -> None:
    command = "wardround-site enrol --coordinator fl.example.org:8445 --code WR1-" + "A" * 120
    answer = {"site": {"site_id": "st-mary"}, "code": "WR1-A", "expires_at": "2026-01-09T00:00:00Z", "command": command}
    typed = Typed(["sites", "invite", "st-mary"], {"POST /api/v1/sites": answer})
    assert command in typed.out
    assert typed.bodies == [{"name": "st-mary"}]


def test_runs_create_lists_every_fault_and_sends_nothing(tmp_path: Path, write_adapter: Callable[[Path], None]) -> None:
    write_adapter(tmp_path)
    (tmp_path / "run.yaml").write_text("apiVersion: wardround/v1\nkind: Run\nrounds: 0\nsurprise: 1\n")
    typed = Typed(["runs", "create", "-f", str(tmp_path / "run.yaml"), "--adapter", str(tmp_path)], {})
    assert typed.exit_code == 2
    assert typed.requests == []
    for path in ("rounds", "surprise", "name", "base_model"):
        assert f"  {path}: " in typed.err


def test_runs_create_lists_the_faults_before_it_asks_for_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("kind: Run\nrounds: 0\n")
    typed = Typed(["runs", "create", "-f", str(tmp_path / "run.yaml"), "--adapter", str(tmp_path)], {})
    assert typed.exit_code == 2
    assert "  rounds: " in typed.err


def test_runs_create_without_adapter_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(run_spec_document()))
    typed = Typed(["runs", "create", "-f", str(tmp_path / "run.yaml"), "--adapter", str(tmp_path)], {})
    assert typed.exit_code == 4
    assert "init-adapter" in typed.err


def test_rounds_list_shows_losses_out_of_the_report() -> None:
    document = {
        "round_index": 0,
        "kind": "train",
        "state": "COMMITTED",
        "report": {"train_loss": 2.125, "eval_loss": 2.25},
    }
    typed = Typed(["rounds", "list", "run-a"], {"GET /api/v1/runs/run-a/rounds": page(document)})
    assert "2.125" in typed.out
    assert "2.25" in typed.out


def test_sites_list_shows_the_version_of_each_agent() -> None:
    # docs/runbooks/upgrade.md sends people here for it.
    site = {"site_id": "st-mary", "state": "ENROLLED", "agent_version": "0.1.7", "last_seen_at": None, "reason": None}
    assert "0.1.7" in Typed(["sites", "list"], {"GET /api/v1/sites": page(site)}).out


def test_watch_follows_to_the_end_and_fails_where_the_run_failed() -> None:
    ended = {**RUN, "state": "FAILED", "reason": "quorum-not-reached"}
    stream = f'event: run\ndata: {json.dumps(RUN)}\n\nevent: end\ndata: {{"state": "FAILED"}}\n\n'
    answers = {
        "GET /api/v1/runs/run-a/events": httpx.Response(200, text=stream),
        "GET /api/v1/runs/run-a": ended,
    }
    typed = Typed(["runs", "watch", "run-a"], answers)
    assert typed.exit_code == 1
    assert "AWAITING_SITES" in typed.out


def test_token_into_a_file_is_not_printed(tmp_path: Path) -> None:
    answer = {"token": "wrt_secret", "token_id": "t1", "label": "laptop"}
    file = tmp_path / "token"
    words = ["tokens", "create", "--label", "laptop", "--file", str(file)]
    typed = Typed(words, {"POST /api/v1/tokens": answer})
    assert file.read_text() == "wrt_secret\n"
    assert "wrt_secret" not in typed.out
    assert Typed(words, {"POST /api/v1/tokens": answer}).exit_code == 2, "a token is not written over another"


def test_token_is_asked_for_with_its_scopes_and_its_end() -> None:
    answer = {"token": "wrt_secret", "token_id": "t1", "label": "watch", "scopes": ["audit:read", "runs:*"]}
    words = ["tokens", "create", "--label", "watch", "--days", "7", "--scope", "runs:*", "--scope", "audit:read"]
    typed = Typed(words, {"POST /api/v1/tokens": answer}, as_json=True)
    assert typed.bodies == [{"label": "watch", "lifetime_s": 7 * 86400, "scopes": ["runs:*", "audit:read"]}]
    assert json.loads(typed.out) == answer


def test_tokens_of_everybody_are_asked_for_by_the_word_that_the_coordinator_knows() -> None:
    typed = Typed(["tokens", "list", "--all"], {"GET /api/v1/tokens": page()})
    assert typed.requests[0].url.params["scope"] == "all"


def test_refused_grant_exits_with_three() -> None:
    refusal = httpx.Response(403, json={"code": "role-insufficient", "detail": "your roles do not permit this"})
    typed = Typed(["users", "grant", "ada", "auditor"], {"POST /api/v1/users/ada:grant": refusal})
    assert typed.exit_code == 3


def test_audit_verify_of_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    typed = Typed(["audit", "verify", "--file", str(tmp_path / "none")], {})
    assert typed.exit_code == 4


def test_release_folder_that_does_not_verify_is_exit_code_1_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "manifest.sig").write_text("{}")
    typed = Typed(["releases", "verify", str(tmp_path)], {}, as_json=True)
    assert typed.exit_code == 1
    assert json.loads(typed.out)["error"]["code"] == "evidence-fault"


RELEASE = {
    "release_id": "rel-a",
    "run_id": "run-a",
    "state": "APPROVED",
    "manifest_sha256": "ab" * 32,
    "signatures": [{"user": "user:maria", "role": "study-lead", "meaning": "read it", "at": "2026-01-02T03:04:05Z"}],
    "marks": [
        {
            "kind": "dataset-withdrawn",
            "cause": "ucsf/qa@2026",
            "reason": "consent-withdrawn",
            "at": "2026-01-02T03:04:05Z",
        }
    ],
    "parents": ["rel-0"],
    "descendants": [],
}


def test_releases_list_and_show_tell_who_signed_and_what_is_known_against_it() -> None:
    typed = Typed(["releases", "list"], {"GET /api/v1/releases": page(RELEASE)})
    assert "dataset-withdrawn ucsf/qa@2026 (consent-withdrawn)" in typed.out
    shown = Typed(["releases", "show", "rel-a"], {"GET /api/v1/releases/rel-a": RELEASE})
    assert 'user:maria as study-lead: "read it"' in shown.out
    assert "rel-0" in shown.out


def test_releases_approve_sends_what_was_reviewed_and_the_passphrase_and_tells_the_marks(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    answers = {"GET /api/v1/releases/rel-a": RELEASE, "POST /api/v1/releases/rel-a:approve": RELEASE}
    words = ["releases", "approve", "rel-a", "--meaning", "no objection", "--as", "privacy-officer"]
    typed = Typed([*words, "--passphrase-file", str(tmp_path / "passphrase"), "--manifest", "cd" * 32], answers)
    assert typed.exit_code == 0
    assert typed.bodies[-1] == {
        "meaning": "no objection",
        "manifest_sha256": "cd" * 32,
        "role": "privacy-officer",
        "passphrase": "correct horse battery",
    }
    assert "Known against it: dataset-withdrawn" in typed.err
    assert "correct horse battery" not in typed.out + typed.err


def test_releases_approve_without_a_digest_shows_which_it_signs(tmp_path: Path) -> None:
    (tmp_path / "login").write_text("a.b.c")
    answers = {"GET /api/v1/releases/rel-a": RELEASE, "POST /api/v1/releases/rel-a:approve": RELEASE}
    words = ["releases", "approve", "rel-a", "--meaning", "fit", "--fresh-token-file", str(tmp_path / "login")]
    typed = Typed(words, answers)
    assert typed.bodies[-1] == {"meaning": "fit", "manifest_sha256": "ab" * 32, "fresh_token": "a.b.c"}
    assert "ab" * 32 in typed.err


def test_passphrase_set_sends_the_new_and_the_present_one(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).write_text(f"the {name} passphrase\n")
    words = ["passphrase", "set", "--file", str(tmp_path / "new"), "--current-file", str(tmp_path / "old")]
    typed = Typed(words, {"POST /api/v1/me/passphrase": {"set_at": "2026-01-02T03:04:05Z"}})
    assert typed.exit_code == 0
    assert typed.bodies == [{"current_passphrase": "the old passphrase", "passphrase": "the new passphrase"}]


def test_folder_that_cannot_be_written_is_said_so_without_a_traceback(tmp_path: Path) -> None:
    answers = {"GET /api/v1/audit/export": httpx.Response(200, text="{}")}
    typed = Typed(["audit", "export", str(tmp_path / "none" / "audit.jsonl")], answers)
    assert typed.exit_code == 1
    assert "No such file or directory" in typed.err


def test_older_export_is_overwritten_only_where_that_is_said(tmp_path: Path) -> None:
    answers = {"GET /api/v1/audit/export": httpx.Response(200, text="new")}
    file = tmp_path / "audit.jsonl"
    file.write_text("old")
    typed = Typed(["audit", "export", str(file)], answers)
    assert (typed.exit_code, file.read_text()) == (2, "old")
    assert "add --replace" in typed.err
    assert Typed(["audit", "export", str(file), "--replace"], answers).exit_code == 0
    assert file.read_text() == "new"


def test_every_command_has_help_with_an_example() -> None:
    # typer writes help to the real stdout, so the declarations are looked at.
    import typer

    from wardround.__main__ import app

    def commands(group: typer.Typer) -> list[tuple[str, str | None]]:
        found = [(str(info.name), info.epilog) for info in group.registered_commands]
        for member in group.registered_groups:
            assert member.typer_instance is not None
            found += commands(member.typer_instance)
        return found

    declared = commands(app)
    assert len(declared) > 25
    assert [name for name, epilog in declared if not (epilog or "").startswith("Example: wardround ")] == []
