"""Asking the C library about memory that was freed: where there is one that can be asked, and what comes of it."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fl_protocol.free_memory import give_back_free_memory, keep_room_for_chunks

MIB = 1 << 20

# Allocates and frees ten mebibytes again and again, in a process of its own, and says how many new pages that took.
NEW_PAGES = """
import os, resource, sys
from fl_protocol.free_memory import keep_room_for_chunks
if sys.argv[1] == "keep":
    keep_room_for_chunks({})
def turn():
    chunks = [bytearray(1 << 20) for _ in range(10)]
    del chunks
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

RESIDENT_AFTER_A_VECTOR = """
import os
from pathlib import Path
from fl_protocol.free_memory import keep_room_for_chunks
keep_room_for_chunks({})
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
vector = bytearray(64 << 20)
held = resident() - before
del vector
print(held, resident() - before)
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such setting")


def said_by(code: str, *arguments: str) -> list[int]:
    clean = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=clean, capture_output=True, text=True, check=True
    )
    return [int(word) for word in ran.stdout.split()]


@glibc_only
def test_freed_chunks_are_used_again_instead_of_new_pages() -> None:
    (left_alone,), (kept,) = said_by(NEW_PAGES, "no"), said_by(NEW_PAGES, "keep")
    # Twenty turns of ten mebibytes are 51,200 pages of 4 KiB where each turn begins with new ones.
    assert left_alone > 10_000
    assert kept < 1000


@glibc_only
def test_vector_goes_back_to_the_kernel_when_it_is_freed() -> None:
    held, after = said_by(RESIDENT_AFTER_A_VECTOR)
    assert held >= 60 * MIB
    assert after < 4 * MIB


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=0"}],
)
def test_what_an_operator_has_set_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: pytest.fail("the C library was asked"))
    keep_room_for_chunks(environment)


def test_free_memory_is_asked_for_without_leaving_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=asked.append))
    give_back_free_memory()
    assert asked == [0]


def test_c_library_that_cannot_be_asked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    keep_room_for_chunks({})
    give_back_free_memory()


def test_program_without_a_c_library_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str | None) -> object:
        raise OSError("static program")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_room_for_chunks({})
    give_back_free_memory()
