"""Measures qmp-migrate side by side with raw QEMU and, where it is installed, libvirt: ``make bench``.

What is compared, in one run on one machine, with the same guest:

======== =============================================================================================================
raw      two QEMUs, plain QMP over local UNIX sockets, a destination that starts by itself, no SSH, none of our safety
command  ``qmp-migrate migrate`` as a whole process, against a rig with real sshds
library  the same in Python, with a `Controller` that is open and hosts that are connected
virsh    ``virsh migrate --live --p2p`` over ``qemu+ssh`` between two libvirtds with namespaces and host UUIDs of their own
======== =============================================================================================================

Every sample has a guest of its own, booted for it, and the contenders take turns, so that what disturbs the machine for
a while disturbs all of them. All blackouts are taken by the same observer, from an extra monitor of both QEMUs, on
QEMU's own clock. Nothing here fails because a number is bad: it is measured and told.

Files: `scenarios` (what is moved), `guest`, `qmp`, `observer` (what is the same for all), `raw`, `command`, `library` (with
`library_worker`), `virsh` (with `libvirt_lab`), `fleet` (the rig they share), `sampling` (one measurement), and, pure,
`samples`, `stages`, `cpu`, `summary`, `targets`; `report` and `environment` tell it.
`forecasts` stands alone: how wrong forecasts are (``python -m bench.forecasts``).
"""
