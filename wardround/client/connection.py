"""Where the coordinator is, which root certificate it must show, and which token opens it.

Written by ``wardround login`` into one folder of the user's, readable by nobody else; the environment wins over it. The
token is never an argument of a command: arguments are visible to every user of a machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wardround.documents import document_from_text, text_of
from wardround.errors import ResponseUnreadableError, UsageInvalidError

URL_VARIABLE = "WARDROUND_URL"
TOKEN_FILE_VARIABLE = "WARDROUND_TOKEN_FILE"  # noqa: S105 # the name of a variable that names a file
ROOT_FILE_VARIABLE = "WARDROUND_ROOT_FILE"
HOME_VARIABLE = "WARDROUND_HOME"

_LOGIN_ADVICE = "Sign in first: wardround login https://HOST:PORT --root FILE --token-file FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach one coordinator. Invariant: the address is https; the server is trusted by ``root_file`` alone."""

    url: str
    root_file: Path
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse an address that would send the token in clear."""
        if not self.url.startswith("https://"):
            raise UsageInvalidError(
                f"the coordinator's address must begin with https://, not {self.url!r}",
                advice="The token would travel in clear otherwise. Example: https://127.0.0.1:8443",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFolder:
    """The folder that ``wardround login`` writes, mode 0700; its files have mode 0600."""

    root: Path

    @classmethod
    def of_user(cls, environment: Mapping[str, str]) -> ProfileFolder:
        """``WARDROUND_HOME``, else ``wardround`` under the XDG configuration folder."""
        if environment.get(HOME_VARIABLE):
            return cls(root=Path(environment[HOME_VARIABLE]))
        parent = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return cls(root=Path(parent) / "wardround")

    @property
    def connection_file(self) -> Path:
        """Address, and which files belong to it."""
        return self.root / "connection.json"

    @property
    def token_file(self) -> Path:
        """The bearer token."""
        return self.root / "token"

    @property
    def root_file(self) -> Path:
        """The root certificate of the coordinator's authority."""
        return self.root / "root.pem"

    def save(self, *, url: str, token: str, root_pem: bytes) -> Connection:
        """Write all three files, the address last."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(self.token_file, token.encode() + b"\n")
        write_secret(self.root_file, root_pem)
        write_secret(self.connection_file, json.dumps({"url": url}).encode() + b"\n")
        return Connection(url=url, root_file=self.root_file, token=token)


def load_connection(environment: Mapping[str, str]) -> Connection:
    """The connection of the environment, completed by what ``login`` saved.

    Raises:
        UsageInvalidError: nobody signed in, or a file that is named does not exist.
    """
    folder = ProfileFolder.of_user(environment)
    url = environment.get(URL_VARIABLE) or _saved_url(folder)
    root_file = Path(environment.get(ROOT_FILE_VARIABLE) or folder.root_file)
    token_file = Path(environment.get(TOKEN_FILE_VARIABLE) or folder.token_file)
    if not root_file.is_file():
        raise UsageInvalidError(f"there is no root certificate at {root_file}", advice=_LOGIN_ADVICE)
    return Connection(url=url.rstrip("/"), root_file=root_file, token=read_token(token_file))


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        UsageInvalidError: the file cannot be read or is empty.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageInvalidError(f"the token file {path} cannot be read", advice=_LOGIN_ADVICE) from error
    if not token:
        raise UsageInvalidError(f"the token file {path} is empty", advice=_LOGIN_ADVICE)
    return token


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    beside.replace(path)


def _saved_url(folder: ProfileFolder) -> str:
    try:
        text = folder.connection_file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageInvalidError("nobody has signed in on this account", advice=_LOGIN_ADVICE) from error
    try:
        return text_of(document_from_text(text, source=str(folder.connection_file)), "url")
    except ResponseUnreadableError as error:
        raise UsageInvalidError(f"{folder.connection_file} is damaged", advice=_LOGIN_ADVICE) from error
