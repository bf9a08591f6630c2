from __future__ import annotations

import pytest

from fl_protocol.ids import IdentifierInvalidError, SiteId
from fl_protocol.pki.errors import SiteIdentityInvalidError
from fl_protocol.pki.identity import site_id_from_uri, site_uri


def test_uri_of_a_site_names_it() -> None:
    assert site_uri(SiteId("st-mary")) == "wardround://site/st-mary"
    assert site_id_from_uri("wardround://site/st-mary") == "st-mary"


@pytest.mark.parametrize(
    "uri",
    [
        "", "wardround://site/", "wardround://site/A", "wardround://site/a/b", "wardround://user/a", "https://a",
        "WARDROUND://site/a", "wardround://site/a?x=1", "xwardround://site/a",
    ],
)  # fmt: skip
def test_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(SiteIdentityInvalidError):
        site_id_from_uri(uri)


def test_uri_of_no_site_name_is_refused() -> None:
    with pytest.raises(IdentifierInvalidError):
        site_uri(SiteId("not a slug"))
