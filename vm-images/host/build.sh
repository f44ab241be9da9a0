#!/bin/sh
# Builds the host machine of `qmp-migrate rig up --hosts-as-vms`: build/images/host/{vmlinux,initrd.img,root.ext4,manifest.json}.
# Needs no root; does nothing when nothing changed.
#
# It is made of the distribution's packages, unpacked and not installed: a kernel, sshd, QEMU 10.0 and Python, with the
# hash-pinned libraries of .venv, if that is of the same Python. What belongs to one lab (keys, test guests, the agent's code)
# is not in it: `rig up` puts it on a disk beside it.
#
# Exit status: 0 built or up to date, 1 failed (the reason and what to do are on stderr). With --try it is 0 then, too, and
# build/images/host.missing holds the reason: tests that need the machines are skipped with it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
result=$root/build/images/host
cache=$root/build/cache/host
python=$root/.venv/bin/python
packages="linux-image-cloud-amd64 busybox-static dash coreutils util-linux sed grep findutils openssh-server
qemu-system-x86 qemu-utils ipxe-qemu python3 lz4 zstd"
qemu_series=10.0
# Leaves of the dependency tree, in the order in which they are loaded. What the root cannot be found without…
early="virtio_pci virtio_blk overlay"
# …and the rest; a kernel that has no such module is none the worse.
late="virtio_net virtio-rng button evdev tun bridge kvm_intel kvm_amd"

reason=
no() { # no MESSAGE WHAT-TO-DO: remember why
	reason="$1; $2"
	return 1
}

. "$root/contrib/own-apt.sh"

# The Python of the virtual environment, as MAJOR.MINOR; empty where there is none.
python_version() {
	"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# $1 a Python's version. Prints the suite whose Python it is: libraries in .venv are compiled for that one.
suite_of() {
	case $1 in
	3.11) echo bookworm-backports ;;
	*) echo trixie ;;
	esac
}

# What the result depends on and is ours; newer packages of the distribution alone are no reason to build again.
inputs() {
	{
		cat "$here"/* "$root/contrib/own-apt.sh" "$root/requirements/dev.txt"
		python_version
	} 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
	for file in vmlinux initrd.img root.ext4; do
		[ -f "$result/$file" ] || return 1
	done
	grep -q "\"$(inputs)\"" "$result/manifest.json" 2>/dev/null
}

# Fetches the packages into $cache/SUITE/cache/archives; those that are there already are taken.
fetch() {
	apt=$cache/$suite
	prepare_apt "$apt" "$suite"
	# Of backports QEMU alone: everything else is the stable release's.
	printf 'Package: qemu-* seabios ipxe-qemu\nPin: release n=%s\nPin-Priority: 990\n' "$suite" >"$apt/preferences"
	apt_with "$apt" apt-get update -qq --error-on=any >"$apt/log" 2>&1 ||
		no "$suite cannot be had from the mirror: $(tail -n 1 "$apt/log")" "look whether this machine is online" || return 1
	candidate=$(apt_with "$apt" apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
	case ${candidate#*:} in
	"$qemu_series".* | "$qemu_series"[+~-]*) ;;
	*) no "$suite offers QEMU ${candidate:-none}, not $qemu_series" "name a suite that has it in $0" || return 1 ;;
	esac
	# shellcheck disable=SC2086
	apt_with "$apt" apt-get -qq -y --no-install-recommends --download-only install $packages >"$apt/log" 2>&1 ||
		no "the packages cannot be fetched: $(tail -n 1 "$apt/log")" "try again" || return 1
	# The cache may hold older versions, too. With no cache to look into, apt names all files that it would fetch.
	# shellcheck disable=SC2086
	apt_with "$apt" apt-get -qq -y --no-install-recommends -o "Dir::Cache::archives=$apt/empty" --print-uris install $packages |
		cut -d ' ' -f 2 >"$work/files"
	for package in "$apt"/cache/archives/*.deb; do
		grep -qxF "$(basename "$package")" "$work/files" || rm -f "$package"
	done
}

# Unpacks all packages but the kernel into $tree, whose /bin, /lib and so on are links, as on an installed Debian.
unpack() {
	mkdir -p "$tree/usr/bin" "$tree/usr/sbin" "$tree/usr/lib" "$tree/usr/lib64"
	for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
	for package in "$apt"/cache/archives/*.deb; do
		into=$tree
		case $package in */linux-image-*) into=$work/kernel ;; esac
		mkdir -p "$into"
		dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner --keep-directory-symlink -C "$into" --exclude-from "$here/leave-out" ||
			no "$package cannot be unpacked" "is the disk full? else remove it and try again" || return 1
	done
	[ -x "$tree/usr/bin/qemu-system-x86_64" ] && [ -x "$tree/usr/sbin/sshd" ] && ls "$work"/kernel/boot/vmlinuz-* >/dev/null 2>&1 ||
		no "the packages lack QEMU, sshd or the kernel" "look at $0" || return 1
	[ -z "$(find "$work/kernel" -name '*.ko.xz' | head -n 1)" ] || command -v xz >/dev/null 2>&1 ||
		no "the kernel's modules are compressed and xz is not there" "apt-get install xz-utils" || return 1
}

# $1: a module's file. Prints the modules it needs. Reads .modinfo itself: kmod may not be installed.
depends_of() {
	objcopy -O binary --only-section=.modinfo "$1" "$work/modinfo"
	tr '\0' '\n' <"$work/modinfo" | sed -n 's/^depends=//p' | tr ',' ' '
}

# $1: a module's name, $2: where it goes. Puts it, and before it what it needs, there, unless it is there or built in.
add_module() {
	file=$(find "$work/kernel" -path '*/modules/*' -name '*.ko*' | grep -E "/$(echo "$1" | sed 's/[-_]/[-_]/g')\.ko[^/]*$" | head -n 1)
	[ -n "$file" ] || return 0
	name=$(basename "${file%.ko*}").ko
	grep -qx "$name" "$2/order" 2>/dev/null && return
	case $file in
	*.xz) xz -dc "$file" >"$work/$name" ;;
	*.zst) zstd -qdc "$file" >"$work/$name" ;;
	*.gz) gzip -dc "$file" >"$work/$name" ;;
	*) cp "$file" "$work/$name" ;;
	esac || exit 1
	for dependency in $(depends_of "$work/$name"); do
		(add_module "$dependency" "$2") # a subshell: the variables are ours alone
	done
	objcopy --strip-debug --remove-section=.BTF "$work/$name" "$2/$name"
	echo "$name" >>"$2/order"
}

# The initramfs finds the root, nothing else.
initramfs() {
	small=$work/small
	mkdir -p "$small/bin" "$small/modules" "$small/proc" "$small/dev" "$small/ro" "$small/rw" "$small/new"
	cp "$tree/usr/bin/busybox" "$small/bin/busybox"
	install -m 755 "$here/initramfs-init" "$small/init"
	for module in $early; do add_module "$module" "$small/modules"; done
	(cd "$small" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) >"$work/out/initrd.img"
}

# What makes the tree a machine: users, init, the other modules, busybox's commands where nothing better is there.
furnish() {
	mkdir -p "$tree/modules" "$tree/busybox" "$tree/root" "$tree/data" "$tree/lab" "$tree/etc/ssh"
	for name in dev proc sys run tmp var; do mkdir -p "$tree/$name"; done
	ln -sf dash "$tree/usr/bin/sh"
	for applet in $("$tree/usr/bin/busybox" --list); do ln -s ../usr/bin/busybox "$tree/busybox/$applet"; done
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' \
		'nobody:x:65534:65534::/:/usr/sbin/nologin' >"$tree/etc/passwd"
	printf '%s\n' 'root:*:19000:0:99999:7:::' 'sshd:!:19000::::::' >"$tree/etc/shadow"
	printf '%s\n' 'root:x:0:' 'kvm:x:104:' 'nogroup:x:65534:' >"$tree/etc/group"
	printf '%s\n' 'passwd: files' 'group: files' 'shadow: files' 'hosts: files' >"$tree/etc/nsswitch.conf"
	cp "$here/sshd_config" "$tree/etc/ssh/sshd_config"
	install -m 755 "$here/init" "$tree/init"
	for module in $late; do add_module "$module" "$tree/modules"; done
}

# The agent's libraries, as they are in .venv, and byte code for all Python: compiling is slow where the processor is emulated.
libraries() {
	theirs=$(ls "$tree"/usr/bin/python3.* | sed 's/.*python//' | grep -E '^[0-9.]+$' | head -n 1)
	if [ "$theirs" != "$version" ]; then
		echo "host/build.sh: no agent in the machines: .venv is of Python ${version:-none}, $suite has $theirs" >&2
		version=
		return 0
	fi
	"$python" "$here/libraries.py" "$tree/opt/libraries" || no "the agent's libraries cannot be copied" "make venv" || return 1
	"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$tree" -p / \
		"$tree/usr/lib/python$version" "$tree/opt/libraries" >"$work/compile.log" 2>&1 ||
		no "Python's libraries do not compile: $(tail -n 1 "$work/compile.log")" "look at $0" || return 1
}

disk() {
	megabytes=$(du -sm "$tree" | cut -f 1)
	truncate -s $((megabytes + megabytes / 8 + 16))M "$work/out/root.ext4"
	"$mke2fs" -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$tree" "$work/out/root.ext4" ||
		no "the root cannot be made" "is the disk full?" || return 1
}

build() {
	check_machine || return 1
	for pair in objcopy:binutils cpio:cpio; do
		command -v "${pair%:*}" >/dev/null 2>&1 || no "${pair%:*} is not there" "apt-get install ${pair#*:}" || return 1
	done
	mke2fs=$(PATH=$PATH:/usr/sbin:/sbin command -v mke2fs) || no "mke2fs is not there" "apt-get install e2fsprogs" || return 1
	[ -x "$python" ] || no ".venv is not there" "make venv" || return 1
	version=$(python_version)
	suite=$(suite_of "$version")
	echo "building the host machine from $suite"
	fetch && unpack || return 1
	qemu=$("$tree/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \
		"$tree/usr/bin/qemu-system-x86_64" --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
	mkdir -p "$work/out"
	"$python" "$here/vmlinux.py" "$work"/kernel/boot/vmlinuz-* "$work/out/vmlinux" "$tree" || no "the kernel cannot be unpacked" "look at $0" || return 1
	initramfs && furnish && libraries && disk || return 1
	rm -f "$result/manifest.json" # it says what lies beside it: nothing, while that is replaced
	mkdir -p "$result"
	mv "$work/out"/* "$result/"
	cat >"$work/manifest.json" <<END
{
  "schema": "images.host/1",
  "suite": "$suite",
  "kernel_release": "$(basename "$(ls "$work"/kernel/boot/vmlinuz-*)" | sed 's/^vmlinuz-//')",
  "qemu": "$qemu",
  "python": "$version",
  "inputs_sha256": "$(inputs)"
}
END
	mv "$work/manifest.json" "$result/manifest.json"
	rm -f "$result.missing"
	echo "build/images/host: $suite, QEMU $qemu, Python ${version:-none}, $(($(stat -c %b "$result/root.ext4") / 2048)) MiB"
}

mkdir -p "$root/build/images" "$cache"
command -v flock >/dev/null 2>&1 && exec 9>"$root/build/host-image.lock" && flock 9
if up_to_date; then
	echo "build/images/host is up to date"
	exit 0
fi
work=$(mktemp -d "$root/build/host.XXXXXX")
tree=$work/tree
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
build && exit 0
echo "$reason" >"$result.missing"
echo "host/build.sh: ${reason%%; *}" >&2
echo "  do: ${reason#*; }" >&2
[ "${1:-}" = --try ]
