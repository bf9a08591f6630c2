from __future__ import annotations

import base64
from pathlib import Path

import pytest

from site_agent.errors import ProxyCredentialsError, ProxyInvalidError
from site_agent.link.proxy import ConnectAnswer, ProxyRoute, choose_proxy, is_exempt

TARGET = "fl.example.org:8444"


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "proxy.credentials"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        (None, {}, None),
        (None, {"https_proxy": "http://proxy:8080"}, "proxy:8080"),
        (None, {"HTTPS_PROXY": "proxy:8080"}, "proxy:8080"),
        (None, {"http_proxy": "http://proxy:8080"}, None),
        (None, {"https_proxy": "http://proxy:8080", "no_proxy": "example.org"}, None),
        (None, {"https_proxy": "http://proxy:8080", "no_proxy": "example.com"}, "proxy:8080"),
        ("http://other:3128", {"https_proxy": "http://proxy:8080", "no_proxy": "*"}, "other:3128"),
        ("http://other", {}, "other:3128"),
        ("http://[2001:db8::1]:3128", {}, "[2001:db8::1]:3128"),
        ("none", {"https_proxy": "http://proxy:8080"}, None),
    ],
)
def test_proxy_is_the_settings_else_the_environments(
    setting: str | None, environment: dict[str, str], expected: str | None
) -> None:
    route = choose_proxy(setting, target=TARGET, environment=environment)
    assert (None if route is None else route.address) == expected


@pytest.mark.parametrize(
    ("no_proxy", "is_one"),
    [
        ("*", True),
        ("fl.example.org", True),
        ("example.org", True),
        (".example.org", True),
        ("*.example.org", True),
        ("a.test,FL.EXAMPLE.ORG", True),
        ("a.test fl.example.org:8444", True),
        ("fl.example.org:443", False),
        ("l.example.org", False),
        ("example.org.evil.test", False),
        ("", False),
        (",", False),
    ],
)
def test_no_proxy_names_hosts_and_domains(no_proxy: str, is_one: bool) -> None:
    assert is_exempt("fl.example.org", 8444, no_proxy=no_proxy) is is_one


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_one"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "[2001:db8::1]:8444", True),
    ],
)
def test_no_proxy_names_addresses_and_networks(host: str, no_proxy: str, is_one: bool) -> None:
    assert is_exempt(host, 8444, no_proxy=no_proxy) is is_one


@pytest.mark.parametrize(
    "url", ["https://proxy:3128", "socks5://proxy:1080", "http://", "http://proxy:port", "http://p/x"]
)
def test_setting_that_is_no_http_proxy_is_refused(url: str) -> None:
    with pytest.raises(ProxyInvalidError):
        choose_proxy(url, target=TARGET, environment={})


def test_credentials_come_from_their_file_and_are_never_shown(tmp_path: Path) -> None:
    file = written(tmp_path, "st-mary:s:cr€t%@/\n")
    route = choose_proxy("http://proxy:3128", target=TARGET, credentials_file=file, environment={})
    assert route is not None
    head = route.connect_request("fl.example.org", 8444).decode()
    # RFC 7617, section 2: base64 of user-id ":" password, in UTF-8.
    expected = base64.b64encode("st-mary:s:cr€t%@/".encode()).decode()
    assert head.startswith("CONNECT fl.example.org:8444 HTTP/1.1\r\nHost: fl.example.org:8444\r\n")
    assert f"Proxy-Authorization: Basic {expected}\r\n" in head
    assert head.endswith("\r\n\r\n")
    assert "cr€t" not in repr(route) + str(route) + route.address
    # RFC 3986, section 2.1.
    assert route.grpc_option() == "http://st-mary:s%3Acr%E2%82%ACt%25%40%2F@proxy:3128"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("st-mary:s3cret", 0o644),
        ("st-mary:s3cret", 0o640),
        ("s3cret", 0o600),
        (":s3cret", 0o600),
        ("a:s3cret\nb", 0o600),
    ],
)
def test_credentials_file_that_is_open_or_wrong_is_refused_without_its_content(
    tmp_path: Path, text: str, mode: int
) -> None:
    file = written(tmp_path, text, mode)
    with pytest.raises(ProxyCredentialsError) as refused:
        choose_proxy("http://proxy", target=TARGET, credentials_file=file, environment={})
    assert "s3cret" not in f"{refused.value} {refused.value!r} {refused.value.facts}"


def test_credentials_in_the_setting_are_refused_without_being_repeated() -> None:
    with pytest.raises(ProxyInvalidError) as refused:
        choose_proxy("http://st-mary:s3cret@proxy:3128", target=TARGET, environment={})
    assert "s3cret" not in f"{refused.value} {refused.value!r} {refused.value.facts}"


def test_credentials_in_the_environment_are_decoded() -> None:
    route = choose_proxy(None, target=TARGET, environment={"https_proxy": "http://a%40b:p%3Aw@proxy:1"})
    assert route is not None
    assert route.credentials is not None
    assert (route.credentials.user, route.credentials.password) == ("a@b", "p:w")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", 200),
        (b"HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", 407),
        (b"HTTP/1.1 403\r\n\r\n", 403),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 0),
        (b"HTTP/1.1 abc\r\n\r\n", 0),
        (bytes(70_000), 0),
    ],
)
def test_answer_of_a_proxy_is_read_in_any_pieces(answer: bytes, status: int) -> None:
    at_once, by_byte = ConnectAnswer(), ConnectAnswer()
    assert at_once.feed(answer)
    for index in range(len(answer)):
        if by_byte.feed(answer[index : index + 1]):
            break
    assert (at_once.status, by_byte.status) == (status, status)
    assert at_once.is_open is (status == 200)


def test_route_without_credentials_says_none() -> None:
    assert b"Authorization" not in ProxyRoute(host="proxy", port=1).connect_request("h", 2)
