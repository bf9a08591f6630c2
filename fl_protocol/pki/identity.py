"""The name of a site in a certificate: one URI in the subject alternative names, ``wardround://site/<SiteId>``."""

from __future__ import annotations

from cryptography import x509

from fl_protocol.ids import IdentifierInvalidError, SiteId, site_id_from_text
from fl_protocol.pki.errors import SiteIdentityInvalidError

_PREFIX = "wardround://site/"


def site_uri(site_id: SiteId) -> str:
    """The URI that names a site."""
    return _PREFIX + site_id_from_text(site_id)


def site_id_from_uri(uri: str) -> SiteId:
    """The site that a URI names.

    Raises:
        SiteIdentityInvalidError: the URI is of another form.
    """
    if not uri.startswith(_PREFIX):
        raise SiteIdentityInvalidError("a site's URI starts with wardround://site/", uri=uri[:120])
    try:
        return site_id_from_text(uri.removeprefix(_PREFIX))
    except IdentifierInvalidError as error:
        raise SiteIdentityInvalidError("a site's URI ends with a site name", uri=uri[:120]) from error


def site_id_from_certificate(certificate: x509.Certificate) -> SiteId:
    """The one site that a certificate names.

    Raises:
        SiteIdentityInvalidError: it names none, or more than one thing.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise SiteIdentityInvalidError("the certificate has no subject alternative name") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or len(list(names)) != 1:
        raise SiteIdentityInvalidError("the certificate does not name exactly one site", n_names=len(list(names)))
    return site_id_from_uri(uris[0])
