"""A small certificate authority for one broker: who may connect, proven by certificate, one identity each.

A directory holds all of it::

    ca.crt ca.key           the authority; ca.key never leaves this machine
    broker.crt broker.key   the broker's, with the names and addresses that it is reached by
    crl.pem                 identities that are revoked
    identities/NAME.crt     one pair each, for an agent (its host's name), ``controller@NAME``, ``subscriber@NAME``,
    identities/NAME.key     ``bridge@NAME``

The common name is the identity: Mosquitto takes it for the user name. A host's identity is its name, by DESIGN rule 10, so
that no certificate is ever made out to a name with ``+``, ``#`` or ``/``; the other roles have an ``@``, which no host
name has, so that nobody but an agent can write below a host.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qmp_migrate.errors import ConfigError, InvalidName, UsageError
from qmp_migrate.vm.names import validate_name

Role = Literal["agent", "controller", "subscriber", "bridge"]

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 397
"""What browsers accept at most; long enough to renew once a year."""
WARN_DAYS: Final = 30
SKEW: Final = timedelta(hours=1)
"""Certificates are valid from a little earlier: the clocks of hosts differ."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One who may connect.

    Attributes:
        name: Common name of its certificate, and user name at the broker.
        role: What it may do.
        certificate, key: Its files (PEM).
        expires_at: UTC.
        revoked: It may not any more.
    """

    name: str
    role: Role
    certificate: Path
    key: Path
    expires_at: datetime
    revoked: bool

    @property
    def days_left(self) -> int:
        """Whole days until it expires; negative: it has."""
        return (self.expires_at - datetime.now(UTC)).days


def identity_name(role: Role, name: str) -> str:
    """Return the identity of a host's agent, a controller, a subscriber or a bridge.

    Raises:
        InvalidName: The name is none.
    """
    validate_name(name, f"{role} name" if role != "agent" else "host name")
    return name if role == "agent" else f"{role}@{name}"


def role_of(identity: str) -> Role:
    """Return what an identity may do."""
    prefix = identity.partition("@")[0] if "@" in identity else "agent"
    others: tuple[Role, ...] = ("controller", "subscriber", "bridge")
    return next((role for role in others if role == prefix), "agent")


class Authority:
    """The authority in a directory. Made by `create` or `open`.

    Attributes:
        directory: Where everything is.
    """

    def __init__(self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.directory = directory
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """Make an authority, or open the one that is there.

        Raises:
            ConfigError: The directory cannot be written, or holds half of one.
        """
        if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
            return cls.open(directory)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "qmp-migrate CA")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        try:
            (directory / "identities").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"{directory} cannot be made: {error.strerror}", hint="name another directory") from error
        made = cls(directory, certificate, key)
        write_file(directory / "ca.key", _key_pem(key), 0o600)
        write_file(directory / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        made._write_revoked([])
        return made

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """Open the authority of a directory.

        Raises:
            ConfigError: There is none, or it cannot be read.
        """
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{directory} holds no authority: {Path(str(error.filename)).name} is missing",
                hint=f"make one: qmp-migrate broker init {directory}",
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the authority in {directory} cannot be read: {error}", hint="see its ca.crt, ca.key"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(
                f"ca.key and ca.crt in {directory} do not belong together", hint="restore them from a backup"
            )
        return cls(directory, certificate, key)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the same authority."""
        with (self.directory / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def issue(self, role: Role, name: str, *, renew: bool = False) -> tuple[Identity, bool]:
        """Issue an identity, or return the one that is there.

        Args:
            role: What it may do.
            name: Of the host, controller, subscriber or bridge.
            renew: Make a new certificate and key although there are some; the old certificate is revoked.

        Returns:
            The identity, and whether it is new.

        Raises:
            InvalidName: The name is none.
            UsageError: It was revoked.
            ConfigError: The files cannot be read or written.
        """
        identity = identity_name(role, name)
        certificate, key = self._files(identity)
        if certificate.exists() and key.exists():
            found = self._identity(certificate)
            if found.revoked and not renew:
                raise UsageError(
                    f"{identity} was revoked", hint=f"give it a new key: qmp-migrate broker renew DIR {identity}"
                )
            if not renew:
                return found, False
            if not found.revoked:
                self._revoke(certificate)
        self._leaf(certificate, key, identity, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        return self._identity(certificate), True

    def issue_broker(self, addresses: Sequence[str], *, renew: bool = False) -> bool:
        """Issue the broker's certificate; a new one where the addresses are others, or it ends soon.

        Args:
            addresses: DNS names and IP addresses that it is reached by; the first is its common name.
            renew: Also where nothing has changed.

        Returns:
            Whether it is new.

        Raises:
            UsageError: One of them is neither.
            ConfigError: The files cannot be written.
        """
        names = [_san(address) for address in addresses]
        certificate, key = self.directory / "broker.crt", self.directory / "broker.key"
        if certificate.exists() and key.exists() and not renew:
            have = x509.load_pem_x509_certificate(certificate.read_bytes())
            same = list(have.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == names
            if same and have.not_valid_after_utc - datetime.now(UTC) > timedelta(days=WARN_DAYS):
                return False
        self._leaf(certificate, key, addresses[0], ExtendedKeyUsageOID.SERVER_AUTH, names)
        return True

    def revoke(self, identity: str) -> Identity:
        """Revoke an identity; the broker has to read ``crl.pem`` again (restart it, or SIGHUP).

        Raises:
            UsageError: There is no such identity.
        """
        found = self.find(identity)
        if not found.revoked:
            self._revoke(found.certificate)
        return self.find(identity)

    def find(self, identity: str) -> Identity:
        """Return an identity. Raises `UsageError` where there is none."""
        found = {entry.name: entry for entry in self.identities()}
        if identity not in found:
            raise UsageError(
                f"there is no identity {identity!r} in {self.directory}",
                hint="there are: " + (", ".join(sorted(found)) or "none yet; add one: qmp-migrate broker add"),
            )
        return found[identity]

    def identities(self) -> list[Identity]:
        """Return all identities, sorted by name.

        Raises:
            ConfigError: One of them cannot be read.
        """
        return [self._identity(path) for path in sorted((self.directory / "identities").glob("*.crt"))]

    @property
    def expires_at(self) -> datetime:
        """When the authority itself expires, UTC."""
        return self._certificate.not_valid_after_utc

    # -- files --------------------------------------------------------------------------------------------------

    def _files(self, identity: str) -> tuple[Path, Path]:
        base = self.directory / "identities"
        return base / f"{identity}.crt", base / f"{identity}.key"

    def _identity(self, path: Path) -> Identity:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            name = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
            revoked = self._revoked().get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"{path} is no certificate of ours: {error}", hint="remove it, or restore it") from error
        if name != path.stem:
            raise ConfigError(f"{path} is made out to {name!r}", hint="files must not be renamed")
        key = path.with_name(f"{path.stem}.key")
        return Identity(name, role_of(name), path, key, certificate.not_valid_after_utc, revoked)

    def _leaf(
        self, path: Path, key_path: Path, name: str, purpose: x509.ObjectIdentifier, names: list[x509.GeneralName]
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + timedelta(days=LEAF_DAYS), self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        write_file(key_path, _key_pem(key), 0o600)
        write_file(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _revoked(self) -> x509.CertificateRevocationList:
        return x509.load_pem_x509_crl((self.directory / "crl.pem").read_bytes())

    def _revoke(self, path: Path) -> None:
        serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        now = datetime.now(UTC)
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        self._write_revoked([*self._revoked(), entry])

    def _write_revoked(self, entries: Sequence[x509.RevokedCertificate]) -> None:
        # It does not expire before the authority does: an old list would lock everybody out.
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(datetime.now(UTC) - SKEW)
            .next_update(self._certificate.not_valid_after_utc)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        write_file(self.directory / "crl.pem", pem, 0o644)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _san(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        pass
    try:
        validate_name(address.lower(), "broker address")
        return x509.DNSName(address.lower())
    except (InvalidName, ValueError) as error:
        raise UsageError(
            f"{address!r} is neither a DNS name nor an IP address", hint="for example --address broker.example"
        ) from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file as a whole, with its mode from the first moment on. Raises `ConfigError`."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(mode)  # whatever the umask is
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="check the directory") from error
