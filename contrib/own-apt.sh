# Functions for scripts that fetch packages of the distribution and unpack them, without installing anything and without
# root: apt with state directories of its own, on the mirror that this machine's apt uses. apt verifies the packages by the
# Debian archive's keys. To be read by a script: `. contrib/own-apt.sh`. Needs there: a function
# `no MESSAGE WHAT-TO-DO`, which notes the reason and fails, and $root, the directory of the checkout.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Sets $site to the mirror, or says why packages cannot be fetched here.
check_machine() {
	[ "$(uname -m)" = x86_64 ] || no "these packages are for x86_64 machines" "use one" || return 1
	for command in apt-get dpkg-deb flock; do
		command -v $command >/dev/null 2>&1 || no "$command is not there" "use a Debian machine" || return 1
	done
	[ -r "$keyring" ] || no "$keyring is not there" "install debian-archive-keyring, on a Debian machine" || return 1
	site=$("$root/contrib/mirror.sh" 2>&1) || no "${site%%; *}" "${site#*; }" || return 1
}

# $1 a directory for apt's state, $2 a suite. apt sees that suite only (backports: what it builds on, too), and a machine
# on which nothing is installed. Preferences may be put into $1/preferences.
prepare_apt() {
	mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/empty"
	: >"$1/status"
	suites=$2
	case $2 in *-backports) suites="${2%-backports} $2" ;; esac
	for suite in $suites; do
		echo "deb [signed-by=$keyring arch=amd64] $site $suite main"
	done >"$1/sources.list"
	cat >"$1/apt.conf" <<END
Dir::State "$1";
Dir::State::Lists "$1/lists";
Dir::State::status "$1/status";
Dir::Cache "$1/cache";
Dir::Etc::SourceList "$1/sources.list";
Dir::Etc::SourceParts "$1/empty";
Dir::Etc::Preferences "$1/preferences";
Dir::Etc::PreferencesParts "$1/empty";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::PDiffs "false";
END
	# As root apt would give its rights away to _apt, which may not write below somebody's home.
	[ "$(id -u)" != 0 ] || echo "APT::Sandbox::User \"root\";" >>"$1/apt.conf"
}

apt_with() { # apt_with DIRECTORY COMMAND WORDS…: the machine's own settings are read first (proxies), ours after them
	directory=$1
	command=$2
	shift 2
	APT_CONFIG=$directory/apt.conf LC_ALL=C $command "$@"
}
