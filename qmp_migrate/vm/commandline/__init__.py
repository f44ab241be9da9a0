"""A QEMU command line, read without loss: its options, and what they say of devices, disks, files and addresses. Pure."""
