"""The hospital's proxy: which one is used, and the words that are said to it. Pure: no socket is opened here.

The setting wins over the environment, and what is decided here holds for every connection of the agent: gRPC, the
second transport, enrolment and ``doctor``. Only CONNECT through an ``http://`` proxy, with or without Basic
credentials: TLS goes through the tunnel unopened.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from site_agent.errors import ProxyCredentialsError, ProxyInvalidError

NO_PROXY = "none"
DEFAULT_PORT = 3128
_ANSWER_END = b"\r\n\r\n"
MAX_ANSWER_BYTES = 64 << 10
_SQUID_ERROR = re.compile(r"[A-Z_]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCredentials:
    """User and password. Neither is ever shown."""

    user: str = field(repr=False)
    password: str = field(repr=False)

    def basic(self) -> str:
        """The value of ``Proxy-Authorization`` (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRoute:
    """One proxy on the way out."""

    host: str
    port: int
    credentials: ProxyCredentials | None = None

    @property
    def address(self) -> str:
        """host:port, for people; without credentials."""
        return address_text(self.host, self.port)

    def grpc_option(self) -> str:
        """What gRPC takes as ``grpc.http_proxy``: it decodes percent signs in the credentials. Secret: never logged."""
        shown = ""
        if self.credentials is not None:
            shown = f"{quote(self.credentials.user, safe='')}:{quote(self.credentials.password, safe='')}@"
        return f"http://{shown}{self.address}"

    def connect_request(self, host: str, port: int) -> bytes:
        """The CONNECT for a tunnel (RFC 9110, 9.3.6). Secret where there are credentials."""
        target = address_text(host, port)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.credentials is not None:
            lines.append(f"Proxy-Authorization: {self.credentials.basic()}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class ConnectAnswer:
    """The proxy's answer as it arrives. What is behind its end belongs to the tunnel, and must be nothing yet."""

    def __init__(self) -> None:
        """Nothing is here yet."""
        self._held = b""
        self.status: int | None = None
        self.schemes: frozenset[str] = frozenset()
        """What credentials a 407 asks for, in small letters (RFC 9110, 11.7.1)."""
        self.reason = ""
        """What squid says that went wrong (``X-Squid-Error``): letters, digits and underscores."""

    def feed(self, data: bytes) -> bool:
        """Take bytes; True once ``status`` is known. 0 stands for an answer that is no HTTP."""
        self._held += data
        if _ANSWER_END not in self._held:
            if len(self._held) > MAX_ANSWER_BYTES:
                self.status = 0
            return self.status is not None
        words = self._held.split(b"\r\n", 1)[0].split(b" ", 2)
        is_http = len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1].isdigit()
        self.status = int(words[1]) if is_http else 0
        self._read_fields()
        return True

    def _read_fields(self) -> None:
        schemes = set()
        for line in self._held.split(_ANSWER_END, 1)[0].split(b"\r\n")[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "proxy-authenticate":
                schemes.add(value.strip().split(" ")[0].lower())
            elif name.lower() == "x-squid-error" and (named := _SQUID_ERROR.match(value.strip())):
                self.reason = named.group()
        self.schemes = frozenset(schemes)

    @property
    def is_open(self) -> bool:
        """Whether the tunnel stands."""
        return self.status is not None and 200 <= self.status < 300


def choose_proxy(
    setting: str | None,
    *,
    target: str,
    credentials_file: Path | None = None,
    environment: Mapping[str, str],
) -> ProxyRoute | None:
    """The proxy for connections to ``target`` (host:port); None for none.

    Args:
        setting: ``coordinator.proxy``: a URL, ``none``, or None where the environment decides.
        target: where the connection goes; ``no_proxy`` is compared with it.
        credentials_file: a file of mode 0600 with ``user:password``.
        environment: ``https_proxy`` and ``no_proxy`` (or in capitals) of the process.

    Raises:
        ProxyInvalidError: the proxy is not ``http://host:port``.
        ProxyCredentialsError: the file is missing, open to others, or holds something else.
    """
    if setting is not None:
        if setting == NO_PROXY:
            return None
        return _route(setting, source="coordinator.proxy", credentials_file=credentials_file, is_setting=True)
    url = _variable(environment, "https_proxy")
    host, _, port = target.rpartition(":")
    if not url or is_exempt(host.strip("[]"), int(port), no_proxy=_variable(environment, "no_proxy")):
        return None
    return _route(url, source="https_proxy", credentials_file=credentials_file, is_setting=False)


def check_proxy_setting(text: str) -> str:
    """Judge ``coordinator.proxy`` without using it.

    Raises:
        ProxyInvalidError: it is neither ``none`` nor ``http://host:port``.
    """
    if text != NO_PROXY:
        _route(text, source="coordinator.proxy", credentials_file=None, is_setting=True)
    return text


def is_exempt(host: str, port: int, *, no_proxy: str) -> bool:
    """Whether ``no_proxy`` names this target: ``*``, a host, a domain and all below it, an address, or a network."""
    name = host.lower().rstrip(".")
    return any(_names(entry, name, port) for entry in no_proxy.replace(",", " ").split())


def address_text(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    entry = entry.lower()
    if "/" in entry:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    named, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and (":" not in named or named.endswith("]")):
        if int(wanted) != port:
            return False
        entry = named
    entry = entry.strip("[]").removeprefix("*").strip(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _route(url: str, *, source: str, credentials_file: Path | None, is_setting: bool) -> ProxyRoute:
    # The environment's habit is to leave the scheme out; what stands before the host may be a password, so that no
    # error repeats the text.
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ProxyInvalidError("this is no proxy; write http://HOST:PORT", source=source) from error
    if parts.scheme != "http":
        message = "only proxies that are reached by http:// are supported (TLS runs inside their tunnel)"
        raise ProxyInvalidError(message, source=source)
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ProxyInvalidError("this is no proxy; write http://HOST:PORT", source=source)
    if parts.username is not None and is_setting:
        message = (
            "credentials do not belong into the setting; put user:password into coordinator.proxy_credentials_file"
        )
        raise ProxyInvalidError(message, source=source)
    credentials = None
    if credentials_file is not None:
        credentials = _credentials_from_file(credentials_file)
    elif parts.username is not None:
        credentials = ProxyCredentials(user=unquote(parts.username), password=unquote(parts.password or ""))
    return ProxyRoute(host=host, port=port, credentials=credentials)


def _credentials_from_file(path: Path) -> ProxyCredentials:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = "other users of this machine can read the proxy's password; run chmod 600 on the file"
            raise ProxyCredentialsError(message, file=path.name, mode=f"{mode:04o}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # What was read so far may be a password; nothing of it is repeated.
        message = "the file with the proxy's credentials cannot be read"
        raise ProxyCredentialsError(message, file=path.name) from (error if isinstance(error, OSError) else None)
    user, colon, password = text.rstrip("\r\n").partition(":")
    if not colon or not user or any(ord(letter) < 32 for letter in user + password):
        raise ProxyCredentialsError("the file holds one line: user:password", file=path.name)
    return ProxyCredentials(user=user, password=password)
