"""qmp-migrate: move running QEMU guests between hosts over QMP and SSH, without libvirt.

The public API is what `__all__` names; everything else may change. All of it is asynchronous::

    from qmp_migrate import Controller, load_settings, parse_spec

    async with Controller.open(load_settings()) as controller:
        guest = await controller.start(parse_spec(text, source="web1.toml", base_dir="/srv"), on="a")
        plan = await controller.check(MigrationRequest("web1", "b"))
        result = await controller.migrate("web1", to="b", downtime_limit_ms=100)
        print(result.blackout_ms, result.owner)

Every failure is a `QmpMigrateError` with a ``code`` for programs, a ``hint`` for people, and, where a migration had been
asked for, its ``result``. `qmp_migrate.errors` draws the tree.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qmp_migrate.errors import (
    ConfigError,
    Fenced,
    GuestExists,
    GuestUnknown,
    HostKeyError,
    HostUnknown,
    HostUnreachable,
    InvalidName,
    InvalidQuantity,
    LaunchFailed,
    LockBusy,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    NotConverging,
    OutcomeUnknown,
    PreflightRefused,
    QmpMigrateError,
    SpecError,
    SplitBrain,
    UsageError,
)

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.fleet.guests import Guest
    from qmp_migrate.migration.forecast.measurement import ForecastReport
    from qmp_migrate.migration.forecast.prediction import Forecast
    from qmp_migrate.migration.lifecycle.recovery import Wish
    from qmp_migrate.migration.model.reporter import MigrationView, Progress, Reporter
    from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
    from qmp_migrate.migration.preflight.planner import Plan
    from qmp_migrate.migration.preflight.rules import Check
    from qmp_migrate.migration.savefile.restore_request import RestoreRequest, RestoreResult
    from qmp_migrate.migration.savefile.save_request import SaveRequest, SaveResult
    from qmp_migrate.settings import HostSettings, Settings
    from qmp_migrate.settings import load as load_settings
    from qmp_migrate.vm.spec.guest_spec import GuestSpec, parse_spec

_HOMES = {
    "Check": "qmp_migrate.migration.preflight.rules",
    "Controller": "qmp_migrate.fleet.controller",
    "Forecast": "qmp_migrate.migration.forecast.prediction",
    "ForecastReport": "qmp_migrate.migration.forecast.measurement",
    "Guest": "qmp_migrate.fleet.guests",
    "GuestSpec": "qmp_migrate.vm.spec.guest_spec",
    "HostSettings": "qmp_migrate.settings",
    "MigrationRequest": "qmp_migrate.migration.model.request",
    "MigrationResult": "qmp_migrate.migration.model.request",
    "MigrationView": "qmp_migrate.migration.model.reporter",
    "Plan": "qmp_migrate.migration.preflight.planner",
    "Progress": "qmp_migrate.migration.model.reporter",
    "Reporter": "qmp_migrate.migration.model.reporter",
    "RestoreRequest": "qmp_migrate.migration.savefile.restore_request",
    "RestoreResult": "qmp_migrate.migration.savefile.restore_request",
    "SaveRequest": "qmp_migrate.migration.savefile.save_request",
    "SaveResult": "qmp_migrate.migration.savefile.save_request",
    "Settings": "qmp_migrate.settings",
    "Wish": "qmp_migrate.migration.lifecycle.recovery",
    "load_settings": "qmp_migrate.settings:load",
    "parse_spec": "qmp_migrate.vm.spec.guest_spec",
}

__all__ = [
    "Check",
    "ConfigError",
    "Controller",
    "Fenced",
    "Forecast",
    "ForecastReport",
    "Guest",
    "GuestExists",
    "GuestSpec",
    "GuestUnknown",
    "HostKeyError",
    "HostSettings",
    "HostUnknown",
    "HostUnreachable",
    "InvalidName",
    "InvalidQuantity",
    "LaunchFailed",
    "LockBusy",
    "MigrationCancelled",
    "MigrationError",
    "MigrationFailed",
    "MigrationRequest",
    "MigrationResult",
    "MigrationView",
    "NotConverging",
    "OutcomeUnknown",
    "Plan",
    "PreflightRefused",
    "Progress",
    "QmpMigrateError",
    "Reporter",
    "RestoreRequest",
    "RestoreResult",
    "SaveRequest",
    "SaveResult",
    "Settings",
    "SpecError",
    "SplitBrain",
    "UsageError",
    "Wish",
    "load_settings",
    "parse_spec",
]


def __getattr__(name: str) -> Any:
    try:
        home, _, other = _HOMES[name].partition(":")
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(home), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
