"""Reads the policy from its file. The rules themselves know no file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

from site_agent.policy.reading import PolicyFault, PolicyFaultsError
from site_agent.policy.rules import SitePolicy, parse_policy


def load_policy(path: Path) -> SitePolicy:
    """Read the policy.

    Raises:
        PolicyFaultsError: the file is missing, no YAML mapping, or has faults; all are listed. A site without a
            readable policy permits nothing, so the caller must stop, not go on with another one.
    """
    try:
        # The file is read each time, so that a change counts from the next question on; the same words mean the same.
        return _policy_from_text(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError as error:
        raise _fault(f"{path.name} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(f"{path.name} cannot be read: {error}") from error


@lru_cache(maxsize=4)
def _policy_from_text(text: str, name: str) -> SitePolicy:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _fault(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return parse_policy({})
    if not isinstance(document, dict):
        raise _fault(f"{name} is not a mapping of keys to values")
    return parse_policy(document)


def _fault(message: str) -> PolicyFaultsError:
    return PolicyFaultsError((PolicyFault(path="(document)", message=message),))
