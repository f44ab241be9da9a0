"""The disks of a migration: which are copied, the mirror jobs that copy them, and the image files on hosts."""
