"""Changes the ``peers`` of ``site.yaml`` and leaves every other line, comments included, as the hospital wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from site_agent.errors import SiteAgentError

_TOP_LEVEL_PEERS = re.compile(r"^peers\s*:")
_COMMENT_INSIDE = re.compile(r"^\s+#")


class PeersFileError(SiteAgentError):
    """``site.yaml`` is written in a way that this program would not change safely."""

    code = "peers-file-unchanged"


def text_with_peers(text: str, peers: Mapping[str, str]) -> str:
    """``text`` with its ``peers`` replaced, sorted by name.

    Args:
        text: the whole of a ``site.yaml``.
        peers: site name to SHA-256 of its signing key, all of them.

    Raises:
        PeersFileError: the result would say something else than meant; the file should be edited by hand.
    """
    lines = text.splitlines()
    block = ["peers: {}"] if not peers else ["peers:", *(f'  {name}: "{pin}"' for name, pin in sorted(peers.items()))]
    starts = [index for index, line in enumerate(lines) if _TOP_LEVEL_PEERS.match(line)]
    if len(starts) > 1:
        raise _unchanged()
    if starts:
        end = starts[0] + 1
        while end < len(lines) and lines[end][:1] in {" ", "\t"} and not _COMMENT_INSIDE.match(lines[end]):
            end += 1
        changed = [*lines[: starts[0]], *block, *lines[end:]]
    else:
        changed = [*lines, "", *block]
    result = "\n".join(changed) + "\n"
    _check(text, result, peers)
    return result


def _check(before: str, after: str, peers: Mapping[str, str]) -> None:
    """The new text must hold the old document with other peers, and nothing else."""
    try:
        old, new = yaml.safe_load(before) or {}, yaml.safe_load(after)
    except yaml.YAMLError as error:
        raise _unchanged() from error
    if not isinstance(old, dict) or new != {**old, "peers": dict(peers)}:
        raise _unchanged()


def _unchanged() -> PeersFileError:
    return PeersFileError("site.yaml is not in a form that can be changed safely; edit its 'peers' by hand")
