#!/bin/sh
# Fetches other QEMUs than the machine's own and unpacks them into build/qemus/VERSION, so that moves between versions can
# be tried: 7.2, 10.0 and 11.1, without that of these which is the machine's own. Nothing is installed, no root is needed,
# and what is there already is left alone.
#
# Each one comes with all the libraries of its own distribution and is started through its own dynamic loader, so it
# depends on nothing of this machine. How the packages are fetched: contrib/own-apt.sh.
#
# Exit status: 0 all are there, 1 one could not be had (the reason and what to do are on stderr; the others are kept).
# With --try it is 0 then, too, and build/qemus/VERSION.missing holds the reason: tests that need it are skipped with it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
qemus=$root/build/qemus
packages="qemu-system-x86 qemu-utils ipxe-qemu"
# Changes here, or in the wrappers below, make what was fetched before count as old.
layout=1

# Prints the suites that offer a version, in the order in which they are tried.
suites_of() {
	case $1 in
	7.2) echo "bookworm" ;;
	10.0) echo "bookworm-backports trixie" ;;
	11.1) echo "sid forky" ;;
	*) return 1 ;;
	esac
}

reason=
no() { # no MESSAGE WHAT-TO-DO: remember why, for the caller
	reason="$1; $2"
	return 1
}

# Prints the version of the machine's own QEMU, major and minor.
own_version() {
	qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\.[0-9]*\).*/\1/p'
}

. "$here/own-apt.sh"

# $1 a suite, $2 apt's directory. A mirror that stands still serves suites whose lists have expired. What is unpacked here
# runs in tests alone, and signatures are checked as before: older packages will do.
update_from_old() {
	grep -q 'Release file .* is expired' "$2/log" || return 1
	echo "qemus.sh: the mirror's $1 has expired; it is taken as it is" >&2
	echo 'Acquire::Check-Valid-Until "false";' >>"$2/apt.conf"
	apt_with "$2" apt-get update -qq --error-on=any >"$2/log" 2>&1
}

# $1 version, $2 a suite, $3 apt's directory. Fetches the packages of that version from that suite.
fetch() {
	prepare_apt "$3" "$2"
	apt_with "$3" apt-get update -qq --error-on=any >"$3/log" 2>&1 || update_from_old "$2" "$3" ||
		no "$2 cannot be had from the mirror: $(tail -n 1 "$3/log")" "look whether this machine is online" || return 1
	candidate=$(apt_with "$3" apt-cache -t "$2" policy qemu-system-x86 2>/dev/null | sed -n 's/^ *Candidate: //p')
	case ${candidate#*:} in
	"$1".* | "$1"[+~-]*) ;;
	*) no "$2 offers QEMU ${candidate:-none}, not $1" "name a suite that has it in contrib/qemus.sh" || return 1 ;;
	esac
	# shellcheck disable=SC2086
	apt_with "$3" apt-get -qq -y -t "$2" --no-install-recommends --download-only install $packages >"$3/log" 2>&1 ||
		no "the packages of QEMU $candidate cannot be fetched: $(tail -n 1 "$3/log")" "try again" || return 1
}

# $1 the unpacked root, $2 the wrapper, $3 a program below it, the rest: options that go before the caller's. The wrapper
# finds its own place, so that the tree can be moved.
wrapper() {
	into=$2
	program=$3
	[ -x "$1/$program" ] || return 0
	libraries=$(cd "$1" && find usr lib -name '*.so*' -path '*x86_64-linux-gnu*' -printf '%h\n' 2>/dev/null | sort -u |
		grep -v -e /qemu -e /gconv -e /perl -e /pkgconfig -e /security -e /engines -e /ossl -e /sasl2 -e /rsocket -e /systemd -e /vdeplug | sed 's,^,$here/root/,' | paste -sd :)
	shift 3
	{
		echo '#!/bin/sh'
		echo '# Starts a QEMU that was unpacked, not installed, with the libraries of its own distribution.'
		echo 'here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)'
		echo 'export QEMU_MODULE_DIR="$here/root/usr/lib/x86_64-linux-gnu/qemu"'
		echo "exec \"\$here/root/$loader\" --library-path \"$libraries\" \"\$here/root/$program\" $* \"\$@\""
	} >"$into"
	chmod 755 "$into"
}

# $1 version, $2 apt's directory, $3 where to build the result.
unpack() {
	mkdir -p "$3/root"
	for package in "$2"/cache/archives/*.deb; do
		dpkg-deb -x "$package" "$3/root" || no "$package cannot be unpacked" "is the disk full?" || return 1
	done
	loader=$(cd "$3/root" && find usr lib -name 'ld-linux-x86-64.so.2' -path '*x86_64-linux-gnu*' 2>/dev/null | head -n 1)
	[ -n "$loader" ] || no "QEMU $1 came without a dynamic loader" "look at contrib/qemus.sh" || return 1
	rm -rf "$3/root/usr/share/doc" "$3/root/usr/share/man" "$3/root/usr/share/locale" "$3/root/var"
	shares=
	for share in qemu seabios ovmf; do
		[ ! -d "$3/root/usr/share/$share" ] || shares="$shares -L \"\$here/root/usr/share/$share\""
	done
	[ ! -d "$3/root/usr/lib/ipxe/qemu" ] || shares="$shares -L \"\$here/root/usr/lib/ipxe/qemu\""
	wrapper "$3/root" "$3/qemu-system-x86_64" usr/bin/qemu-system-x86_64 "$shares"
	for tool in qemu-img qemu-nbd qemu-io qemu-storage-daemon; do
		wrapper "$3/root" "$3/$tool" usr/bin/$tool
	done
	said=$("$3/qemu-system-x86_64" --version 2>"$2/log" | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
	case $said in
	"$1".*) echo "$layout $said" >"$3/complete" ;;
	*) no "the unpacked QEMU does not start as $1: $(tail -n 1 "$2/log")" "look at contrib/qemus.sh" || return 1 ;;
	esac
}

# $1 version: it is there and of this layout.
complete() {
	grep -q "^$layout $1\\." "$qemus/$1/complete" 2>/dev/null
}

get() {
	complete "$1" && echo "build/qemus/$1 is there ($(cut -d ' ' -f 2 "$qemus/$1/complete"))" && return 0
	check_machine || return 1
	reasons=
	for suite in $(suites_of "$1"); do
		rm -rf "$work/$1"
		mkdir -p "$work/$1"
		echo "fetching QEMU $1 from $suite"
		if fetch "$1" "$suite" "$work/$1/apt" && unpack "$1" "$work/$1/apt" "$work/$1/tree"; then
			rm -rf "${qemus:?}/$1" "$qemus/$1.missing"
			mv "$work/$1/tree" "$qemus/$1"
			echo "build/qemus/$1 is QEMU $(cut -d ' ' -f 2 "$qemus/$1/complete") of $suite"
			return 0
		fi
		reasons="$reasons${reasons:+. }$reason"
	done
	reason=$reasons
	return 1
}

try=
[ "${1:-}" != --try ] || { try=yes && shift; }
if [ $# -eq 0 ]; then
	own=$(own_version)
	for version in 7.2 10.0 11.1; do
		[ "$version" = "$own" ] || set -- "$@" "$version"
	done
fi
mkdir -p "$qemus"
command -v flock >/dev/null 2>&1 && exec 9>"$root/build/qemus.lock" && flock 9
work=$(mktemp -d "$root/build/qemus.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

status=0
for wanted in "$@"; do
	suites_of "$wanted" >/dev/null || {
		echo "qemus.sh: QEMU $wanted is not among those that are fetched" >&2
		exit 1
	}
	get "$wanted" && continue
	status=1
	echo "$reason" >"$qemus/$wanted.missing"
	echo "qemus.sh: QEMU $wanted could not be had: ${reason%%; *}" >&2
	echo "  do: ${reason#*; }" >&2
done
[ -z "$try" ] || status=0
exit $status
