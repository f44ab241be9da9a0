"""Every error of qmp-migrate, in one tree.

An error says what happened, on which host, what to do about it, and (where a guest is concerned) what the guest's
state is now. ``code`` is stable and made for programs, ``message`` and ``hint`` are made for people, ``exit_code`` is
what the command line ends with (the table is in DESIGN §6 and in ``docs/reference/exit-codes.md``).

::

    QmpMigrateError                        1   anything of ours
    ├── UsageError                         2   the words of the call are wrong
    │   ├── InvalidName                        a guest or host name outside ^[a-z0-9][a-z0-9_.-]{0,62}$
    │   └── InvalidQuantity                    a size, rate or time that cannot be read, or is out of range
    ├── ConfigError                       78   settings file: absent, unreadable, unknown key, bad value
    │   └── SpecError                          the same for a guest's SPEC.toml
    ├── NotFound                           2   a thing that was named is not there
    │   ├── HostUnknown                        no [hosts.NAME] in the settings
    │   ├── GuestUnknown                       no host has a guest of that name
    │   └── MigrationUnknown                   the journal has no such migration
    ├── TransportError                    69   a host cannot be reached
    │   ├── HostUnreachable                    refused, no route, time limit
    │   ├── HostKeyError                       the SSH host key is unknown or has changed
    │   ├── AuthenticationFailed               the host refused our key
    │   ├── ConnectionLost                     it was there and went away: the outcome of what ran is unknown
    │   └── ChannelRefused                     the connection stands, but this one channel was refused
    ├── RemoteError                        1   the host is fine, what we asked of it failed
    │   ├── CommandFailed                      a command ended with a status other than 0
    │   ├── FileFailed                         a file could not be read, written or removed
    │   ├── LaunchFailed                       a QEMU did not start; carries its stderr
    │   └── RelayRefused                       the relay of the host does not allow it; nothing was done
    ├── MonitorError                       1   QMP
    │   ├── MonitorBusy                        no greeting: another client holds the monitor
    │   ├── MonitorLost                        the connection ended: the outcome of a pending command is unknown
    │   ├── MonitorTimeout                     no reply in time: unknown, never "dead" (DESIGN rule 5)
    │   └── QmpCommandFailed                   QEMU answered with an error
    ├── GuestExists                        1   there is already a guest of that name on the host
    ├── LockBusy                          75   another controller holds the guest
    │   └── Fenced                             another controller has taken the guest over: this one does nothing more
    ├── PreflightRefused                   3   a check failed; nothing was touched
    ├── AdoptionRefused                    3   a QEMU of somebody else cannot be taken in; nothing was touched
    ├── MigrationError                     1   a migration did not end at its destination
    │   ├── MigrationFailed                    4 where the guest is safe at the source, else 1
    │   ├── MigrationCancelled             6   cancelled on request, guest safe at the source
    │   ├── NotConverging                  6   given up by policy, guest safe at the source
    │   └── OutcomeUnknown                 5   nobody can say who owns the guest: parked for a person
    │       └── SplitBrain                     both copies were seen to run; one was stopped, both are kept
    ├── JournalError                       1   the journal cannot be opened, read or written
    ├── BusError                           1   the broker cannot be used (only where the bus is the purpose)
    └── RigError                           1   a part of the rig did not come up
"""

from __future__ import annotations

from typing import Any, ClassVar


class QmpMigrateError(Exception):
    """Base of all errors of this project.

    Args:
        message: What happened, one sentence, for a person.
        hint: What to do about it, or ``None`` where nothing useful can be said.
        host: Name of the host it happened on, or ``None``.
    """

    code: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None, host: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.host = host
        self.result: Any = None
        """The result document (`MigrationResult`) where a migration was asked for, else None."""

    def __str__(self) -> str:
        return f"{self.host}: {self.message}" if self.host else self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the ``error`` member of ``migration.result/1``: code, message, hint, host; ``stderr`` where there is one."""
        stderr = getattr(self, "stderr", "")
        told = {"code": self.code, "message": self.message, "hint": self.hint, "host": self.host}
        return told | {"stderr": stderr} if stderr else told


class UsageError(QmpMigrateError):
    """The words of the call are wrong; nothing was tried."""

    code = "usage"
    exit_code = 2


class InvalidName(UsageError):
    """A name that is not ``^[a-z0-9][a-z0-9_.-]{0,62}$`` (DESIGN rule 10)."""

    code = "invalid_name"


class InvalidQuantity(UsageError):
    """A size, rate or time that cannot be read or is out of range."""

    code = "invalid_quantity"


class ConfigError(QmpMigrateError):
    """The settings file is absent, unreadable, or says something that is not understood."""

    code = "config"
    exit_code = 78


class SpecError(ConfigError):
    """A guest's SPEC.toml says something that is not understood."""

    code = "spec"


class NotFound(QmpMigrateError):
    """A thing that was named is not there."""

    code = "not_found"
    exit_code = 2


class HostUnknown(NotFound):
    """The settings have no host of that name."""

    code = "host_unknown"


class GuestUnknown(NotFound):
    """No host that could be asked has a guest of that name."""

    code = "guest_unknown"


class MigrationUnknown(NotFound):
    """The journal has no migration of that id."""

    code = "migration_unknown"


class TransportError(QmpMigrateError):
    """A host cannot be reached, or no longer."""

    code = "transport"
    exit_code = 69


class HostUnreachable(TransportError):
    """No SSH connection: refused, no route, or not within the time limit."""

    code = "host_unreachable"


class HostKeyError(TransportError):
    """The SSH host key is unknown, or is not the one that is known. Never accepted silently (DESIGN rule 10)."""

    code = "host_key"


class AuthenticationFailed(TransportError):
    """The host accepted none of our keys."""

    code = "authentication"


class ConnectionLost(TransportError):
    """The SSH connection ended while it was in use: the outcome of what was running is unknown."""

    code = "connection_lost"


class ChannelRefused(TransportError):
    """The connection stands, but the host refused this one channel (a socket path, a session)."""

    code = "channel_refused"


class RemoteError(QmpMigrateError):
    """The host answers, but what we asked of it failed."""

    code = "remote"


class RelayRefused(RemoteError):
    """The relay of a host (`qmp-hostagent relay`) does not allow what was asked of it; nothing was done."""

    code = "relay_refused"


class CommandFailed(RemoteError):
    """A command on a host ended with a status other than 0.

    Args:
        message: What was tried.
        returncode: Exit status; negative: the signal that ended it.
        stderr: Standard error of the command, as text.
    """

    code = "command_failed"

    def __init__(
        self,
        message: str,
        *,
        returncode: int,
        stderr: str = "",
        hint: str | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, host=host)
        self.returncode = returncode
        self.stderr = stderr


class FileFailed(RemoteError):
    """A file on a host could not be read, written or removed."""

    code = "file_failed"


class LaunchFailed(RemoteError):
    """A QEMU did not start, or ended before its monitor answered.

    Args:
        message: What happened.
        stderr: What QEMU wrote to its standard error, shown to the user as it is.
    """

    code = "launch_failed"

    def __init__(self, message: str, *, stderr: str = "", hint: str | None = None, host: str | None = None) -> None:
        super().__init__(message, hint=hint, host=host)
        self.stderr = stderr


class MonitorError(QmpMigrateError):
    """A QMP monitor did not do what it should."""

    code = "monitor"


class MonitorBusy(MonitorError):
    """The monitor sent no greeting: a monitor serves one client, and another one holds it."""

    code = "monitor_busy"
    exit_code = 75


class MonitorLost(MonitorError):
    """The monitor's connection ended. The outcome of a pending command is unknown: ask again, never repeat blindly.

    Args:
        message: What happened.
        sent: Whether the command may have reached QEMU; False: the connection had ended before.
    """

    code = "monitor_lost"

    def __init__(self, message: str, *, sent: bool = True, hint: str | None = None, host: str | None = None) -> None:
        super().__init__(message, hint=hint, host=host)
        self.sent = sent


class MonitorTimeout(MonitorError):
    """No reply within the command's time limit: unknown, never "dead" (DESIGN rule 5)."""

    code = "monitor_timeout"


class QmpCommandFailed(MonitorError):
    """QEMU answered a command with an error.

    Args:
        message: QEMU's own words with the command's name.
        command: The QMP command.
        error_class: QEMU's error class, for example ``GenericError``.
        desc: QEMU's description, as it is.
    """

    code = "qmp_command_failed"

    def __init__(
        self,
        message: str,
        *,
        command: str,
        error_class: str = "GenericError",
        desc: str = "",
        hint: str | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, host=host)
        self.command = command
        self.error_class = error_class
        self.desc = desc


class GuestExists(QmpMigrateError):
    """There is already a guest of that name on the host."""

    code = "guest_exists"


class AdoptionRefused(QmpMigrateError):
    """A QEMU that somebody else has started cannot be taken in; nothing was touched."""

    code = "adoption_refused"
    exit_code = 3


class LockBusy(QmpMigrateError):
    """Another controller holds this guest. Trying again later is right."""

    code = "locked"
    exit_code = 75


class Fenced(LockBusy):
    """Another controller has taken the guest over since (its epoch is higher): nothing more is done here."""

    code = "fenced"


class PreflightRefused(QmpMigrateError):
    """A preflight check failed; nothing was touched.

    Args:
        message: Which checks failed.
        failures: One line per failed check.
    """

    code = "preflight"
    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        failures: tuple[str, ...] = (),
        hint: str | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, host=host)
        self.failures = failures


class MigrationError(QmpMigrateError):
    """A migration did not end at its destination."""

    code = "migration"


class MigrationFailed(MigrationError):
    """The migration failed.

    Args:
        message: What failed.
        safe_at_source: True where the guest was proven to run on at the source (exit code 4, else 1).
        code: A stable code that is finer than ``migration_failed``, for example ``guest_shutdown``.
        stderr: What the destination's QEMU wrote to its standard error, if anything.
    """

    code = "migration_failed"

    def __init__(
        self,
        message: str,
        *,
        safe_at_source: bool,
        code: str | None = None,
        stderr: str = "",
        hint: str | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, host=host)
        self.stderr = stderr
        self.safe_at_source = safe_at_source
        self.exit_code = 4 if safe_at_source else 1
        if code is not None:
            self.code = code  # type: ignore[misc]


class MigrationCancelled(MigrationError):
    """Cancelled on request; the guest was proven to run on at the source."""

    code = "cancelled"
    exit_code = 6


class NotConverging(MigrationError):
    """The guest dirties memory faster than it can be moved within the limits; it runs on at the source."""

    code = "not_converging"
    exit_code = 6


class OutcomeUnknown(MigrationError):
    """Nobody can prove who owns the guest now. Nothing more is done until a person or ``recover`` settles it."""

    code = "outcome_unknown"
    exit_code = 5


class SplitBrain(OutcomeUnknown):
    """Both copies were seen to run. The one that the journal does not name was stopped; both are kept for a person."""

    code = "split_brain"


class JournalError(QmpMigrateError):
    """The journal cannot be opened, read or written."""

    code = "journal"


class BusError(QmpMigrateError):
    """The broker cannot be used, where the bus is the purpose of the call (``events``)."""

    code = "bus"


class RigError(QmpMigrateError):
    """A part of the rig did not come up or did not go down."""

    code = "rig"
