from __future__ import annotations

from collections.abc import Callable

import pytest

from fl_protocol.secagg.messages import (
    AuditHeads,
    DealtShares,
    KeyAdvertisement,
    MessageInvalidError,
    RevealedShare,
    ShareKeys,
    ShareKind,
    ShareLeaf,
    SignedList,
)
from fl_protocol.secagg.reading import read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.testing.federation import LastSent
from fl_protocol.testing.scene import Scene


def test_messages_of_a_whole_exchange_decode_and_encode_to_the_same_bytes(scene: Scene) -> None:
    from fl_protocol.secagg import coordinator_role

    scene.play(LastSent.M9, lost=("site-2",))
    for message in scene.m3s.values():
        assert ShareKeys.decode(message).encode() == message
    for message in (scene.m2, scene.m6, scene.m8):
        assert SignedList.decode(message).encode() == message
    m4 = coordinator_role.make_m4(scene.shared, scene.sites[0])
    assert DealtShares.decode(m4).encode() == m4


@pytest.mark.parametrize("decode", [ShareKeys.decode, DealtShares.decode, SignedList.decode, KeyAdvertisement.decode])
def test_messages_cut_anywhere_are_refused(scene: Scene, decode: Callable[[bytes], object]) -> None:
    from fl_protocol.secagg import coordinator_role
    from fl_protocol.signing.signed import SignedBody

    scene.play(LastSent.M3)
    site = scene.sites[0]
    data = {
        "ShareKeys": scene.m3s[site],
        "DealtShares": coordinator_role.make_m4(scene.shared, site),
        "SignedList": scene.m2,
        "KeyAdvertisement": SignedBody.decode(scene.m1s[site]).body,
    }[decode.__self__.__name__]
    # Cutting at the end of a field leaves a shorter list: no malformed message, but another one.
    for stop in (1, 3, 5, len(data) // 2, len(data) - 1):
        with pytest.raises(SecAggRefusedError) as caught:
            read_message(decode, data[:stop])
        assert caught.value.reason is RefusalReason.MESSAGE_MALFORMED


def test_share_leaf_ciphertext_of_another_size_is_refused() -> None:
    leaf = ShareLeaf(holder="site-1", ciphertext=bytes(10), commitment=bytes(64))
    with pytest.raises(MessageInvalidError):
        ShareLeaf.decode(leaf.encode())


def test_revealed_share_hides_its_value() -> None:
    share = RevealedShare(peer="site-1", kind=ShareKind.MASK_KEY, share=b"\xab" * 32)
    assert "abab" not in repr(share)
    assert "\\xab" not in repr(share)


def test_audit_heads_wrong_sizes_are_refused() -> None:
    with pytest.raises(MessageInvalidError):
        AuditHeads(head=bytes(31))
    with pytest.raises(MessageInvalidError):
        AuditHeads(size=-1)
