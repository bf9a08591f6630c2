# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""Tokens of an identity provider, good and forged, over HTTPS to a coordinator that asks a real issuer for its keys."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from coordinator.oidc.documents import MAX_BYTES, HttpsFetcher
from coordinator.oidc.key_ring import MAX_AGE_S, REFETCH_EVERY_S, RETRY_EVERY_S
from coordinator.oidc.provider import IdentityProvider
from coordinator.oidc.rules import (
    IdentityProviderUnavailableError,
    OidcRules,
    Subject,
    TokenFault,
    TokenRefused,
)
from tests.support.local_issuer import (
    AUDIENCE,
    DISCOVERY,
    JWKS,
    Answer,
    LocalIssuer,
    compact,
    encoded,
    hs256,
    jwk_of,
    new_ec_key,
    new_rsa_key,
    public_pem,
    signature_of,
)

ROLE_MAP = {"study-auditors": "auditor", "study-leads": "study-lead", "study-admins": "admin"}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    made = LocalIssuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def federated(coordinator, tmp_path_factory, issuer):
    """A coordinator of its own that accepts the issuer's tokens."""
    made = type(coordinator)(
        directory=tmp_path_factory.mktemp("federated") / "state",
        environment={"WARDROUND_RATE_LIMITS__FAILURES_BURST": "100000"},
    )
    made.init()
    document = yaml.safe_load(made.config.read_text())
    document["oidc"] = {
        "issuer": issuer.issuer,
        "audience": AUDIENCE,
        "role_map": ROLE_MAP,
        "ca_file": str(issuer.ca_file),
    }
    made.config.write_text(yaml.safe_dump(document))
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def http(federated):
    with federated.client(None) as client:
        yield client


def me(http, token: str):
    return http.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})


# Attacks


def forged(issuer: LocalIssuer) -> dict[str, tuple[str, str]]:
    """Every forgery by name: the token, and the reason that it must be refused for."""
    now = int(time.time())
    stranger, none, pem = new_rsa_key(), {"alg": "none"}, public_pem(issuer.rsa)
    good = issuer.token()
    header, claims, signature = good.split(".")
    other_claims = encoded(json.dumps(issuer.claims(sub="eve")).encode())
    modulus = json.dumps(jwk_of(issuer.rsa, "rsa-1")).encode()
    deep = b'{"a":' + b"[" * 4000
    return {
        "wrong audience": (issuer.token(aud="another-service"), "audience-not-ours"),
        "audience that only contains ours": (issuer.token(aud=f"{AUDIENCE}-other"), "audience-not-ours"),
        "no audience": (issuer.token(aud=None), "audience-not-ours"),
        "audience object": (issuer.token(aud={AUDIENCE: 1}), "audience-not-ours"),
        "other issuer": (issuer.token(iss="https://evil.example/realms/study"), "issuer-not-configured"),
        "issuer with a slash more": (issuer.token(iss=issuer.issuer + "/"), "issuer-not-configured"),
        "no issuer": (issuer.token(iss=None), "issuer-not-configured"),
        "not yet valid": (issuer.token(nbf=now + 600), "not-yet-valid"),
        "issued in the future": (issuer.token(iat=now + 600), "not-yet-valid"),
        "no expiry": (issuer.token(exp=None), "malformed"),
        "expiry that is a word": (issuer.token(exp="never"), "malformed"),
        "expiry that is true": (issuer.token(exp=True), "malformed"),
        "no time of issue": (issuer.token(iat=None), "malformed"),
        "beginning that is a word": (issuer.token(nbf="always"), "malformed"),
        "alg none, unsigned": (issuer.token(header=none, sign=lambda _: b""), "algorithm-not-accepted"),
        "alg None": (issuer.token(header={"alg": "None"}, sign=lambda _: b""), "algorithm-not-accepted"),
        "alg none with the good signature": (issuer.token(header=none), "algorithm-not-accepted"),
        "no alg": (issuer.token(header={"alg": None}), "algorithm-not-accepted"),
        "alg list": (issuer.token(header={"alg": ["RS256"]}), "algorithm-not-accepted"),
        "HS256 with the public key": (issuer.token(header={"alg": "HS256"}, sign=hs256(pem)), "algorithm-not-accepted"),
        "HS256 with the JWK": (issuer.token(header={"alg": "HS256"}, sign=hs256(modulus)), "algorithm-not-accepted"),
        "HS256 signature named RS256": (issuer.token(sign=hs256(pem)), "signature-wrong"),
        "RS256 under the name of the EC key": (issuer.token(header={"kid": "ec-1"}), "key-unknown"),
        "EC key under RS256": (issuer.token(key=issuer.ec, header={"alg": "RS256", "kid": "rsa-1"}), "signature-wrong"),
        "PS256": (issuer.token(header={"alg": "PS256"}), "algorithm-not-accepted"),
        "unknown kid": (issuer.token(header={"kid": "rsa-9"}), "key-unknown"),
        "kid that is a path": (issuer.token(header={"kid": "../../dev/null"}), "key-unknown"),
        "no kid": (issuer.token(header={"kid": None}), "malformed"),
        "kid that is a number": (issuer.token(header={"kid": 1}), "malformed"),
        "stranger's key under a known kid": (issuer.token(key=stranger), "signature-wrong"),
        "stranger's key in the header": (
            issuer.token(key=stranger, header={"jwk": jwk_of(stranger, "rsa-1")}),
            "signature-wrong",
        ),
        "stranger's address in the header": (
            issuer.token(key=stranger, header={"jku": "https://127.0.0.1:9/keys", "x5u": "https://127.0.0.1:9/x"}),
            "signature-wrong",
        ),
        "extension that is critical": (issuer.token(header={"crit": ["exp"], "exp": 0}), "malformed"),
        "token of another type": (issuer.token(header={"typ": "logout+jwt"}), "malformed"),
        "claims changed": (f"{header}.{other_claims}.{signature}", "signature-wrong"),
        "signature gone": (f"{header}.{claims}.", "signature-wrong"),
        "no subject": (issuer.token(sub=None), "subject-unusable"),
        "empty subject": (issuer.token(sub=""), "subject-unusable"),
        "subject of two lines": (issuer.token(sub="ada\nuser:admin"), "subject-unusable"),
        "subject too long to be kept": (issuer.token(sub="a" * 129), "subject-unusable"),
        "claim twice": (
            compact(
                {"alg": "RS256", "kid": "rsa-1"},
                json.dumps(issuer.claims())[:-1].encode() + b',"sub":"eve"}',
                lambda content: signature_of(issuer.rsa, content),
            ),
            "malformed",
        ),
        "nested without end": (f"{encoded(deep)}.{encoded(deep)}.", "malformed"),
        "oversized": (issuer.token(padding="x" * 8192), "malformed"),
        "no object": (compact(b"[]", b"[]", hs256(b"x")), "malformed"),
        "no base64": ("a!b.c.d", "malformed"),
        "infinite expiry": (
            compact(
                {"alg": "RS256", "kid": "rsa-1"},
                json.dumps(issuer.claims(exp=float("inf"))).encode(),
                lambda content: signature_of(issuer.rsa, content),
            ),
            "malformed",
        ),
    }


def test_forgery_is_made_as_a_good_token_is(issuer, http) -> None:
    """What is refused below is refused for what was changed: unchanged, it is let in."""
    assert me(http, issuer.token()).status_code == 200
    assert me(http, issuer.token(header={"typ": "at+jwt"})).status_code == 200
    assert me(http, issuer.token(header={"typ": None}, padding="x" * 1000)).status_code == 200


def test_forgeries_are_refused_each_for_its_reason_and_nothing_of_them_is_kept(issuer, federated, http) -> None:
    answers = {name: (me(http, token), reason) for name, (token, reason) in forged(issuer).items()}
    assert {name: answer.status_code for name, (answer, _) in answers.items() if answer.status_code != 401} == {}
    found = {name: (answer.json()["code"], answer.json().get("reason")) for name, (answer, _) in answers.items()}
    assert found == {name: ("token-refused", reason) for name, (_, reason) in answers.items()}
    with federated.client(federated.admin_token()) as admin:
        assert not any("eve" in user["name"] for user in admin.get("/api/v1/users").json()["items"])


@pytest.mark.parametrize("seconds_ago", [61, 3600])
def test_token_that_has_expired_says_so(issuer, http, seconds_ago) -> None:
    answer = me(http, issuer.token(exp=int(time.time()) - seconds_ago))
    assert (answer.status_code, answer.json()["code"]) == (401, "token-expired")


@pytest.mark.parametrize("roles", [None, [], ["students"], "students", {"study-admins": True}, [["study-admins"]], 7])
def test_token_without_a_role_of_ours_is_known_and_may_nothing(issuer, http, roles) -> None:
    answer = me(http, issuer.token(sub="nobody", roles=roles))
    assert (answer.status_code, answer.json()["code"]) == (403, "role-insufficient")
    headers = {"Authorization": f"Bearer {issuer.token(sub='nobody', roles=roles)}", "Idempotency-Key": "x"}
    assert http.post("/api/v1/sites", json={"name": "a"}, headers=headers).status_code == 403


# What is accepted


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_person_of_the_issuer_is_who_the_token_says_with_the_roles_that_are_mapped(issuer, http, kind) -> None:
    key = issuer.rsa if kind == "rsa" else issuer.ec
    answer = me(http, issuer.token(key=key, sub="grace", aud=["other", AUDIENCE], roles=["students", "study-leads"]))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["name"], answer.json()["roles"]) == (f"oidc:{issuer.host}/grace", ["study-lead"])
    again = me(http, issuer.token(key=key, sub="grace", roles="study-auditors study-leads"))
    assert again.json()["roles"] == ["auditor", "study-lead"]
    assert again.json()["user_id"] == answer.json()["user_id"]


def test_clocks_may_differ_by_a_minute(issuer, http) -> None:
    now = int(time.time())
    assert me(http, issuer.token(exp=now - 30)).status_code == 200
    assert me(http, issuer.token(iat=now + 30, nbf=now + 30)).status_code == 200


def test_principal_stands_in_the_audit_log_and_has_no_token_of_ours(issuer, federated, http) -> None:
    token = issuer.token(sub="otto", roles=["study-admins"])
    headers = {"Authorization": f"Bearer {token}"}
    keyed = {**headers, "Idempotency-Key": os.urandom(8).hex()}
    made = http.post("/api/v1/users", json={"name": "by otto", "roles": []}, headers=keyed)
    assert made.status_code == 201
    assert http.post("/api/v1/users", json={"name": "by otto", "roles": []}, headers=keyed).json() == made.json()
    name = f"oidc:{issuer.host}/otto"
    with federated.client(federated.admin_token()) as admin:
        events = admin.get("/api/v1/audit/events", params={"kind": "user.added", "limit": 500}).json()["items"]
        assert [event["facts"]["name"] for event in events if event["actor"] == name] == [name, "by otto"]
        user_id = me(http, token).json()["user_id"]
        refused = admin.post(f"/api/v1/users/{user_id}:grant", json={"role": "admin"})
        assert (refused.status_code, refused.json()["code"]) == (422, "request-invalid")
        taken = admin.post("/api/v1/users", json={"name": name + "-2", "roles": ["admin"]})
        assert (taken.status_code, taken.json()["code"]) == (422, "request-invalid")
    own = http.post("/api/v1/tokens", json={"label": "outlives the provider"}, headers=headers)
    assert (own.status_code, own.json()["code"]) == (422, "request-invalid")


def test_our_own_tokens_go_on_beside_the_issuers(federated, issuer, http) -> None:
    asked = len(issuer.asked)
    assert me(http, federated.admin_token()).json()["name"] == "admin"
    assert me(http, "wrt_" + "A" * 43).json()["code"] == "token-unknown"
    assert len(issuer.asked) == asked


def test_coordinator_without_an_issuer_knows_no_such_token(coordinator, issuer) -> None:
    with coordinator.client(issuer.token(roles=["study-admins"])) as client:
        answer = client.get("/api/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (401, "token-unknown")


# The issuer's documents


class Time:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def own(tmp_path):
    """An issuer of this test alone."""
    made = LocalIssuer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def moved() -> Time:
    return Time()


def provider_for(
    issuer: LocalIssuer, moved: Time, *, trusted: Path | None = None, **changes: object
) -> IdentityProvider:
    rules = {
        "issuer": issuer.issuer,
        "audience": AUDIENCE,
        "roles_claim": "roles",
        "role_map": ROLE_MAP,
        **changes,
    }
    return IdentityProvider(OidcRules(**rules), HttpsFetcher(ca_file=trusted or issuer.ca_file), monotonic=moved)


@pytest.fixture
def both_trusted(own, issuer, tmp_path) -> Path:
    """TLS to the other place would work: what keeps the program from there is the program."""
    file = tmp_path / "both.pem"
    file.write_bytes(own.ca_file.read_bytes() + issuer.ca_file.read_bytes())
    return file


def judged(provider: IdentityProvider, token: str) -> Subject | TokenFault:
    found = provider.judge(token, now=datetime.now(UTC))
    return found.fault if isinstance(found, TokenRefused) else found


def test_documents_are_fetched_once_and_again_after_an_hour(own, moved) -> None:
    provider = provider_for(own, moved)
    for _ in range(5):
        assert isinstance(judged(provider, own.token()), Subject)
    assert own.asked == [DISCOVERY, JWKS]
    moved.now = MAX_AGE_S
    assert isinstance(judged(provider, own.token()), Subject)
    assert own.asked == [DISCOVERY, JWKS] * 2


def test_rotated_key_is_found_at_once_and_the_old_one_is_gone(own, moved) -> None:
    provider = provider_for(own, moved)
    old = own.token()
    assert isinstance(judged(provider, old), Subject)
    fresh = new_rsa_key()
    own.keys = [jwk_of(fresh, "rsa-2")]
    rotated = own.token(key=fresh, header={"kid": "rsa-2"})
    assert isinstance(judged(provider, rotated), Subject)
    assert judged(provider, old) is TokenFault.KEY_UNKNOWN
    assert own.asked == [DISCOVERY, JWKS, JWKS]


def test_unknown_keys_make_the_issuer_be_asked_once_a_minute_and_no_more(own, moved) -> None:
    provider = provider_for(own, moved)
    for number in range(50):
        assert judged(provider, own.token(header={"kid": f"invented-{number}"})) is TokenFault.KEY_UNKNOWN
    assert own.n_asked(JWKS) == 2
    moved.now = REFETCH_EVERY_S
    for number in range(50):
        assert judged(provider, own.token(header={"kid": f"invented-{number}"})) is TokenFault.KEY_UNKNOWN
    assert own.n_asked(JWKS) == 3


def test_forgery_of_another_issuer_makes_nobody_be_asked(own, moved) -> None:
    provider = provider_for(own, moved)
    assert judged(provider, own.token(iss="https://evil.example")) is TokenFault.ISSUER
    assert own.asked == []


@pytest.mark.parametrize("is_strangers_first", [True, False])
def test_two_keys_under_one_kid_are_both_left_out(own, moved, is_strangers_first) -> None:
    stranger = new_rsa_key()
    pair = [jwk_of(own.rsa, "rsa-1"), jwk_of(stranger, "rsa-1")]
    own.keys = [*(reversed(pair) if is_strangers_first else pair), jwk_of(own.ec, "ec-1")]
    provider = provider_for(own, moved)
    assert judged(provider, own.token(key=stranger)) is TokenFault.KEY_UNKNOWN
    assert judged(provider, own.token()) is TokenFault.KEY_UNKNOWN
    assert isinstance(judged(provider, own.token(key=own.ec)), Subject)


def test_one_kid_for_two_kinds_of_key_is_two_names(own, moved) -> None:
    own.keys = [jwk_of(own.rsa, "one"), jwk_of(own.ec, "one")]
    provider = provider_for(own, moved)
    assert isinstance(judged(provider, own.token(header={"kid": "one"})), Subject)
    assert isinstance(judged(provider, own.token(key=own.ec, header={"kid": "one"})), Subject)


@pytest.mark.parametrize(
    "fault", ["small", "encryption", "other-alg", "symmetric", "private", "no-kid", "broken", "p384"]
)
def test_key_that_must_not_sign_is_left_out(own, moved, fault) -> None:
    key, entry = own.rsa, jwk_of(own.rsa, "rsa-1")
    match fault:
        case "small":
            key = new_rsa_key(1024)
            entry = jwk_of(key, "rsa-1")
        case "encryption":
            entry["use"] = "enc"
        case "other-alg":
            entry["alg"] = "RS512"
        case "symmetric":
            entry = {"kty": "oct", "kid": "rsa-1", "k": encoded(b"k" * 32)}
        case "private":
            entry["d"] = encoded(b"x" * 256)
        case "no-kid":
            del entry["kid"]
        case "broken":
            entry["n"] = "!"
        case "p384":
            entry = {**jwk_of(own.ec, "rsa-1"), "crv": "P-384"}
    own.keys = [entry]
    assert judged(provider_for(own, moved), own.token(key=key)) is TokenFault.KEY_UNKNOWN


def redirected(own: LocalIssuer, target: LocalIssuer) -> Answer:
    return Answer(status=302, headers={"Location": f"https://{target.host}{JWKS}"})


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
def test_redirect_to_another_place_is_not_followed(own, issuer, moved, both_trusted, path) -> None:
    own.answers[path] = redirected(own, issuer)
    asked = len(issuer.asked)
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider_for(own, moved, trusted=both_trusted), own.token())
    assert len(issuer.asked) == asked


@pytest.mark.parametrize(
    "uri", ["https://{other}" + JWKS, "http://{own}" + JWKS, "file:///etc/passwd", "https://[", 7, None]
)
def test_keys_in_another_place_than_the_issuer_are_not_fetched(own, issuer, moved, both_trusted, uri) -> None:
    named = uri.format(other=issuer.host, own=own.host) if isinstance(uri, str) else uri
    own.answers[DISCOVERY] = Answer(json.dumps({"issuer": own.issuer, "jwks_uri": named}).encode())
    asked = len(issuer.asked)
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider_for(own, moved, trusted=both_trusted), own.token())
    assert own.asked == [DISCOVERY]
    assert len(issuer.asked) == asked


def test_keys_at_the_other_host_that_the_operator_named_are_fetched(own, issuer, moved, both_trusted) -> None:
    named = f"https://{issuer.host}{JWKS}"
    own.answers[DISCOVERY] = Answer(json.dumps({"issuer": own.issuer, "jwks_uri": named}).encode())
    provider = provider_for(own, moved, trusted=both_trusted, keys_host=issuer.host)
    assert isinstance(judged(provider, own.token(key=issuer.rsa)), Subject)


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(b" " * (MAX_BYTES + 1)),
        Answer(b'{"a":' + b"[" * 200_000),
        Answer(b"[]"),
        Answer(b"<html>"),
        Answer(b"{}", headers={"Content-Encoding": "gzip"}),
        Answer(b"{}", status=500),
    ],
    ids=["oversized", "nested", "no-object", "no-json", "compressed", "status-500"],
)
def test_document_that_cannot_be_one_is_unavailable_and_not_a_refusal(own, moved, path, answer) -> None:
    own.answers[path] = answer
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider_for(own, moved), own.token())


def test_discovery_of_another_issuer_is_not_believed(own, moved) -> None:
    document = {"issuer": "https://evil.example", "jwks_uri": f"https://{own.host}{JWKS}"}
    own.answers[DISCOVERY] = Answer(json.dumps(document).encode())
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider_for(own, moved), own.token())


def test_issuer_whose_certificate_is_not_trusted_is_unavailable(own, issuer, moved) -> None:
    rules = OidcRules(issuer=own.issuer, audience=AUDIENCE, roles_claim="roles", role_map=ROLE_MAP)
    provider = IdentityProvider(rules, HttpsFetcher(ca_file=issuer.ca_file), monotonic=moved)
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider, own.token())
    assert own.asked == []


def test_issuer_that_is_gone_is_unavailable_and_tried_again_after_a_while(own, moved) -> None:
    provider = provider_for(own, moved)
    own.answers[DISCOVERY] = Answer(status=503)
    for _ in range(20):
        with pytest.raises(IdentityProviderUnavailableError):
            judged(provider, own.token())
    assert own.asked == [DISCOVERY]
    del own.answers[DISCOVERY]
    moved.now = RETRY_EVERY_S
    assert isinstance(judged(provider, own.token()), Subject)


def test_known_keys_go_on_while_the_issuer_is_gone_and_an_unknown_one_is_not_called_wrong(own, moved) -> None:
    provider = provider_for(own, moved)
    assert isinstance(judged(provider, own.token()), Subject)
    own.stop()
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider, own.token(header={"kid": "rotated"}))
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider, own.token(header={"kid": "rotated"}))
    assert isinstance(judged(provider, own.token()), Subject)
    moved.now = MAX_AGE_S
    with pytest.raises(IdentityProviderUnavailableError):
        judged(provider, own.token())


def test_unreachable_issuer_is_a_503_over_https_while_our_own_tokens_go_on(new_coordinator, own) -> None:
    new_coordinator.init()
    document = yaml.safe_load(new_coordinator.config.read_text())
    document["oidc"] = {
        "issuer": own.issuer,
        "audience": AUDIENCE,
        "role_map": ROLE_MAP,
        "ca_file": str(own.ca_file),
    }
    new_coordinator.config.write_text(yaml.safe_dump(document))
    token = own.token()
    own.stop()
    new_coordinator.start()
    with new_coordinator.client(token) as client, new_coordinator.client(new_coordinator.admin_token()) as admin:
        answer = client.get("/api/v1/me")
        assert (answer.status_code, answer.json()["code"]) == (503, "identity-provider-unavailable")
        assert "127.0.0.1" not in answer.text
        assert admin.get("/api/v1/me").status_code == 200


def test_new_key_of_the_issuer_signs_at_once(own, moved) -> None:
    own.ec = new_ec_key()
    own.keys = [jwk_of(own.ec, "ec-1")]
    assert isinstance(judged(provider_for(own, moved), own.token(key=own.ec)), Subject)


@pytest.mark.parametrize(
    ("claim", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["study-leads"]}}),
        ("https://study.example/roles", {"https://study.example/roles": ["study-leads"]}),
        ("groups", {"groups": "study-leads other"}),
    ],
)
def test_roles_are_read_where_the_operator_says(own, moved, claim, claims) -> None:
    provider = provider_for(own, moved, roles_claim=claim)
    found = judged(provider, own.token(**{"roles": ["study-admins"], **claims}))
    assert isinstance(found, Subject)
    assert found.roles == {"study-lead"}
