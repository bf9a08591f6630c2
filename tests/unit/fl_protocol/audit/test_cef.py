"""Lines for a SIEM, read back by a parser that follows the format's description and knows nothing of the writer."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.audit.cef import LoggedEvent, cef_text, severity_of, syslog_line
from fl_protocol.audit.events import AuditKind

AT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
LEAF = "ab" * 32


def event_of(**changes: Any) -> LoggedEvent:
    usual: dict[str, Any] = {
        "origin": "site:charite",
        "seq": 7,
        "leaf_sha256": LEAF,
        "at": AT,
        "kind": "round.joined",
        "actor": "agent",
        "facts": {},
    }
    return LoggedEvent(**{**usual, **changes})


def split_header(text: str) -> list[str]:
    """The seven fields of a CEF header and the extension, by unescaped pipes."""
    fields, field, letters = [], "", iter(text)
    for letter in letters:
        if letter == "\\" and len(fields) < 7:
            field += next(letters)
        elif letter == "|" and len(fields) < 7:
            fields.append(field)
            field = ""
        else:
            field += letter
    return [*fields, field]


def parse_extension(text: str) -> dict[str, str]:
    """Keys are words before an unescaped equals sign; a value goes on to the next key."""
    marks = list(re.finditer(r"(?:^| )(\w+)=", _masked(text)))
    found = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        raw = text[mark.end() : None if following is None else following.start()]
        value = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), raw, flags=re.DOTALL)
        assert mark[1] not in found
        found[mark[1]] = value
    return found


def _masked(text: str) -> str:
    # An escaped character cannot begin or end a key.
    return re.sub(r"\\.", "\x01\x01", text, flags=re.DOTALL)


def test_line_is_the_one_that_the_documentation_shows() -> None:
    line = syslog_line(
        event_of(
            kind="call.refused",
            actor="user:ada",
            facts={"run_id": "run-1", "round_index": 2, "site_id": "ucsf", "code": "history-forked", "n": 3},
        ),
        version="0.2.0",
    )
    assert line == (
        "<108>1 2026-01-02T03:04:05.678901Z site:charite wardround - call.refused - "
        "CEF:0|Wardround|Wardround|0.2.0|call.refused|call refused|7|"
        f"rt=1767323045678 externalId=7 deviceExternalId=site:charite cs3Label=leafSha256 cs3={LEAF} suser=ada "
        "cs1Label=run_id cs1=run-1 cs2Label=site_id cs2=ucsf cn1Label=round_index cn1=2 reason=history-forked "
        'msg={"code":"history-forked","n":3}'
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "a|b",
        "back\\slash",
        "x=y suser=root",
        "line\nCEF:0|Evil|Evil|1|x|x|10|",
        "cr\rlf\r\n<0>1 - - - - - -",
        "\\",
        "\\|",
        "tab\tand\x00nul\x1b[31mred",
        "\u2028line\u2029paragraph\x85next",
        " cs3=forged",
        "ends with backslash\\",
    ],
)
def test_hostile_text_neither_ends_a_line_nor_makes_a_field(hostile: str) -> None:
    line = syslog_line(
        event_of(actor=f"user:{hostile}", origin=hostile, facts={"reason": hostile, hostile: hostile}),
        version=hostile,
    )
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    assert re.match(r"<\d+>1 \S+ \S+ wardround - round\.joined - CEF:0\|", line)
    header = split_header(line[line.index("CEF:0|") :])
    assert header[1:3] == ["Wardround", "Wardround"]
    assert header[4:7] == ["round.joined", "round joined", "3"]
    fields = parse_extension(header[7])
    assert set(fields) == {"rt", "externalId", "deviceExternalId", "cs3Label", "cs3", "suser", "reason", "msg"}
    assert fields["cs3"] == LEAF
    readable = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", hostile).replace("\t", " ")
    assert fields["reason"] == readable
    assert fields["suser"] == readable


@given(text=st.text(max_size=40))
def test_any_text_comes_back_or_is_replaced_letter_by_letter(text: str) -> None:
    fields = parse_extension(split_header(cef_text(event_of(facts={"reason": text}), version="1"))[7])
    if text:
        assert len(fields["reason"]) == len(text)
    assert fields["cs3"] == LEAF


def test_signed_statements_are_left_to_the_export() -> None:
    facts = {"manifest": "QUJD", "statement": "REVG", "held_statement": "R0hJ", "log_size": 4}
    text = cef_text(event_of(facts=facts), version="1")
    assert json.loads(parse_extension(split_header(text)[7])["msg"]) == {"log_size": 4}


def test_every_kind_has_a_severity_and_a_fork_has_the_highest() -> None:
    assert all(0 <= severity_of(kind) <= 10 for kind in AuditKind)
    assert [kind for kind in AuditKind if severity_of(kind) == 10] == [AuditKind.HISTORY_FORKED]
    assert severity_of("of.a-later-version") == 3


@pytest.mark.parametrize("what", ["user.", "role.", "policy.loaded"])
def test_every_change_of_users_roles_and_policies_has_the_severity_that_the_page_names(what: str) -> None:
    # docs/operating/coordinator.md: "5 failures, and changes of users, roles and policies".
    assert {severity_of(kind) for kind in AuditKind if kind.startswith(what)} == {5}
