"""From a problem document (RFC 9457) to the error that a person reads. The one place where HTTP statuses are judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fl_protocol.errors import Fact
from wardround.errors import (
    CommandError,
    CommandFailedError,
    NotFoundError,
    RefusedError,
    SpecRefusedError,
    UnavailableError,
    UsageInvalidError,
)

PROBLEM_MEMBERS = frozenset({"type", "title", "status", "code", "detail", "instance", "advice", "faults"})

_CLASS_OF_STATUS: Mapping[int, type[CommandError]] = {
    400: UsageInvalidError,
    401: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    405: CommandFailedError,
    409: CommandFailedError,
    413: UsageInvalidError,
    415: UsageInvalidError,
    422: UsageInvalidError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}

_ADVICE_OF_STATUS: Mapping[int, str] = {
    401: "Sign in again: wardround login URL --token-file FILE",
    403: "Ask an admin for the role: wardround users grant USER ROLE",
    404: "The list commands show what there is, for example: wardround runs list",
    429: "Wait a moment and try again.",
    500: "The coordinator's log says why.",
    502: "Wait a moment and try again.",
    503: "Wait a moment and try again.",
    504: "Wait a moment and try again.",
}

_COMMANDS_OF_FACT: Mapping[str, tuple[str, str]] = {
    "run_id": ("wardround runs list", "wardround runs show RUN"),
    "site_id": ("wardround sites list", "wardround sites show SITE"),
    "release_id": ("wardround releases list", "wardround releases show ID"),
    "token_id": ("wardround tokens list --all", "wardround tokens list --all"),
    "user": ("wardround users list", "wardround users list"),
    "name": ("wardround users list", "wardround users list"),
}
"""What an answer names, and which commands list such things and show one."""


def error_from_response(status: int, body: bytes) -> CommandError:
    """The typed error for an answer with a status of 400 and above."""
    problem = _problem_from_body(body)
    code = _text(problem, "code") or f"http-{status}"
    message = (
        _text(problem, "detail") or _text(problem, "title") or f"the coordinator answered with HTTP status {status}"
    )
    advice = _text(problem, "advice") or _advice_of(status, problem)
    faults = _faults_of(problem)
    if faults:
        return SpecRefusedError(message, faults=faults, advice=advice or "Correct every line above, then try again.")
    facts: dict[str, Fact] = {
        key: value
        for key, value in problem.items()
        if key not in PROBLEM_MEMBERS and (value is None or isinstance(value, str | int | float | bool))
    }
    facts.pop("message", None)
    return _CLASS_OF_STATUS.get(status, CommandFailedError)(message, advice=advice, code=code, **facts)


def _advice_of(status: int, problem: Mapping[str, object]) -> str:
    """What to do, for answers that do not say it; about what the answer names, where it names something."""
    commands = next((commands for fact, commands in _COMMANDS_OF_FACT.items() if fact in problem), None)
    if commands is not None and status == HTTPStatus.NOT_FOUND:
        return f"See what there is: {commands[0]}"
    if commands is not None and status == HTTPStatus.CONFLICT:
        return f"Look at its state first: {commands[1]}"
    return _ADVICE_OF_STATUS.get(status, "")


def _problem_from_body(body: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(problem: Mapping[str, object], key: str) -> str:
    value = problem.get(key)
    return value if isinstance(value, str) else ""


def _faults_of(problem: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    faults = problem.get("faults")
    if not isinstance(faults, list):
        return ()
    return tuple(
        (str(fault.get("path", "")), str(fault.get("message", ""))) for fault in faults if isinstance(fault, dict)
    )
