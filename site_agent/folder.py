"""Where things lie in a site's state folder: names only, one place. Reads no file and knows no settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFolder:
    """The state folder of one site. Invariant: ``root`` is absolute, so that no later ``chdir`` moves the keys."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.absolute())

    @property
    def site_yaml(self) -> Path:
        """The configuration that the hospital edits."""
        return self.root / "site.yaml"

    @property
    def policy_yaml(self) -> Path:
        """The policy's usual place; ``site.yaml`` may name another."""
        return self.root / "policy.yaml"

    @property
    def keys_dir(self) -> Path:
        """The folder of the private keys, mode 0700."""
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        """The site's long-lived signing key, mode 0600."""
        return self.keys_dir / "signing.pem"

    @property
    def tls_key(self) -> Path:
        """The key of the TLS certificate, mode 0600; another key than the signing key."""
        return self.keys_dir / "tls.pem"

    @property
    def tls_identity(self) -> Path:
        """The TLS key and its certificate in one file, mode 0600, once they were renewed: one rename replaces both."""
        return self.keys_dir / "tls.identity.pem"

    @property
    def previous_tls_identity(self) -> Path:
        """Those before, until the coordinator has admitted the new ones."""
        return self.keys_dir / "tls.previous.pem"

    @property
    def next_tls_key(self) -> Path:
        """The key for which a certificate is being asked, mode 0600."""
        return self.keys_dir / "tls.next.pem"

    @property
    def renewal(self) -> Path:
        """What is asked for that key, word for word, so that it can be asked again."""
        return self.keys_dir / "renewal.json"

    @property
    def statements(self) -> Path:
        """The number and digest of the last statement under the signing key."""
        return self.keys_dir / "statements.json"

    @property
    def renewal_wish(self) -> Path:
        """A steward's wish, left for the running agent, that it renews at once."""
        return self.root / "renew.wish"

    @property
    def certs_dir(self) -> Path:
        """What the coordinator answered at enrolment; nothing secret."""
        return self.root / "certs"

    @property
    def certificate(self) -> Path:
        """The site's TLS certificate."""
        return self.certs_dir / "site.pem"

    @property
    def root_certificate(self) -> Path:
        """The coordinator's root certificates."""
        return self.certs_dir / "root.pem"

    @property
    def trusted_roots(self) -> Path:
        """The coordinator's signed word which roots to believe, once there was one."""
        return self.certs_dir / "roots.json"

    @property
    def identity(self) -> Path:
        """Who the site is; written last at enrolment, so that it stands for a whole one."""
        return self.certs_dir / "identity.json"

    @property
    def database(self) -> Path:
        """The site's one SQLite file."""
        return self.root / "site.db"

    @property
    def journal_dir(self) -> Path:
        """What a crash must not lose, one folder an exchange."""
        return self.root / "journal"

    @property
    def jobs_dir(self) -> Path:
        """Job directories, shared with the trainer."""
        return self.root / "jobs"

    @property
    def private_states_dir(self) -> Path:
        """What local rules keep at this site between rounds; not in the jobs folder, where a trainer writes."""
        return self.root / "private"

    @property
    def states_dir(self) -> Path:
        """Public states of runs, computed from published sums."""
        return self.root / "states"

    @property
    def coordinator_log(self) -> Path:
        """How much of the coordinator's log this site has seen, and which restore it knows of."""
        return self.root / "coordinator_log.json"

    @property
    def downloads_dir(self) -> Path:
        """Published blobs on their way; nothing secret."""
        return self.root / "downloads"

    @property
    def status_json(self) -> Path:
        """What the running agent says of itself."""
        return self.root / "status.json"
