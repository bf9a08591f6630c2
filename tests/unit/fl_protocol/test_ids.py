from __future__ import annotations

import pytest

from fl_protocol.ids import IdentifierInvalidError, run_id_from_text, sha256_hex_from_text, site_id_from_text


@pytest.mark.parametrize("text", ["a", "st-mary", "0", "a" * 63, "site-7-"])
def test_site_id_of_a_slug_is_taken(text: str) -> None:
    assert site_id_from_text(text) == text


@pytest.mark.parametrize("text", ["", "-a", "A", "a b", "a_b", "a" * 64, "st-mary\n", "ä", "a/b"])
def test_site_id_of_anything_else_is_refused(text: str) -> None:
    with pytest.raises(IdentifierInvalidError) as caught:
        site_id_from_text(text)
    assert caught.value.code == "identifier-invalid"


def test_run_id_of_26_base32_characters_is_taken() -> None:
    text = "run-" + "abcdefghijklmnopqrstuvwxy2"
    assert run_id_from_text(text) == text


@pytest.mark.parametrize("text", ["run-", "run-" + "a" * 25, "run-" + "a" * 27, "run-" + "1" * 26, "RUN-" + "a" * 26])
def test_run_id_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(IdentifierInvalidError):
        run_id_from_text(text)


def test_sha256_of_64_lower_case_digits_is_taken() -> None:
    assert sha256_hex_from_text("0f" * 32) == "0f" * 32


@pytest.mark.parametrize("text", ["", "0f" * 31, "0F" * 32, "0g" * 32, "0f" * 32 + "\n"])
def test_sha256_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(IdentifierInvalidError):
        sha256_hex_from_text(text)


def test_error_of_an_identifier_tells_at_most_80_characters_of_it() -> None:
    with pytest.raises(IdentifierInvalidError) as caught:
        site_id_from_text("X" * 500)
    assert caught.value.facts["value"] == "X" * 80
