#!/bin/sh
# Builds the test guests: build/images/{vmlinuz,initrd.img,bare.elf,manifest.json}. Needs no root; does nothing when
# nothing changed.
#
# The bare guest is our own code alone. The Linux guest's kernel is the distribution's own cloud kernel, fetched with the
# ordinary package client and unpacked, not installed; its initramfs holds our init (static C) and the drivers it loads,
# nothing else.
#
# Exit status: 0 built or up to date, 1 failed (the reason and what to do are on stderr).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
images=$root/build/images
cache=$root/build/cache
meta=linux-image-cloud-amd64
# Leaves of the dependency tree, in the order in which they are loaded; what they need is found and goes before.
modules="virtio_pci virtio_blk virtio_net virtio_scsi sd_mod virtio-rng virtio_balloon virtio_console
pvpanic-mmio pvpanic-pci button evdev"
cflags="-static -O2 -Wall -Wextra -Werror -pthread"
bare_cflags="-m64 -O2 -std=gnu11 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-pie -fno-stack-protector
-fcf-protection=none -fno-asynchronous-unwind-tables -mno-red-zone"

fail() {
	printf 'build.sh: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf '  do: %s\n' "$2" >&2
	exit 1
}

need() {
	command -v "$1" >/dev/null 2>&1 || fail "$1 is not there" "apt-get install $2"
}

sha256() {
	sha256sum "$1" | cut -d ' ' -f 1
}

# What the Linux guest depends on and is ours; a newer kernel of the distribution alone is no reason to build again.
inputs() {
	{
		cat "$here"/*.c "$here"/*.h "$here/build.sh"
		gcc --version 2>/dev/null | head -n 1
	} | sha256sum | cut -d ' ' -f 1
}

bare_inputs() {
	{
		cat "$here"/bare/* "$here/build.sh"
		gcc --version 2>/dev/null | head -n 1
	} | sha256sum | cut -d ' ' -f 1
}

# $1: a key. Prints its value in the manifest.
entry() {
	sed -n "s/^  \"$1\": \"\(.*\)\",\{0,1\}$/\1/p" "$images/manifest.json" 2>/dev/null || true
}

# $1: a file of build/images, $2: the manifest's key of its hash.
whole() {
	[ -f "$images/$1" ] && [ "$(sha256 "$images/$1")" = "$(entry "$2")" ]
}

linux_whole() {
	whole vmlinuz vmlinuz_sha256 && whole initrd.img initrd_sha256
}

# Prints the path of the kernel's package: the newest that apt knows, else the newest that was fetched before.
kernel_package() {
	package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
	if [ -n "$package" ]; then
		version=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
		# apt writes the colon of an epoch as %3a in a file name
		file=$cache/${package}_$(printf %s "$version" | sed 's/:/%3a/g')_amd64.deb
		if [ ! -f "$file" ]; then
			fetch=$(mktemp -d "$cache/fetch.XXXXXX")
			(cd "$fetch" && apt-get download "$package=$version" >&2) && mv "$fetch"/*.deb "$file" || true
			rm -rf "$fetch"
		fi
		[ ! -f "$file" ] || { echo "$file" && return; }
	fi
	newest=$(ls -t "$cache"/linux-image-*_amd64.deb 2>/dev/null | head -n 1)
	[ -n "$newest" ] || fail "no kernel: apt does not know $meta, or cannot fetch it" "apt-get update"
	echo "build.sh: using $(basename "$newest"), fetched before" >&2
	echo "$newest"
}

# $1: a module's file. Prints the modules it needs. Reads .modinfo itself: kmod may not be installed.
depends_of() {
	objcopy -O binary --only-section=.modinfo "$1" "$work/modinfo"
	tr '\0' '\n' <"$work/modinfo" | sed -n 's/^depends=//p' | tr ',' ' '
}

# $1: a module's name. Puts it, and before it what it needs, into the initramfs, unless it is there or built in.
add_module() {
	file=$(tr '-' '_' <"$work/modules.list" | grep -n "/$(echo "$1" | tr '-' '_')\.ko" | cut -d : -f 1 | head -n 1)
	if [ -z "$file" ]; then
		tr '-' '_' <"$builtin" | grep -q "/$(echo "$1" | tr '-' '_')\.ko$" || fail "the kernel has no module $1"
		return
	fi
	file=$(sed -n "${file}p" "$work/modules.list")
	name=$(basename "${file%.ko*}").ko
	grep -qx "$name" "$tree/modules/order" && return
	case $file in
	*.xz) need xz xz-utils && xz -dc "$file" >"$work/$name" ;;
	*.zst) need zstd zstd && zstd -qdc "$file" >"$work/$name" ;;
	*.gz) gzip -dc "$file" >"$work/$name" ;;
	*) cp "$file" "$work/$name" ;;
	esac
	for dependency in $(depends_of "$work/$name"); do
		(add_module "$dependency") # a subshell: the variables are ours alone
	done
	# Without debug data and signature it is smaller, and loads without an RSA check on an emulated processor.
	objcopy --strip-debug --remove-section=.BTF "$work/$name" "$tree/modules/$name"
	echo "$name" >>"$tree/modules/order"
}

mkdir -p "$images" "$cache"
need flock util-linux
exec 9>"$root/build/images.lock"
flock 9 # two builds at once would mix their results
missing=
for tool in gcc as ld objcopy; do
	command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
if [ -n "$missing" ] && linux_whole; then
	echo "build.sh: not there:$missing. No bare guest; the Linux guest that was built before stays" >&2
	echo "  do: apt-get install gcc libc6-dev binutils" >&2
	exit 0
fi
linux=build bare=build
if linux_whole && [ "$(inputs)" = "$(entry inputs_sha256)" ]; then linux=keep; fi
if whole bare.elf bare_sha256 && [ "$(bare_inputs)" = "$(entry bare_inputs_sha256)" ]; then bare=keep; fi
if [ $linux$bare = keepkeep ]; then
	echo "build/images is up to date"
	exit 0
fi

[ "$(uname -m)" = x86_64 ] || fail "the test guests are built on x86_64 only"
need gcc "gcc libc6-dev"
need as binutils
need ld binutils
need objcopy binutils

work=$(mktemp -d "$root/build/images.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Sets release, package; leaves vmlinuz and initrd.img in $work.
build_linux() {
	need cpio cpio
	need dpkg-deb dpkg
	need apt-cache apt
	tree=$work/tree
	mkdir -p "$tree/modules" "$tree/dev" "$tree/proc" "$tree/sys"
	: >"$tree/modules/order"

	# shellcheck disable=SC2086
	gcc $cflags -o "$tree/init" "$here"/*.c || fail "the workload does not compile" "apt-get install gcc libc6-dev"
	strip "$tree/init"

	package=$(kernel_package)
	dpkg-deb -x "$package" "$work/kernel"
	vmlinuz=$(ls "$work"/kernel/boot/vmlinuz-*)
	release=${vmlinuz##*/vmlinuz-}
	builtin=$(find "$work/kernel" -name modules.builtin)
	config=$work/kernel/boot/config-$release
	for option in SERIAL_8250_CONSOLE DEVTMPFS BLK_DEV_INITRD; do
		grep -q "^CONFIG_$option=y" "$config" || fail "kernel $release lacks CONFIG_$option"
	done
	find "$work/kernel" -name '*.ko' -o -name '*.ko.xz' -o -name '*.ko.zst' -o -name '*.ko.gz' >"$work/modules.list"
	for module in $modules; do
		add_module "$module"
	done

	# Not compressed: it is small, and unpacking costs more than reading where the processor is emulated. The same input
	# gives the same bytes: fixed times, order, owner and inodes.
	find "$tree" -exec touch -h -d @0 {} +
	(cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) >"$work/initrd.img"
	mv "$vmlinuz" "$work/vmlinuz"
	chmod 644 "$work/vmlinuz" "$work/initrd.img"
}

# Leaves bare.elf in $work. 64-bit code in a 32-bit file: QEMU's multiboot loader takes no other.
build_bare() {
	# shellcheck disable=SC2086
	gcc $bare_cflags -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-n -Wl,--no-warn-rwx-segments \
		-Wl,-T,"$here/bare/bare.ld" -o "$work/bare.elf64" "$here"/bare/start.S "$here"/bare/*.c ||
		fail "the bare guest does not compile" "apt-get install gcc libc6-dev binutils"
	objcopy -O elf32-i386 --strip-all "$work/bare.elf64" "$work/bare.elf"
	chmod 644 "$work/bare.elf"
}

release=$(entry kernel_release)
package=$(entry kernel_package)
[ $bare = keep ] || build_bare
[ $linux = keep ] || build_linux

rm -f "$images/manifest.json" # it says what lies beside it: nothing, while that is replaced
[ $bare = keep ] || mv "$work/bare.elf" "$images/bare.elf"
[ $linux = keep ] || mv "$work/vmlinuz" "$work/initrd.img" "$images/"
cat >"$work/manifest.json" <<END
{
  "schema": "images.manifest/1",
  "kernel_release": "$release",
  "kernel_package": "$(basename "$package")",
  "inputs_sha256": "$(inputs)",
  "vmlinuz_sha256": "$(sha256 "$images/vmlinuz")",
  "initrd_sha256": "$(sha256 "$images/initrd.img")",
  "bare_inputs_sha256": "$(bare_inputs)",
  "bare_sha256": "$(sha256 "$images/bare.elf")"
}
END
mv "$work/manifest.json" "$images/manifest.json"
echo "build/images: bare.elf $(($(wc -c <"$images/bare.elf") / 1024)) KiB; Linux $release, initrd.img $(($(wc -c <"$images/initrd.img") / 1024)) KiB"
