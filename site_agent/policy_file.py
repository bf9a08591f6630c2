"""Reads the policy from its file. The rules themselves know no file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from site_agent.policy.reading import PolicyFault, PolicyFaultsError
from site_agent.policy.rules import SitePolicy, parse_policy
from site_agent.strict_yaml import read_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """A policy and the digest of the file that says it: what the audit log names."""

    policy: SitePolicy
    sha256: str


def load_policy(path: Path) -> SitePolicy:
    """Read the policy. Raises: as ``load_policy_version``."""
    return load_policy_version(path).policy


def load_policy_version(path: Path) -> PolicyVersion:
    """Read the policy and its version.

    Raises:
        PolicyFaultsError: the file is missing, no YAML mapping, or has faults; all are listed. A site without a
            readable policy permits nothing, so the caller must stop, not go on with another one.
    """
    try:
        # The file is read each time, so that a change counts from the next question on; the same words mean the same.
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _fault(f"{path.name} is not there") from error
    except OSError as error:
        raise _fault(f"{path.name} cannot be read: {error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        return PolicyVersion(policy=_policy_from_bytes(content, path.name), sha256=sha256)
    except PolicyFaultsError as error:
        raise PolicyFaultsError(error.faults, file_sha256=sha256) from error


@lru_cache(maxsize=4)
def _policy_from_bytes(content: bytes, name: str) -> SitePolicy:
    try:
        document = read_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _fault(f"{name} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise _fault(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return parse_policy({})
    if not isinstance(document, dict):
        raise _fault(f"{name} is not a mapping of keys to values")
    return parse_policy(document)


def _fault(message: str) -> PolicyFaultsError:
    return PolicyFaultsError((PolicyFault(path="(document)", message=message),))
