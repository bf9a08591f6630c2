from __future__ import annotations

import base64
import hashlib

import pytest

from site_agent.enrolment.code import code_from_text
from site_agent.enrolment.errors import EnrolmentCodeInvalidError

SECRET = bytes(range(20))
DER = b"a certificate"
TEXT = f"WR1-{base64.b32encode(SECRET).decode()}-{hashlib.sha256(DER).hexdigest()[:32]}"


@pytest.mark.parametrize("text", [TEXT, TEXT.lower(), TEXT.upper(), f"  {TEXT[:20]}\n{TEXT[20:]} "])
def test_code_from_text_reads_what_people_paste(text: str) -> None:
    code = code_from_text(text)
    assert code.secret == SECRET
    assert code.names_certificate(DER)
    assert not code.names_certificate(b"another certificate")


@pytest.mark.parametrize(
    "text", ["", "WR1", TEXT[:-1], TEXT + "0", TEXT.replace("WR1", "WR2"), "1" + TEXT, TEXT.replace("A", "1")]
)
def test_code_from_text_of_another_shape_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(EnrolmentCodeInvalidError) as caught:
        code_from_text(text)
    assert len(text) < 4 or text[4:20] not in str(caught.value)


def test_code_repr_shows_no_secret() -> None:
    assert "secret" not in repr(code_from_text(TEXT))
