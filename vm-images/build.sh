#!/bin/sh
# Builds the test guest: build/images/{vmlinuz,initrd.img,manifest.json}. Needs no root; does nothing when nothing changed.
#
# The kernel is the distribution's own cloud kernel, fetched with the ordinary package client and unpacked, not
# installed. The initramfs holds our init (static C) and the drivers it loads, nothing else.
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

# What the result depends on and is ours; a newer kernel of the distribution alone is no reason to build again.
inputs() {
	{
		cat "$here"/*.c "$here"/*.h "$here/build.sh"
		gcc --version 2>/dev/null | head -n 1
	} | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
	[ -f "$images/manifest.json" ] && [ -f "$images/vmlinuz" ] && [ -f "$images/initrd.img" ] || return 1
	for value in "$(inputs)" "$(sha256 "$images/vmlinuz")" "$(sha256 "$images/initrd.img")"; do
		grep -q "\"$value\"" "$images/manifest.json" || return 1
	done
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
if up_to_date; then
	echo "build/images is up to date"
	exit 0
fi

[ "$(uname -m)" = x86_64 ] || fail "the test guest is built on x86_64 only"
need gcc "gcc libc6-dev"
need objcopy binutils
need cpio cpio
need dpkg-deb dpkg
need apt-cache apt

work=$(mktemp -d "$root/build/images.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
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

rm -f "$images/manifest.json" # it says what lies beside it: nothing, while that is replaced
mv "$vmlinuz" "$images/vmlinuz"
mv "$work/initrd.img" "$images/initrd.img"
chmod 644 "$images/vmlinuz" "$images/initrd.img"
cat >"$work/manifest.json" <<EOF
{
  "schema": "images.manifest/1",
  "kernel_release": "$release",
  "kernel_package": "$(basename "$package")",
  "inputs_sha256": "$(inputs)",
  "vmlinuz_sha256": "$(sha256 "$images/vmlinuz")",
  "initrd_sha256": "$(sha256 "$images/initrd.img")"
}
EOF
mv "$work/manifest.json" "$images/manifest.json"
echo "build/images: Linux $release, initrd.img $(($(wc -c <"$images/initrd.img") / 1024)) KiB"
