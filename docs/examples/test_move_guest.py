"""A guest is moved while it runs: a test like your own. It needs a settings file with the hosts ``a`` and ``b``.

QMP_MIGRATE_CONFIG names the settings, GUEST_SPEC the spec of a guest to start; ``qmp-migrate rig up`` writes both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from qmp_migrate import (
    Controller,
    Guest,
    GuestSpec,
    MigrationCancelled,
    MigrationRequest,
    MigrationView,
    Progress,
    UsageError,
    load_settings,
    parse_spec,
)

pytestmark = pytest.mark.asyncio


class PhaseWatch:
    """A `qmp_migrate.Reporter` that lets a test wait until a migration has come to a phase."""

    def __init__(self) -> None:
        self.copying = asyncio.Event()

    def phase(self, view: MigrationView) -> None:
        if view.phase == "copying":
            self.copying.set()

    def progress(self, progress: Progress) -> None:
        """Not of interest here."""

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Not of interest here."""


@pytest.fixture
def watch() -> PhaseWatch:
    return PhaseWatch()


@pytest.fixture
def spec() -> GuestSpec:
    path = Path(os.environ["GUEST_SPEC"])
    return parse_spec(path.read_text(), source=str(path), base_dir=str(path.parent))


@pytest_asyncio.fixture
async def controller(watch: PhaseWatch) -> AsyncIterator[Controller]:
    async with Controller.open(load_settings(), reporters=[watch]) as opened:
        yield opened


@pytest_asyncio.fixture
async def guest(controller: Controller, spec: GuestSpec) -> AsyncIterator[Guest]:
    started = await controller.start(spec, on="a")
    try:
        await serial_output(controller, started, b"QM READY")  # your guest may say "login:"
        yield started
    finally:
        await controller.stop(started.name, force=True)


async def serial_output(controller: Controller, guest: Guest, wanted: bytes) -> None:
    """Wait until the guest has written something to its serial port on the host where it is."""
    host = controller.host(guest.host)
    async with asyncio.timeout(60):
        while True:
            if wanted in await host.read_file(f"{guest.directory}/serial.log"):
                return
            await asyncio.sleep(0.1)


async def test_a_guest_moves_while_it_runs(controller: Controller, guest: Guest) -> None:
    plan = await controller.check(MigrationRequest(guest.name, "b"))
    assert not plan.refused

    result = await controller.migrate(guest.name, to="b", downtime_limit_ms=2000)

    assert (result.outcome, result.owner, result.encrypted) == ("completed", "destination", True)
    assert 0 < result.blackout_ms < 5000
    moved = await controller.show(guest.name)
    assert (moved.host, moved.state, moved.uuid) == ("b", "running", guest.uuid)
    await serial_output(controller, moved, b"QM T")  # it goes on counting there


async def test_a_cancelled_guest_runs_on_where_it_was(controller: Controller, guest: Guest, watch: PhaseWatch) -> None:
    moving = asyncio.create_task(controller.migrate(guest.name, to="b", bandwidth_bytes_per_s=2 << 20))
    async with asyncio.timeout(30):
        await watch.copying.wait()

    controller.cancel_here()

    with pytest.raises(MigrationCancelled) as caught:
        await moving
    assert caught.value.result.owner == "source"
    stayed = await controller.show(guest.name)
    assert (stayed.host, stayed.state, stayed.pid) == ("a", "running", guest.pid)


async def test_a_guest_is_not_moved_to_where_it_is(controller: Controller, guest: Guest) -> None:
    with pytest.raises(UsageError, match="already on a"):
        await controller.migrate(guest.name, to="a")
