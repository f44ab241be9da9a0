"""What an agent says about its host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qmp_migrate.bus.fields import Count, Name, Percent, Real, Text, Timestamp, Word
from qmp_migrate.bus.message_base import BusMessage, CloudEvent, Items, Part, SchemaId, StatusMessage

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
    """

    schema_id: SchemaId = Field(default="host.load/1.0", alias="schema")

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
