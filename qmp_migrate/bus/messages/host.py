"""What an agent says about its host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qmp_migrate.bus.messages.base import BusMessage, CloudEvent, Items, Part, SchemaId, StatusMessage
from qmp_migrate.bus.messages.field_types import Count, Name, Percent, Real, Text, Timestamp, Word

Role = Literal["idle", "source", "incoming"]


class HostStatus(StatusMessage):
    """``host/HOST/status``: an agent, for its host.

    Attributes:
        host: Host name.
        interval_s: Seconds between load reports; older than three of them is stale, whatever ``state`` says.
    """

    schema_id: SchemaId = Field(default="host.status/1.0", alias="schema")

    host: Name
    interval_s: Real

    @property
    def speaker(self) -> str:
        """The host."""
        return self.host


class Cpu(Part):
    """A host's processors.

    Attributes:
        model: As the kernel names it.
        vendor: As the kernel names it, for example ``AuthenticAMD``.
        logical_count: Logical processors online.
        features: The kernel's feature flags (``flags`` or ``Features`` of ``/proc/cpuinfo``), sorted.
    """

    model: Text
    vendor: Text
    logical_count: Count
    features: Items


class QemuBinary(Part):
    """One QEMU on a host.

    Attributes:
        path: Where it is.
        version: For example ``7.2.22``.
        machine_types: Every machine type it knows, without aliases.
    """

    path: Text
    version: Text
    machine_types: Items


class NetworkAddress(Part):
    """An address of a host.

    Attributes:
        interface: For example ``eth0``.
        address: IPv4 or IPv6, no link-local ones.
        prefix_length: Bits.
    """

    interface: Text
    address: Text
    prefix_length: Count


class HostInfo(BusMessage):
    """``host/HOST/info``: retained; what a host is.

    Attributes:
        host: Host name.
        at: When this was found out.
        architecture: As ``uname -m`` says.
        kernel: Kernel release.
        kvm: Whether the agent may open ``/dev/kvm``. Proves nothing about guests booting under it.
        cpu: Processors.
        memory_bytes: Physical memory.
        qemu: The QEMU binaries known to the agent.
        addresses: Addresses of the host.
    """

    schema_id: SchemaId = Field(default="host.info/1.0", alias="schema")

    host: Name
    at: Timestamp
    architecture: Text
    kernel: Text
    kvm: bool
    cpu: Cpu
    memory_bytes: Count
    qemu: Annotated[list[QemuBinary], Field(max_length=64)]
    addresses: Annotated[list[NetworkAddress], Field(max_length=512)]

    @property
    def speaker(self) -> str:
        """The host."""
        return self.host


class GuestLoad(Part):
    """What one guest costs its host.

    Attributes:
        vm: Guest name.
        cpu_percent: Of one processor; ``null`` in the first report. May exceed 100.
        resident_bytes: Memory of the QEMU process that is resident.
        dirty_bytes_per_s: How fast the guest dirties memory; ``null`` where it is not measured.
    """

    vm: Name
    cpu_percent: Real | None
    resident_bytes: Count
    dirty_bytes_per_s: Count | None


class InterfaceLoad(Part):
    """One network interface of a host.

    Attributes:
        name: For example ``eth0``.
        receive_bytes_per_s: What came in.
        transmit_bytes_per_s: What went out.
        speed_bits_per_s: Of the link; ``null`` where it has none (bridges, taps) or is down.
    """

    name: Text
    receive_bytes_per_s: Count
    transmit_bytes_per_s: Count
    speed_bits_per_s: Count | None


class Stalled(Part):
    """How long tasks have waited for one thing: the kernel's pressure stall information.

    Attributes:
        some_avg10_percent: Share of the last ten seconds in which some task waited.
        some_total_us: The same since boot.
        full_avg10_percent: Share of the last ten seconds in which all waited; ``null`` where the kernel does not tell.
        full_total_us: The same since boot.
    """

    some_avg10_percent: Percent
    some_total_us: Count
    full_avg10_percent: Percent | None
    full_total_us: Count | None


class Pressure(Part):
    """What tasks of a host have waited for; ``null`` where the kernel does not tell.

    Attributes:
        cpu: A processor.
        memory: Memory: reclaiming, swapping.
        io: A disk.
    """

    cpu: Stalled | None
    memory: Stalled | None
    io: Stalled | None


class HostLoad(BusMessage):
    """``host/HOST/load``: retained, QoS 0; how busy a host is.

    Attributes:
        host: Host name.
        at: When this was measured.
        seq: Grows by one per report of a session.
        interval_ms: What the rates are averaged over.
        cpu_percent: Of all processors together.
        memory_total_bytes: Physical memory.
        memory_available_bytes: What can still be given out without swapping, the kernel's estimate.
        receive_bytes_per_s: All interfaces without loopback.
        transmit_bytes_per_s: All interfaces without loopback.
        guests: Per guest.
        iowait_percent: Processors idle while something waits for a disk. (1.1)
        steal_percent: Processors held back by the hypervisor below. (1.1)
        load1: The kernel's load average of a minute. (1.1)
        swap_total_bytes: Swap. (1.1)
        swap_free_bytes: Swap that is free. (1.1)
        huge_pages_total: Huge pages of the default size. (1.1)
        huge_pages_free: Those that are free. (1.1)
        huge_page_bytes: Their size. (1.1)
        pressure: What tasks have waited for; ``null`` where the kernel does not tell. (1.1)
        interfaces: Per interface but loopback; those that were there for the whole interval. (1.1)
    """

    schema_id: SchemaId = Field(default="host.load/1.1", alias="schema")

    host: Name
    at: Timestamp
    seq: Count
    interval_ms: Count
    cpu_percent: Percent
    memory_total_bytes: Count
    memory_available_bytes: Count
    receive_bytes_per_s: Count
    transmit_bytes_per_s: Count
    guests: Annotated[list[GuestLoad], Field(max_length=1024)]
    iowait_percent: Percent | None = None
    steal_percent: Percent | None = None
    load1: Real | None = None
    swap_total_bytes: Count | None = None
    swap_free_bytes: Count | None = None
    huge_pages_total: Count | None = None
    huge_pages_free: Count | None = None
    huge_page_bytes: Count | None = None
    pressure: Pressure | None = None
    interfaces: Annotated[list[InterfaceLoad], Field(max_length=512)] = Field(default_factory=list)

    @property
    def speaker(self) -> str:
        """The host."""
        return self.host


class HostVm(BusMessage):
    """``host/HOST/vm/VM``: retained; one guest on one host. An empty payload: the guest is gone from there.

    Attributes:
        host: Host name.
        vm: Guest name.
        at: When this became so.
        monitor: ``connected``; ``waiting`` while QEMU does not answer the agent (what is known may be old).
        runstate: QEMU's run state, in QEMU's spelling; ``unknown`` before the monitor answered.
        role: Part in a migration: ``idle``, ``source``, ``incoming``.
        migration_status: QEMU's migration status, in QEMU's spelling, or ``null``.
        uuid: The guest's UUID, or ``null`` where unknown.
        vcpus: Virtual processors, or ``null`` where unknown.
        memory_bytes: RAM given to the guest, or ``null`` where unknown.
        qemu_version: Version of the QEMU that runs it, or ``null`` where unknown.
        pid: Its process.
        started_at: When the process started.
        origin: ``ours`` (also adopted ones); ``foreign``: something else has started it, `adopt` makes it one of ours. (1.1)
    """

    schema_id: SchemaId = Field(default="host.vm/1.1", alias="schema")

    host: Name
    vm: Name
    at: Timestamp
    monitor: Literal["connected", "waiting"]
    runstate: Word
    role: Role
    migration_status: Word | None
    uuid: Text | None
    vcpus: Count | None
    memory_bytes: Count | None
    qemu_version: Text | None
    pid: Count
    started_at: Timestamp
    origin: Word = "ours"

    @property
    def speaker(self) -> str:
        """The host."""
        return self.host


class HostEvent(CloudEvent):
    """``host/HOST/event``: a QMP event of a guest, or a guest that came or went."""

    schema_id: SchemaId = Field(default="host.event/1.0", alias="schema")
