"""The controller: settings, connections, journal and bus together, with one method for each thing a user wants.

This is the library's front door as well as what the command line calls::

    async with Controller.open(load()) as controller:
        await controller.start(spec, on="a")
        result = await controller.migrate("web1", to="b", downtime_limit_ms=100)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from qmp_migrate.errors import (
    Fenced,
    GuestUnknown,
    LockBusy,
    MigrationCancelled,
    OutcomeUnknown,
    PreflightRefused,
    QmpMigrateError,
    UsageError,
)
from qmp_migrate.fleet.bus_publishing import on_the_bus
from qmp_migrate.fleet.file_operations import Operating
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.forecast import measurement
from qmp_migrate.migration.forecast.measurement import ForecastReport
from qmp_migrate.migration.journal.store import Journal, MigrationRecord, controller_lives
from qmp_migrate.migration.lifecycle import recovery, tuning
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.hooks import Hooks
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.lifecycle.recovery import Wish
from qmp_migrate.migration.model.phases import ENDS, Phase
from qmp_migrate.migration.model.progress import ProgressMeter
from qmp_migrate.migration.model.reporter import Reporter, Reporters
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.preflight.planner import Plan, make_plan
from qmp_migrate.settings import Settings

if TYPE_CHECKING:
    pass

CANCEL_WAIT_S: Final = 60.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Controller(Operating):
    """See the module. Made by `open`.

    Attributes:
        settings: What it was opened with.
        journal: Its journal.
    """

    _reporters: tuple[Reporter, ...] = ()
    _running: dict[str, asyncio.Event] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: Settings, *, reporters: Sequence[Reporter] = ()) -> AsyncIterator[Controller]:
        """Open the journal, begin to connect to the broker (never waiting for it), and close all at the end.

        Args:
            settings: See `qmp_migrate.settings.load`.
            reporters: Told of every migration, beside the bus.

        Raises:
            JournalError: The journal cannot be opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            journal = await stack.enter_async_context(await Journal.open(settings.controller.state))
            told = list(reporters)
            if settings.mqtt.url is not None:
                told.append(await stack.enter_async_context(on_the_bus(settings)))
            controller = cls(settings, journal, _reporters=tuple(told))
            stack.push_async_callback(controller._close_hosts)
            yield controller

    # -- migrations -----------------------------------------------------------------------------------------------

    async def plan(self, request: MigrationRequest) -> tuple[Plan, Side, Side]:
        """Look at everything that a migration would need; changes nothing.

        Raises:
            UsageError: The guest is on the destination already.
            NotFound, TransportError, MonitorError, RemoteError: Something is not there or cannot be asked.
        """
        self.settings.host(request.destination)
        destination = self.side(request.destination, request.vm)
        connecting = asyncio.create_task(destination.host.connect())
        try:
            source = await self.find(request.vm, on=request.source)
        except QmpMigrateError:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            raise
        if source.name == request.destination:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            raise UsageError(
                f"{request.vm} is already on {request.destination}",
                hint="name another host with --to",
                host=source.name,
            )
        await connecting
        try:
            return await make_plan(request, source, destination, self.journal), source, destination
        except BaseException:
            await source.detach()
            raise

    async def check(self, request: MigrationRequest) -> Plan:
        """Preflight only; changes nothing. Raises as `plan` does."""
        try:
            plan, source, _destination = await self.plan(request)
        except GuestUnknown:
            planned = await self.plan_shut_down(request)
            if planned is None:
                raise
            return planned[0]
        await source.detach()
        return plan

    async def forecast(self, request: MigrationRequest) -> tuple[ForecastReport, Plan]:
        """Measure the guest and the link, and tell how a migration would go. Touches no guest; see `forecasting`.

        Returns:
            The forecast, and the plan, which may be a refused one.

        Raises:
            QmpMigrateError: See `plan` and `measurement.make`.
        """
        plan, source, destination = await self.plan(request)
        try:
            return await measurement.make(plan, source, destination, request, self.journal), plan
        finally:
            await source.detach()

    async def migrate(
        self,
        vm: str | MigrationRequest,
        *,
        to: str | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        on_forecast: Callable[[ForecastReport], None] | None = None,
        **options: Any,
    ) -> MigrationResult:
        """Move a guest. A migration of it that was left by a controller which is gone is settled first.

        Args:
            vm: The guest's name, or a whole request.
            to: The destination, with a name.
            on_plan: Called with the plan before anything is touched.
            on_forecast: Make a forecast first, and call this with it.
            options: Further fields of `MigrationRequest`, for example ``downtime_limit_ms=100``.

        Returns:
            The result: the guest runs at the destination.

        Raises:
            PreflightRefused: A check failed; nothing was touched.
            LockBusy: Another controller holds the guest.
            MigrationCancelled, NotConverging, MigrationFailed: It runs on at the source where the error says so.
            OutcomeUnknown: Parked for a person.
            QmpMigrateError: See `plan`. Every error has the result document in its ``result``.
        """
        request = vm if isinstance(vm, MigrationRequest) else MigrationRequest(vm, to or "", **options)
        request = self._hooks().asked_for(request)
        for record in await self.unsettled(vm=request.vm):
            earlier = await self.recover(record)
            if earlier.outcome == "completed" and record.destination == request.destination:
                return earlier  # that is what was asked for
        await self._settle_earlier(request.vm)
        reporter = Reporters(self._reporters)
        cancel = self._running[request.id] = asyncio.Event()
        result = MigrationResult(
            id=request.id,
            vm=request.vm,
            source=request.source or "",
            destination=request.destination,
            mode=request.mode,
        )
        try:
            try:
                plan, source, destination = await self.plan(request)
            except GuestUnknown:
                moved = await self._move_shut_down(request, result, cancel, on_plan, reporter.progress)
                if moved is None:
                    raise
                return moved
            result.source = source.name
            try:
                return await self._migrate(
                    request, plan, source, destination, result, reporter, cancel, on_plan, on_forecast
                )
            finally:
                await source.detach()
                await destination.detach()
        except QmpMigrateError as error:
            if not result.source:
                result.owner = "unknown"  # nobody could be asked where it is
            result.error = result.error or error.to_dict()
            error.result = result
            raise
        finally:
            del self._running[request.id]
            await self._write_metrics()

    async def _write_metrics(self) -> None:
        """Write what came of migrations into the textfile, where there is to be one; what fails is logged."""
        path = self.settings.metrics.textfile
        if path is None:
            return
        from qmp_migrate.exposition import write_textfile
        from qmp_migrate.fleet.integrations.prometheus import page

        try:
            write_textfile(path, await page(self.journal))
        except QmpMigrateError as error:
            log.warning("metrics-not-written", reason=error.message, hint=error.hint)

    async def _migrate(
        self,
        request: MigrationRequest,
        plan: Plan,
        source: Side,
        destination: Side,
        result: MigrationResult,
        reporter: Reporter,
        cancel: asyncio.Event,
        on_plan: Callable[[Plan], None] | None,
        on_forecast: Callable[[ForecastReport], None] | None,
    ) -> MigrationResult:
        if on_plan is not None:
            on_plan(plan)
        if plan.refused:
            raise PreflightRefused(
                f"{request.vm} cannot be moved to {request.destination}: {plan.refused[0]}"
                + (f" (and {len(plan.refused) - 1} more)" if len(plan.refused) > 1 else ""),
                failures=plan.refused,
                hint="nothing was touched; see: qmp-migrate check",
                host=request.destination,
            )
        result.warnings += [check.text for check in plan.checks if check.status == "warn"]
        if on_forecast is not None:
            on_forecast(await measurement.make(plan, source, destination, request, self.journal))
        if cancel.is_set():
            raise MigrationCancelled("cancelled before anything was touched", host=source.name)
        await self.journal.begin(
            id=request.id,
            vm=request.vm,
            source=source.name,
            destination=destination.name,
            mode=request.mode,
            request={
                **request.asked,
                "running": plan.running,
                "source_process": source.process.words if source.process else None,
                "source_directory": source.directory,
                "destination_directory": destination.directory,
            },
        )
        await self.journal.enter(request.id, Phase.PREFLIGHT)
        foretold = await measurement.remembered(self.journal, request, source.name)
        chronicle = Chronicle(request, self.journal, reporter, result, foretold=foretold)
        reporter.phase(chronicle.view())
        course = Course(
            request,
            source,
            destination,
            chronicle,
            running=plan.running,
            profile=plan.profile,
            one_pass=plan.one_pass,
            copies=plan.copies,
            hooks=self._hooks(),
        )
        course.meter = ProgressMeter(request.id, plan.ram_bytes)
        engine = Engine(course, tuple(plan.derived.command.argv()), cancel)
        await engine.run()
        if engine.error is not None:
            raise engine.error
        return result

    def _hooks(self) -> Hooks:
        return Hooks.of(self.settings.hook)

    async def unsettled(self, *, vm: str | None = None) -> list[MigrationRecord]:
        """Return the migrations that have not ended with one owner and that no living controller drives, oldest first."""
        records = await self.journal.unsettled(vm=vm)
        return [r for r in reversed(records) if r.outcome is not None or controller_lives(r.controller) is not True]

    async def recover(self, migration: str | MigrationRecord, wish: Wish | None = None) -> MigrationResult:
        """Settle a migration whose controller is gone; see `qmp_migrate.migration.lifecycle.recovery`.

        Args:
            migration: Its id, a unique beginning of it, or its record.
            wish: What a person says beside "settle it".

        Returns:
            The result: `MigrationResult.owner` is the one proven owner.

        Raises:
            MigrationUnknown: No such migration.
            UsageError: It has ended already.
            LockBusy: A controller is at work on it.
            OutcomeUnknown: It is parked: the message says what is known, the hint what would settle it.
            TransportError: No host that could be asked answers.
        """
        record = migration if isinstance(migration, MigrationRecord) else await self.journal.get(migration)
        if record.phase in ENDS:
            raise UsageError(
                f"migration {record.id} has ended already: {record.outcome}", hint="see: qmp-migrate history"
            )
        if record.phase in recovery.BEFORE_LAUNCH and controller_lives(record.controller) is True:
            raise LockBusy(
                f"migration {record.id} is driven by process {record.controller.get('pid')} on this machine",
                hint=f"let it end, or: qmp-migrate cancel {record.id}; if that process hangs, end it (kill -9) and try again",
            )
        limits = self._hooks().more_time(self.settings.watchdog.limits)
        wish = replace(wish or Wish(), limits=limits)
        cancel = self._running[record.id] = asyncio.Event()
        source, destination = self.side(record.source, record.vm), self.side(record.destination, record.vm)
        try:
            result, error = await recovery.recover(
                record,
                source,
                destination,
                journal=self.journal,
                reporter=Reporters(self._reporters),
                wish=wish,
                cancel=cancel,
                hooks=self._hooks(),
            )
        finally:
            del self._running[record.id]
            await source.detach()
            await destination.detach()
        if isinstance(error, OutcomeUnknown | Fenced):
            error.result = result
            raise error
        return result

    def cancel_here(self) -> int:
        """Cancel every migration that this controller drives (Ctrl-C). Returns how many."""
        for event in self._running.values():
            event.set()
        return len(self._running)

    async def cancel(self, migration: str) -> MigrationRecord:
        """Have a migration cancelled by its controller and wait for its end; without a controller, settle it.

        Args:
            migration: Its id, or a unique beginning of it.

        Returns:
            The record as it ended; it may have completed before the cancel was seen.

        Raises:
            MigrationUnknown: No such migration.
            UsageError: It has ended already, or post-copy has begun.
            LockBusy, TransportError, OutcomeUnknown: Its controller is gone; see `recover`.
        """
        record = await self.journal.get(migration)
        if record.phase in ENDS or record.outcome is not None:
            raise UsageError(
                f"migration {record.id} has ended already: {record.outcome}", hint="see: qmp-migrate history"
            )
        _refuse_in_postcopy(record)
        if controller_lives(record.controller) is False:
            await self.recover(record, Wish(back=True))
            return await self.journal.get(record.id)
        await self.journal.request_cancel(record.id)
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                while (record := await self.journal.get(record.id)).outcome is None:
                    _refuse_in_postcopy(record)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise UsageError(
                f"migration {record.id} has not obeyed the cancel within {CANCEL_WAIT_S:g} s (phase {record.phase})",
                hint="it is still asked to; look again with: qmp-migrate status",
            ) from None
        return record

    async def tune(self, migration: str, **changes: Any) -> dict[str, Any]:
        """Retune a migration under way, whoever drives it.

        Args:
            migration: Its id, or a unique beginning of it.
            changes: Fields of `qmp_migrate.migration.lifecycle.tuning.Tune`, for example ``downtime_limit_ms=1000``.

        Returns:
            What is in force now, as the source's QEMU says.

        Raises:
            MigrationUnknown: No such migration.
            UsageError: It is over or being handed over, nobody drives it, or its controller says why not.
            InvalidQuantity: A value is not possible.
        """
        return await tuning.retune(self.journal, migration, tuning.Tune(**changes))


def _refuse_in_postcopy(record: MigrationRecord) -> None:
    """Refuse a cancel that would destroy the guest (DESIGN rule 6): QEMU 7.2 would obey it.

    Raises:
        UsageError: Post-copy has begun.
    """
    if record.phase is Phase.POSTCOPY:
        raise UsageError(
            f"migration {record.id} is in post-copy: the guest's memory is on both hosts, and there is no way back",
            hint=f"it goes on to {record.destination}; where its controller is gone: qmp-migrate recover {record.id}",
        )
