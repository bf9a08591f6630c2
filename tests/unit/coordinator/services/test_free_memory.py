"""Asking the C library for what it keeps: where there is one that can be asked."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from coordinator.services.free_memory import give_back_free_memory


def test_free_memory_is_asked_for_without_leaving_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=asked.append))
    give_back_free_memory()
    assert asked == [0]


def test_c_library_that_cannot_be_asked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    give_back_free_memory()


def test_program_without_a_c_library_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str | None) -> object:
        raise OSError("static program")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    give_back_free_memory()
