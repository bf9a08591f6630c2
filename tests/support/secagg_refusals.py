"""Short words for the tests of roles: the refusal that a call raises, signed lists taken apart and put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from fl_protocol.secagg.messages import (
    SignedList,
)
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.signing.signed import SignedBody


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> SecAggRefusedError:
    with pytest.raises(SecAggRefusedError) as caught:
        call(*args, **kwargs)
    return caught.value


def m2_of(entries: Iterable[SignedBody]) -> bytes:
    return SignedList(entries=tuple(entries)).encode()


def entries_of(data: bytes) -> list[SignedBody]:
    return list(SignedList.decode(data).entries)
