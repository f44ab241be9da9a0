#!/bin/sh
# Prints the address that this machine's apt fetches Debian from.
#
# Exit status: 0 printed, 1 there is none: one line on stderr, `reason; what to do`.
set -eu

no() {
	echo "$1; $2" >&2
	exit 1
}

command -v apt-get >/dev/null 2>&1 || no "apt-get is not there" "use a Debian machine"
codename=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}") ||
	no "this machine is not Debian" "use a Debian machine"
site=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
	awk -v release="$codename" '$1 == release && $2 == "main" { print $3; exit }')
[ -n "$site" ] || no "apt knows no Debian mirror here" "add one to apt's sources"
echo "$site"
