"""Which SSH host keys are trusted for one host: reading ``known_hosts`` files (DESIGN rule 10).

paramiko's own ``HostKeys`` takes time quadratic in the number of (hashed) entries, keeps one key per type, and silently
ignores ``@revoked`` lines and patterns. This reads the files the way ``sshd(8)`` describes them, for one host at a time.
``@cert-authority`` lines are skipped: paramiko does not verify host certificates.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qmp_migrate.errors import HostKeyError

#: Read when the settings name no file, in this order (what OpenSSH reads as well).
DEFAULT_FILES = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))


class _PublicKey(Protocol):
    def get_name(self) -> str: ...
    def get_base64(self) -> str: ...
    def asbytes(self) -> bytes: ...


@dataclass(slots=True)
class KnownKeys:
    """The keys that ``known_hosts`` files give for one host.

    Attributes:
        lookup: The host as it stands in such a file: ``address``, or ``[address]:port`` where the port is not 22.
        files: Where was looked.
        trusted: ``(type, base64)`` of the keys that are the host's.
        revoked: base64 of keys that must never be accepted.
    """

    lookup: str
    files: tuple[Path, ...]
    trusted: list[tuple[str, str]] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, address: str, port: int, file: Path | None) -> KnownKeys:
        """Collect the keys known for ``address``.

        Args:
            address: DNS name or IP address, as it is connected to.
            port: SSH port.
            file: The only file to read, or ``None`` for :data:`DEFAULT_FILES`.
        """
        lookup = address if port == 22 else f"[{address}]:{port}"
        files = (file.expanduser(),) if file else tuple(path.expanduser() for path in DEFAULT_FILES)
        known = cls(lookup, files)
        for path in files:
            try:
                text = path.read_text("utf-8", "replace")
            except OSError:  # absent: the host is then unknown, and the message names the file
                continue
            known._add_lines(text.splitlines())
        return known

    def _add_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            fields = line.split()
            marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
            if len(fields) < 3 or fields[0].startswith("#") or not _matches(fields[0], self.lookup):
                continue
            if marker == "@revoked":
                self.revoked.add(fields[2])
            elif not marker:
                self.trusted.append((fields[1], fields[2]))

    def preferred_types(self, offered: Iterable[str]) -> list[str]:
        """Order host key algorithms so that the host is asked for a key that is known.

        Without this a host known by its RSA key would show its Ed25519 key and look like an impostor.
        """
        types = {name for name, _ in self.trusted}
        if "ssh-rsa" in types:  # the key's type; the algorithms that sign with it have names of their own
            types |= {"rsa-sha2-512", "rsa-sha2-256"}
        return sorted(offered, key=lambda name: name not in types)

    def verify(self, key: _PublicKey, host: str) -> None:
        """Accept ``key`` or raise.

        Args:
            key: What the host proved to own in the key exchange.
            host: The host's name, for the message.

        Raises:
            HostKeyError: The key is revoked, differs from the known ones, or the host is not known at all.
        """
        offered = key.get_base64()
        shown = f"{key.get_name()} {fingerprint(key.asbytes())}"
        where = " or ".join(str(path) for path in self.files)
        if offered in self.revoked:
            raise HostKeyError(
                f"the SSH host key of {self.lookup} ({shown}) is marked as revoked in {where}",
                hint="do not connect; the machine must get a new host key",
                host=host,
            )
        if any(hmac.compare_digest(offered, known) for _, known in self.trusted):
            return
        if self.trusted:
            kinds = ", ".join(sorted({name for name, _ in self.trusted}))
            raise HostKeyError(
                f"the SSH host key of {self.lookup} has CHANGED: it shows {shown}, but {where} has another one ({kinds})",
                hint="someone may be listening in, or the machine was set up anew. When its administrator confirms the "
                f"new fingerprint, remove the old key with: ssh-keygen -R {shlex.quote(self.lookup)} "
                f"-f {shlex.quote(str(self.files[0]))}",
                host=host,
            )
        raise HostKeyError(
            f"the SSH host key of {self.lookup} is not known: it shows {shown}, and {where} has no key for it",
            hint=f"compare the fingerprint with the machine's own, then add it: {self._scan_line()}",
            host=host,
        )

    def _scan_line(self) -> str:
        address, _, port = self.lookup.removeprefix("[").rpartition("]:")
        scan = ["ssh-keyscan", "-p", port, address] if address else ["ssh-keyscan", self.lookup]
        return f"{shlex.join(scan)} >> {shlex.quote(str(self.files[0]))}"


def fingerprint(blob: bytes) -> str:
    """Return a public key's fingerprint as ``ssh-keygen -l`` shows it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


def _matches(patterns: str, lookup: str) -> bool:
    """Tell whether the first field of a ``known_hosts`` line means the host ``lookup``."""
    if patterns.startswith("|1|"):
        salt, _, digest = patterns[3:].partition("|")
        try:
            mac = hmac.new(base64.b64decode(salt), lookup.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(mac, base64.b64decode(digest))
        except ValueError:
            return False
    found = False
    for pattern in patterns.split(","):
        # Only * and ? are special there; [ is literal, as in [address]:port.
        wanted = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(lookup.lower(), wanted.lower()):
            if pattern.startswith("!"):
                return False
            found = True
    return found
