#!/bin/sh
# A clean Debian beside this machine's own, to try on it what this checkout does there. Root only.
#
#   contrib/debian.sh make 13                 unpacks a new one into build/debian-13, with a copy of this checkout; COMMIT=
#                                             is written beside it
#   contrib/debian.sh run 13 COMMAND WORDS…   runs a command in that copy, as root
#
# Packages come from the mirror of this machine's apt, and pip is configured as here: files, variables and local directories
# that they name. The command has its own processes and mounts, which end with it; the network, /dev and /sys are this
# machine's (KVM, loopback, network namespaces). Nothing runs in it but the command.
#
# Exit status: that of the command; 1 with the reason on stderr where there is none.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
	echo "debian.sh: $1" >&2
	echo "  do: $2" >&2
	exit 1
}

usage() {
	sed -n '4,6s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

[ $# -ge 2 ] || usage
what=$1
release=$2
shift 2
[ "$what" = make ] || [ "$what" = run ] || usage
case $release in
12) codename=bookworm ;;
13) codename=trixie ;;
*) fail "Debian $release is not among those that are tried" "use 12 or 13" ;;
esac
[ "$(id -u)" = 0 ] || fail "a root of its own needs root" "run it as root, or with sudo"
place=$checkout/build/debian-$release
root=$place/root

# Prints the local files and directories that pip's configuration names, one a line.
pip_paths() {
	{
		cat /etc/pip.conf /etc/xdg/pip/* "$HOME"/.config/pip/* "$HOME"/.pip/* 2>/dev/null || true
		env | grep '^PIP_' || true
	} | grep -v '^ *[#;]' | tr " \t='\"" '\n\n\n\n\n' | sed -n 's,^file://,,; s,^\(/[^/].*\)$,\1,p' | sort -u |
		sed 's,/simple/*$,,' | sort -u | # an index beside what it links to
		while read -r path; do [ ! -e "$path" ] || echo "$path"; done
}

# Lets apt and pip in there fetch as they do here.
configure() {
	printf 'deb %s %s main\ndeb %s %s-updates main\n' "$1" "$codename" "$1" "$codename" >"$root/etc/apt/sources.list"
	apt-config dump | grep -E '^Acquire::(http|https|Retries)' >"$root/etc/apt/apt.conf.d/90outside" || true
	# nothing that is installed starts a daemon
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf /etc/xdg/pip; do
		[ -e "$file" ] || continue
		mkdir -p "$root$(dirname "$file")"
		cp -rL "$file" "$root$(dirname "$file")"
	done
	for directory in .config/pip .pip; do
		[ -d "$HOME/$directory" ] || continue
		mkdir -p "$root/root/$(dirname "$directory")"
		cp -rL "$HOME/$directory" "$root/root/$(dirname "$directory")"
	done
	pip_paths | while read -r path; do
		if [ -d "$path" ]; then
			mkdir -p "$root$path" # bound when a command is run
		elif [ ! -e "$root$path" ]; then
			mkdir -p "$root$(dirname "$path")"
			cp -L "$path" "$root$path"
		fi
	done
}

make_root() {
	command -v debootstrap >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null ||
		fail "debootstrap is not there" "apt-get install debootstrap"
	[ -r "$keyring" ] || fail "$keyring is not there" "apt-get install debian-archive-keyring"
	site=$("$here/mirror.sh" 2>&1) || fail "${site%%; *}" "${site#*; }"
	rm -rf --one-file-system "$root"
	mkdir -p "$root" "$place/packages"
	debootstrap --variant=minbase --keyring="$keyring" --cache-dir="$place/packages" --include=ca-certificates,make \
		"$codename" "$root" "$site" >"$place/debootstrap.log" 2>&1 ||
		fail "debootstrap: $(tail -n 1 "$place/debootstrap.log")" "read $place/debootstrap.log"
	configure "$site"
	mkdir "$root/root/checkout"
	cd "$checkout"
	git ls-files -z --cached --others --exclude-standard >"$place/files" || fail "this is no git checkout" "clone it"
	tar -c --null --files-from="$place/files" --ignore-failed-read 2>/dev/null | tar -x -C "$root/root/checkout"
	echo "${COMMIT:-}" >"$place/commit"
	echo "$root is Debian $(cat "$root/etc/debian_version")"
}

# The first process in there: mounts, runs the command, and reaps what that leaves.
first='
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -p "$root/run/lock"
while [ "$1" != -- ]; do
	mount --bind "$1" "$root$1"
	mount -o remount,bind,ro "$root$1"
	shift
done
shift
cd "$root" # a root of its own, and not only chroot: who makes mount namespaces in there asks for its propagation
mkdir -p mnt/outside
pivot_root . mnt/outside
umount -l /mnt/outside
"$@"
'

run_in_root() {
	[ -d "$root/root/checkout" ] || fail "$root is not there" "contrib/debian.sh make $release"
	directories=$(pip_paths | while read -r path; do [ ! -d "$path" ] || echo "$path"; done)
	set -- sh -c 'cd /root/checkout && exec "$@"' sh "$@"
	for name in $(env | sed -n -E 's/^(PIP_[A-Z_]*|[a-z]+_proxy|[A-Z]+_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|KVM|WORKERS)=.*/\1/p'); do
		eval "value=\$$name"
		set -- "$name=$value" "$@"
	done
	# In the background a shell has SIGINT ignored, and the command would inherit that.
	set -- env -i --default-signal=INT,QUIT HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
	# shellcheck disable=SC2016
	unshare --mount --pid --ipc --uts --fork --kill-child sh -c "$first" first "$root" $directories -- "$@" &
	child=$!
	trap 'kill -KILL $child 2>/dev/null' INT TERM HUP
	wait $child
}

case $what in
make) make_root ;;
run)
	[ $# -gt 0 ] || usage
	status=0
	run_in_root "$@" || status=$?
	exit $status # nothing more is read from this file, which may have changed in the meantime
	;;
*) usage ;;
esac
