"""How memory travels between two given QEMUs: which capabilities and parameters each side gets, and what cannot be. Pure.

QEMU checks little of this, and late. A source with two channels and a destination with four hang for ever; QEMU 7.2 takes
post-copy over several channels and loses the guest; a compression that only one side knows fails when the guest is on its
way. So all of it is settled here, from what both binaries said they can do, before anything is started. What the two cannot
do is a refusal that ``qmp-migrate check`` shows; what they can only do in another way than asked for is a warning.

The rules and where each was seen are in ``docs/reference/transports.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.migration.model.request import Compression, MigrationRequest

ALWAYS: Final = ("events", "return-path")
"""Capabilities on both sides, in every migration (DESIGN rule 3)."""

WHERE_KNOWN: Final = ("late-block-activate", "validate-uuid")
"""On each side that knows it. Until 9.2 a destination takes the images' locks before ``cont`` unless told not to."""

LEAST_CHANNELS: Final = 2
"""What compression gets where the user names no number: it needs multifd, and one more thread helps it most."""

MULTIFD_METHODS: Final = frozenset({"zlib", "zstd"})
"""Compressions that multifd's threads do."""

POSTCOPY_OVER_CHANNELS: Final = (11, 1)
"""From this version on guests under KVM survive post-copy after a pass over several channels (decision 19)."""

LEAST_CACHE: Final = 64 << 20
"""Bytes: QEMU's own default for ``xbzrle-cache-size``."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the QEMU of one side can do.

    Attributes:
        host: Where it is.
        version: For example ``7.2.22``.
        capabilities: Migration capabilities it knows.
        parameters: Migration parameters it knows.
        compressions: Values it takes for ``multifd-compression``.
        dirty_ring: Entries of each vCPU's dirty ring: of the running guest, or what the other side's QEMU could start with;
            0: none.
        kvm: The running guest uses KVM.
        no_dirty_limit: Why its vCPUs' dirty rate cannot be limited, although it has a ring; ``""``: it can.
        no_postcopy: Why it cannot receive a guest in post-copy, although it knows the capability; ``""``: it can.
    """

    host: str
    version: str = ""
    capabilities: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    compressions: frozenset[str] = frozenset()
    no_postcopy: str = ""
    dirty_ring: int = 0
    no_dirty_limit: str = ""
    kvm: bool = False

    def __str__(self) -> str:
        return f"QEMU {self.version} on {self.host}"


@dataclass(frozen=True, slots=True)
class Objection:
    """Something that cannot be, or not as it was asked for.

    Attributes:
        text: What.
        hint: What would work.
        host: Whose QEMU it is about; None: the pair's.
    """

    text: str
    hint: str = ""
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What one side gets; what it knows and is not named here is set to false, or left as it is.

    Attributes:
        capabilities: Those that are on.
        parameters: Name to value.
    """

    capabilities: frozenset[str] = frozenset(ALWAYS)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """How memory travels.

    Attributes:
        channels: Connections that carry memory; more than 1: multifd, with one more for control and devices.
        compression: What is in force.
        postcopy: Both ends can turn to post-copy at any time, because they are set up for it.
        preempt: In post-copy, pages that the guest waits for have a connection of their own.
        dirty_ring: Entries of each vCPU's dirty ring, where the policy may limit what each vCPU dirties; 0: it cannot.
        throttling: Which vCPUs would be slowed down, and why; None: none, whatever happens.
        source, destination: What each side gets.
        refusals: Why it cannot be; empty: it can.
        warnings: What is other than one might expect.
        reasons: What was chosen and why, one line each.
    """

    channels: int = 1
    compression: Compression | None = None
    postcopy: bool = False
    preempt: bool = False
    dirty_ring: int = 0
    throttling: Objection | None = None
    source: Setting = field(default_factory=Setting)
    destination: Setting = field(default_factory=Setting)
    refusals: tuple[Objection, ...] = ()
    warnings: tuple[Objection, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def multifd(self) -> bool:
        """Whether QEMU's multifd carries the memory."""
        return self.channels > 1

    @property
    def written(self) -> dict[str, Any]:
        """What the journal keeps: all that another controller needs in order to drive it on."""
        return {
            "channels": self.channels,
            "compression": self.compression,
            "postcopy": self.postcopy,
            "preempt": self.preempt,
            "dirty_ring": self.dirty_ring,
        }

    @classmethod
    def again(cls, written: Mapping[str, Any]) -> Profile:
        """Return the profile of a migration that another controller has set up, as far as it matters now."""
        return cls(**{name: written[name] for name in cls().written if name in written})

    def __str__(self) -> str:
        words = [f"{self.channels} channels" if self.multifd else "one channel"]
        words += [self.compression] if self.compression else []
        words += ["may turn to post-copy" + (" (preempt)" if self.preempt else "")] if self.postcopy else []
        return ", ".join(words)


def negotiate(
    request: MigrationRequest,
    source: Abilities,
    destination: Abilities,
    *,
    memory_bytes: int,
    source_free_bytes: int = 0,
    may_throttle: bool = False,
    may_limit: bool = False,
    may_turn: bool = False,
) -> Profile:
    """Find how memory can travel as it is asked for.

    Args:
        request: What is asked for.
        source: What the running QEMU can do.
        destination: What the binary that would be started can do.
        memory_bytes: The guest's memory.
        source_free_bytes: Memory that is free on the source's host; 0: unknown.
        may_throttle: The policy may slow the guest down (``auto-converge``): QEMU wants to know it beforehand.
        may_limit: The policy limits the dirty rate of vCPUs where it can, and slows all of them down where it cannot.
        may_turn: The policy may turn a live migration to post-copy, where both can.
    """
    table = _Table(source, destination)
    multifd = _channels(table, request)
    _compression(table, request, memory_bytes, source_free_bytes)
    postcopy = (request.mode == "postcopy" or may_turn) and _postcopy(table, request, multifd=multifd)
    # With machine types up to 7.2 multifd takes preempt's channel for one of its own, and hangs.
    preempt = postcopy and not multifd and table.both_know("postcopy-preempt")
    if preempt:
        table.switch_on("postcopy-preempt")
    if request.pauses:
        _stop_before_the_switchover(table)
    if may_throttle:
        _throttle(table)
    dirty_ring, throttling = _throttling(table, may_limit=may_limit) if may_throttle else (0, None)
    if request.switchover_bandwidth_bytes_per_s:
        _switchover_bandwidth(table, request)
    return Profile(
        channels=_channel_count(request) if multifd else 1,
        compression=request.compress,
        postcopy=postcopy,
        preempt=preempt,
        dirty_ring=dirty_ring,
        throttling=throttling,
        source=table.setting(source, table.at_source),
        destination=table.setting(destination, {}),
        refusals=tuple(table.refusals),
        warnings=tuple(table.warnings),
        reasons=tuple(table.reasons),
    )


class _Table:
    """What has been agreed upon so far."""

    def __init__(self, source: Abilities, destination: Abilities) -> None:
        self.sides = (source, destination)
        self.capabilities: set[str] = set(ALWAYS)
        self.source_only: set[str] = set()
        self.parameters: dict[str, Any] = {}
        self.at_source: dict[str, Any] = {}
        self.refusals: list[Objection] = []
        self.warnings: list[Objection] = []
        self.reasons: list[str] = []

    def lacking(self, capability: str) -> Abilities | None:
        """Return the first side that does not know a capability."""
        return next((side for side in self.sides if capability not in side.capabilities), None)

    def both_know(self, capability: str) -> bool:
        return self.lacking(capability) is None

    def switch_on(self, capability: str, parameters: Mapping[str, Any] | None = None) -> None:
        """On both sides, with the same parameters: they must be equal."""
        self.capabilities.add(capability)
        self.parameters |= parameters or {}

    def refuse(self, text: str, hint: str, side: Abilities | None = None) -> None:
        self.refusals.append(Objection(text, hint, side.host if side else None))

    def setting(self, side: Abilities, own: Mapping[str, Any]) -> Setting:
        optional = {name for name in WHERE_KNOWN if name in side.capabilities}
        mine = self.source_only if side is self.sides[0] else set()
        wanted = {**self.parameters, **own}
        # What a side does not know is a refusal already, except for what is chosen for the pair.
        known = {name: value for name, value in wanted.items() if name in side.parameters}
        return Setting(frozenset(self.capabilities | optional | mine), known)


def _channel_count(request: MigrationRequest) -> int:
    return max(request.channels, LEAST_CHANNELS) if request.compress in MULTIFD_METHODS else request.channels


def _channels(table: _Table, request: MigrationRequest) -> bool:
    """Settle multifd and who looks for zero pages; return whether it is in force."""
    count = _channel_count(request)
    if count == 1:
        _zero_pages(table, multifd=False)
        return False
    if (side := table.lacking("multifd")) is not None:
        table.refuse(f"{side} cannot use several channels (it has no multifd)", "leave --channels out", side)
        return False
    table.switch_on("multifd", {"multifd-channels": count, "multifd-compression": "none"})
    if request.channels == 1:
        table.reasons.append(f"{request.compress} is done by multifd's threads: {count} channels")
    _zero_pages(table, multifd=True)
    return True


def _zero_pages(table: _Table, *, multifd: bool) -> None:
    """Choose who looks for zero pages, where QEMU (9.0 and later) lets one choose.

    A destination before 9.0 does not read the list of zero pages in multifd's packets: a page that was written once and is
    zero again would keep its old content there. Machine types up to 8.2 have ``legacy`` for that reason, so the value has to
    be set: for the pair of QEMUs, not for the age of the machine type.
    """
    name = "zero-page-detection"
    older = next((side for side in table.sides if name not in side.parameters), None)
    by_threads = multifd and older is None
    table.parameters[name] = "multifd" if by_threads else "legacy"
    if by_threads:
        table.reasons.append("zero pages are looked for by the channels' threads")
    elif multifd and older is not None:
        table.reasons.append(f"zero pages are looked for by one thread: {older} does not take them from the channels")


def _compression(table: _Table, request: MigrationRequest, memory_bytes: int, free_bytes: int) -> None:
    method = request.compress
    if method is None:
        return
    if method == "xbzrle":
        if request.channels > 1:
            text = "xbzrle works on one channel only (QEMU before 8.2 takes both and compresses nothing)"
            table.refuse(text, "leave --channels out, or use --compress zstd")
        elif (side := table.lacking("xbzrle")) is not None:
            table.refuse(f"{side} has no xbzrle", "leave --compress out", side)
        else:
            size = cache_bytes(memory_bytes, free_bytes)
            table.switch_on("xbzrle", {"xbzrle-cache-size": size})
            table.reasons.append(f"xbzrle with a cache of {size >> 20} MiB at the source")
        return
    shared = table.sides[0].compressions & table.sides[1].compressions & MULTIFD_METHODS
    for side in table.sides:
        if method not in side.compressions and "multifd" in side.capabilities:
            hint = f"both have {' and '.join(sorted(shared))}" if shared else "leave --compress out: both have no other"
            table.refuse(f"{side} cannot compress with {method}", hint, side)
    table.parameters["multifd-compression"] = method


def cache_bytes(memory_bytes: int, free_bytes: int) -> int:
    """Return the size of the xbzrle cache: a power of two, as QEMU wants it.

    It helps only with pages that are still in it when they are sent again, so it should hold what the guest keeps writing:
    half of its memory, but no more than half of what is free at the source, and `LEAST_CACHE` at least. QEMU fills it with
    copies of pages that are sent twice, and no others.

    Args:
        memory_bytes: The guest's.
        free_bytes: On the source's host; 0: unknown.
    """
    most = min(memory_bytes, free_bytes or memory_bytes) // 2
    return max(LEAST_CACHE, 1 << (most.bit_length() - 1) if most else 0)


def _postcopy(table: _Table, request: MigrationRequest, *, multifd: bool) -> bool:
    """Settle whether both ends are set up for post-copy. It is refused where it was asked for, else only told."""
    destination = table.sides[1]
    text, hint, side = "", "", None
    if (side := table.lacking("postcopy-ram")) is not None:
        text, hint = f"{side} has no post-copy", "move it in mode live"
    elif destination.no_postcopy:
        side = destination
        text = f"{side} cannot take a guest in post-copy: {side.no_postcopy}"
        hint = f"as root on {side.host}: sysctl vm.unprivileged_userfaultfd=1 (or let QEMU run as root there)"
    elif multifd and not _postcopy_over_channels(table):
        # 7.2 takes both without a word and loses memory, 8.1 to 10.0 refuse it. 11.1.3 takes it, says completed and
        # running, and guests (without KVM) did not move any more: with zlib 6 of 8, with zstd 9 of 21, uncompressed 4
        # of 47; over one channel none of 17. Under KVM all of 224 went on.
        text = "post-copy goes over one channel only: with several, guests were dead after it, although newer QEMUs take it"
        hint = "leave --compress out" if request.channels == 1 else "leave --channels out"
    if not text:
        table.switch_on("postcopy-ram")
        table.at_source["max-postcopy-bandwidth"] = request.bandwidth_bytes_per_s
        return True
    if request.mode == "postcopy":
        table.refuse(text, hint, side)
    else:
        table.warnings.append(
            Objection(f"the policy may not turn to post-copy: {text}", hint, side.host if side else None)
        )
    return False


def _postcopy_over_channels(table: _Table) -> bool:
    """Tell whether post-copy after a pass over several channels was seen to be safe; nothing in the schema tells."""
    newer = all(_numbers(side.version) >= POSTCOPY_OVER_CHANNELS for side in table.sides)
    return newer and table.sides[0].kvm


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _stop_before_the_switchover(table: _Table) -> None:
    source = table.sides[0]
    if "pause-before-switchover" in source.capabilities:
        table.source_only.add("pause-before-switchover")
    else:
        table.refuse(f"{source} cannot stop before the switchover", "leave --guarded and --copy-storage out", source)


def _switchover_bandwidth(table: _Table, request: MigrationRequest) -> None:
    source, name = table.sides[0], "avail-switchover-bandwidth"
    table.at_source[name] = request.switchover_bandwidth_bytes_per_s
    if name not in source.parameters:
        text = f"{source} cannot be told what the link carries in the blackout (QEMU 8.2 can): it takes the rate limit for it"
        table.warnings.append(Objection(text, "", source.host))


def _throttle(table: _Table) -> None:
    source = table.sides[0]
    if "auto-converge" in source.capabilities:
        table.source_only.add("auto-converge")
    else:
        table.warnings.append(Objection(f"{source} cannot slow the guest down", "", source.host))


def _throttling(table: _Table, *, may_limit: bool) -> tuple[int, Objection | None]:
    """Settle who is slowed down if the guest has to be: the vCPUs that write, by their dirty limit, or all of them.

    ``auto-converge`` is armed in either case: a limit may turn out to be too much for the downtime limit, see
    `vcpu_dirty_limit`.
    """
    source, destination = table.sides
    text, hint = "if the guest has to be slowed down, all its vCPUs are", ""
    if not may_limit:
        return 0, Objection(f"{text}: so does the policy", host=source.host)
    if not source.kvm:
        return 0, Objection(f"{text}: it runs without KVM", host=source.host)
    if not source.dirty_ring:
        hint = "start it with dirty_ring = 4096 (-accel kvm,dirty-ring-size=4096): then only those that write are"
        return 0, Objection(f"{text}: it runs without a dirty ring", hint, source.host)
    if source.no_dirty_limit:
        return 0, Objection(f"{text}: {source.no_dirty_limit}", host=source.host)
    if not destination.dirty_ring:
        return 0, Objection(f"{text}: {destination} cannot start with a dirty ring", host=destination.host)
    text = (
        f"if the guest has to be slowed down, only the vCPUs that write are (dirty ring of {source.dirty_ring} entries)"
    )
    return source.dirty_ring, Objection(text, host=source.host)
