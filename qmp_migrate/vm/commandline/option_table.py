"""What is known of QEMU's options: which take an argument, and in which notation.

The two lists were made by asking the binaries of QEMU 7.2, 10.0 and 11.1 one option at a time (``-version -OPTION``
answers "requires an argument", "invalid option", or the version); ``tests/component/test_vm_argv.py`` asks the
installed one again. An option that a later QEMU dropped stays in the list: guests that use it are still running.
"""

from __future__ import annotations

from typing import Final

# fmt: off
FLAGS: Final = frozenset(
    {
        "S", "daemonize", "enable-kvm", "enable-sync-profile", "full-screen", "h", "help", "mem-prealloc",
        "no-fd-bootchk", "no-reboot", "no-shutdown", "no-user-config", "nodefaults", "nographic", "old-param",
        "only-migratable", "preconfig", "s", "semihosting", "snapshot", "usb", "version", "win2k-hack",
        "xen-attach", "xen-domid-restrict",
        "async-teardown", "audio-help", "no-acpi", "no-hpet", "portrait", "singlestep",  # 7.2, gone by 10.0
        "jitdump", "perfmap",  # since 8.0
    }
)
"""Options that take no argument."""
# fmt: on

# fmt: off
WITH_VALUE: Final = frozenset(
    {
        "D", "L", "M", "accel", "acpitable", "add-fd", "append", "audio", "audiodev", "bios", "blockdev", "boot",
        "cdrom", "chardev", "compat", "cpu", "d", "debugcon", "device", "dfilter", "display", "drive", "dtb",
        "dump-vmstate", "echr", "fda", "fdb", "fsdev", "fw_cfg", "g", "gdb", "global", "hda", "hdb", "hdc", "hdd",
        "icount", "incoming", "initrd", "iscsi", "k", "kernel", "loadvm", "m", "machine", "mem-path", "mon",
        "monitor", "msg", "mtdblock", "name", "net", "netdev", "nic", "numa", "object", "option-rom", "overcommit",
        "parallel", "pflash", "pidfile", "plugin", "prom-env", "qmp", "qmp-pretty", "qtest", "qtest-log",
        "readconfig", "rtc", "sandbox", "sd", "seed", "semihosting-config", "serial", "set", "smbios", "smp",
        "spice", "tpmdev", "trace", "usbdevice", "uuid", "vga", "virtfs", "vnc", "watchdog-action", "xen-domid",
        "action",
        "chroot", "rotate", "runas",  # 7.2, gone by 10.0
        "run-with", "shim",  # since 8.1 and 10.1
    }
)
"""Options that take exactly one argument."""
# fmt: on

IMPLIED_KEY: Final = {
    "M": "type",
    "accel": "accel",
    "acpitable": "",
    "action": "",
    "add-fd": "",
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "boot": "order",
    "chardev": "backend",
    "compat": "",
    "device": "driver",
    "display": "type",
    "drive": "",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "global": "",
    "icount": "shift",
    "iscsi": "",
    "m": "size",
    "machine": "type",
    "mon": "chardev",
    "msg": "",
    "name": "guest",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "numa": "type",
    "object": "qom-type",
    "option-rom": "romfile",
    "overcommit": "",
    "plugin": "file",
    "rtc": "base",
    "run-with": "",
    "sandbox": "enable",
    "semihosting-config": "enable",
    "smbios": "",
    "smp": "cpus",
    "spice": "",
    "tpmdev": "type",
    "trace": "enable",
    "virtfs": "fsdriver",
    "vnc": "vnc",
}
"""Options whose argument is ``key=value,…``, with the key that a first value without ``=`` belongs to."""

TAKES_JSON: Final = frozenset({"audiodev", "blockdev", "compat", "device", "display", "netdev", "object"})
"""Options that also take their properties as a JSON object (``-device '{"driver":…}'``)."""

CHARACTER_DEVICES: Final = frozenset({"debugcon", "gdb", "monitor", "parallel", "qmp", "qmp-pretty", "qtest", "serial"})
"""Options whose argument is a character device in QEMU's older notation (``unix:PATH,server=on``)."""
