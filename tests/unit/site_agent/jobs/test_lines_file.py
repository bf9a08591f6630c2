"""Files that only grow, read by somebody who trusts none of their lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from site_agent.jobs.lines_file import read_lines_from
from site_agent.jobs.spool_files import ENDS_FILE, append_end, read_ends_from

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_read_once_and_an_unfinished_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    assert read_lines_from(path, 0, 100) == ((b"one", b"two"), 8)
    assert read_lines_from(path, 8, 100) == ((), 8)
    path.write_bytes(b"one\ntwo\nthree\n")
    assert read_lines_from(path, 8, 100) == ((b"three",), 14)
    assert read_lines_from(path, 14, 100) == ((), 14)


def test_a_file_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    assert read_lines_from(tmp_path / "said.jsonl", 5, 100) == ((), 5)


def test_a_look_that_ends_within_a_line_is_continued_where_the_line_begins(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_bytes(b"one\ntwo\n")
    assert read_lines_from(path, 0, 6) == ((b"one",), 4)
    assert read_lines_from(path, 4, 6) == ((b"two",), 8)


def test_a_line_that_fills_a_look_is_passed_over_and_what_follows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    path.write_bytes(b"x" * 10 + b"\nafter\n")
    assert read_lines_from(path, 0, 8) == ((), 8)
    assert read_lines_from(path, 8, 8) == ((b"xx",), 11)
    assert read_lines_from(path, 11, 8) == ((b"after",), 17)


def test_an_end_told_after_an_endless_line_is_still_heard(tmp_path: Path) -> None:
    # What a trainer that was taken over might do so that nobody hears how its lives end.
    (tmp_path / ENDS_FILE).write_bytes(b"0" * (200 << 10) + b"\n")
    append_end(tmp_path, 137)
    heard: list[int] = []
    offset, is_more = 0, True
    while is_more:
        codes, beyond = read_ends_from(tmp_path, offset)
        heard += codes
        offset, is_more = beyond, beyond > offset
    assert heard == [137]
