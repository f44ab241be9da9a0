"""Those who are measured: qmp-migrate as a command and as a library, raw QEMU, virsh."""
