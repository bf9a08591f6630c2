"""Files of the jobs folder that only grow, a line at a time: a reader that believes nothing of the writer."""

from __future__ import annotations

from pathlib import Path

from site_agent.jobs.documents import JobFileInvalidError
from site_agent.jobs.held_folder import JobsFolderUnsafeError, read_bounded_from


def read_lines_from(path: Path, offset: int, max_bytes: int) -> tuple[tuple[bytes, ...], int]:
    """The whole lines from ``offset`` on, without their ends, ``max_bytes`` at most, and where the next look begins.

    A line that is still being written is left for the next look. One that fills a whole look is none of ours: it is
    passed over, since a reader that waited for its end would never read again.

    Raises:
        JobFileInvalidError: what stands in the file's place is none.
    """
    try:
        content = read_bounded_from(path, offset, max_bytes)
    except FileNotFoundError:
        return (), offset
    except JobsFolderUnsafeError as error:
        raise JobFileInvalidError(error.message, file=path.name) from error
    *lines, unfinished = content.split(b"\n")
    if not lines and len(content) == max_bytes:
        return (), offset + len(content)
    return tuple(lines), offset + len(content) - len(unfinished)
