#!/bin/sh
# Install the system packages that the lab and the tests use, where they are missing. Debian and its relatives.
# Without root or sudo the exact line to run is printed, and the script fails.
set -eu

missing=
need() { # need COMMAND-OR-FILE PACKAGE
	case $1 in
	/*) [ -e "$1" ] || missing="$missing $2" ;;
	*) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2" ;;
	esac
}
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need sshd openssh-server
need /usr/share/OVMF/OVMF_CODE_4M.fd ovmf
need ssh-keygen openssh-client
need mosquitto mosquitto
need /bin/busybox busybox-static
need cpio cpio
need mke2fs e2fsprogs
need objcopy binutils
need xz xz-utils # newer kernels come with compressed modules
need gcc gcc
need /usr/include/stdlib.h libc6-dev
need flock util-linux
need ip iproute2
need make make
# a whole machine with systemd, to try `make dist` and `host setup` on; root only
[ "$(id -u)" != 0 ] || need systemd-nspawn systemd-container
python=
for p in python3.13 python3.12 python3.11 python3; do
	if command -v $p >/dev/null 2>&1 && $p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
		python=$p
		break
	fi
done
[ -n "$python" ] || missing="$missing python3 python3-venv"
# busybox may be there, but not the static one
if [ -e /bin/busybox ] && ldd /bin/busybox >/dev/null 2>&1; then missing="$missing busybox-static"; fi

run=
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then run="sudo"; else run="none"; fi
fi
# the kernel of the test guest is downloaded, not installed; apt must know it
if command -v apt-cache >/dev/null 2>&1 && ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
	if [ "$run" = none ]; then echo "hint: apt's lists are empty; as root: apt-get update" >&2; else lists=old; fi
fi
if [ -z "$missing" ] && [ -z "${lists:-}" ]; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "missing:$missing" >&2
	echo "hint: install what your distribution calls these" >&2
	exit 1
fi
if [ "$run" = none ]; then
	echo "missing system packages; as root:" >&2
	echo "  apt-get update && apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi
echo "system packages:${missing:- apt lists}"
$run apt-get update -qq
[ -z "$missing" ] || DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $missing >/dev/null
