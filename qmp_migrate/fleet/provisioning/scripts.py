"""The scripts of `host setup`: one that looks, and one for each thing that is done. All run as root."""

from __future__ import annotations

from typing import Final

from qmp_migrate.errors import RemoteError
from qmp_migrate.fleet.provisioning.plan import AGENT, Machine

# $1 user, $2 run_dir, $3 QEMU, $4 base64 of the key ("": none), $5 the key's line, $6… files. Lines `NAME VALUE`.
# What was installed is told by its SHA-256: two builds of one version are not the same.
LOOK: Final = r"""
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
user=$1 run_dir=$2 qemu=$3 blob=$4 line=$5
shift 5
say() { printf '%s %s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
say uid "$(id -u)"
say kernel "$(uname -s)"
say machine "$(uname -m)"
say os "$(. /etc/os-release 2>/dev/null && printf %s "$PRETTY_NAME")"
say dpkg "$(dpkg --print-architecture 2>/dev/null)"
say python "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
[ ! -c /dev/kvm ] || say kvm yes
getent group kvm >/dev/null && say kvm_group yes
[ ! -x "$qemu" ] || say qemu "$("$qemu" --version 2>/dev/null | sed -n '1s/.*version //p')"
if entry=$(getent passwd "$user"); then
    home=$(printf %s "$entry" | cut -d: -f6)
    say home "$home"
    say shell "$(printf %s "$entry" | cut -d: -f7)"
    say groups "$(id -nG "$user")"
    say group "$(id -gn "$user")"
    keys=$home/.ssh/authorized_keys
    if [ -n "$blob" ] && [ -f "$keys" ]; then
        if grep -qxF -- "$line" "$keys"; then say key present
        elif grep -v '^[[:space:]]*#' "$keys" | grep -qF -- "$blob"; then say key other; fi
    fi
fi
[ ! -d "$run_dir" ] || say run_dir "$(stat -c '%a %U' -- "$run_dir")"
case $(dpkg-query -W -f '${db:Status-Status}' qmp-migrate 2>/dev/null) in
installed) say package "$(dpkg-query -W -f '${Version}' qmp-migrate)"
    note=/var/lib/qmp-migrate-setup/package.sha256
    [ ! -f $note ] || say package_digest "$(cat $note)" ;;
esac
if command -v sshd >/dev/null; then
    found=$(sshd -T 2>/dev/null)
    say sshd_streamlocal "$(printf '%s\n' "$found" | sed -n 's/^allowstreamlocalforwarding //p')"
    say sshd_sessions "$(printf '%s\n' "$found" | sed -n 's/^maxsessions //p')"
fi
if [ -d /run/systemd/system ]; then
    say systemd yes
    say agent_active "$(systemctl show -p ActiveState --value qmp-hostagent.service)"
    say agent_enabled "$(systemctl is-enabled qmp-hostagent.service 2>/dev/null)"
    say agent_status "$(systemctl show -p StatusText --value qmp-hostagent.service)"
    # analysing the files needs no logind that answers
    found=$(systemd-analyze cat-config systemd/logind.conf 2>/dev/null)
    say kill_user_processes "$(printf '%s\n' "$found" | sed -n 's/^KillUserProcesses=//p' | tail -n 1)"
fi
for file; do
    [ -f "$file" ] || continue
    printf 'file %s %s %s\n' "$(sha256sum <"$file" | cut -d' ' -f1)" "$(stat -c '%a %U:%G' -- "$file")" "$file"
done
"""

# $1 user, $2 home
MAKE_USER: Final = r"""
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
if ! getent passwd "$1" >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir "$2" --shell /bin/sh --comment 'qmp-migrate guests' -- "$1"
fi
if getent group kvm >/dev/null; then usermod --append --groups kvm -- "$1"; fi
"""

# $1 user, $2 line. Done as the user: what is written there can be led nowhere that is not the user's anyway.
ADD_KEY: Final = r"""
set -eu
home=$(getent passwd "$1" | cut -d: -f6)
[ -d "$home" ] || install -d -m 0750 -o "$1" -g "$(id -gn "$1")" -- "$home"
runuser -u "$1" -- test -w "$home" -a -x "$home" || {
    echo "$1 may not write into its home $home, which belongs to $(stat -c %U -- "$home")" >&2
    exit 1
}
exec runuser -u "$1" -- sh -euc '
umask 077
cd -- "$1"
mkdir -p .ssh
new=$(mktemp .ssh/.authorized_keys.XXXXXX)
trap "rm -f -- $new" EXIT
[ ! -f .ssh/authorized_keys ] || sed "\$a\\" .ssh/authorized_keys >"$new"
printf "%s\n" "$2" >>"$new"
mv -f -- "$new" .ssh/authorized_keys
trap - EXIT
' sh "$home" "$2"
"""

# $1 user, $2 directory
MAKE_RUN_DIR: Final = r"""
set -eu
[ ! -L "$2" ] || { echo "$2 is a symbolic link" >&2; exit 1; }
install -d -m 0700 -o "$1" -g "$(id -gn "$1")" -- "$2"
"""

# $1 path, $2 mode, $3 whose group, $4 length; the content comes in. It is on the disk before the name says so.
PUT_FILE: Final = r"""
set -eu
umask 077
mkdir -p -m 0755 -- "$(dirname -- "$1")"
new=$(mktemp -- "$1.XXXXXX")
trap 'rm -f -- "$new"' EXIT
cat >"$new"
[ "$(wc -c <"$new")" -eq "$4" ] || { echo "the content arrived in part only" >&2; exit 1; }
chown -- "root:$(id -gn -- "$3")" "$new" && chmod -- "$2" "$new"
sync -- "$new" && mv -f -- "$new" "$1"
trap - EXIT
"""

# $1 offset of this piece; prints the length so far. In root's own directory: nobody can put another file in the way.
UPLOAD: Final = r"""
set -eu
umask 077
mkdir -p -m 0755 -- /var/lib/qmp-migrate-setup
cd /var/lib/qmp-migrate-setup
[ "$1" -ne 0 ] || : >package.deb
[ "$(wc -c <package.deb)" -eq "$1" ] || { echo "another setup of this host is at work" >&2; exit 1; }
cat >>package.deb
wc -c <package.deb
"""

# $1 SHA-256
INSTALL: Final = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
cd /var/lib/qmp-migrate-setup
trap 'rm -f /var/lib/qmp-migrate-setup/package.deb' EXIT
echo "$1  package.deb" | sha256sum --check --quiet --status || { echo "the package was damaged on its way" >&2; exit 1; }
chmod 0644 package.deb
apt-get install --yes --quiet --no-install-recommends --allow-downgrades --reinstall -o DPkg::Lock::Timeout=60 \
    -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root ./package.deb </dev/null
echo "$1" >/var/lib/qmp-migrate-setup/package.sha256
"""

START: Final = rf"""
set -eu
systemctl daemon-reload
systemctl enable --quiet {AGENT}
systemctl reset-failed {AGENT} 2>/dev/null || :
systemctl restart {AGENT} || {{ journalctl -u {AGENT} -n 8 -o cat --no-pager >&2 || :; exit 1; }}
"""


def machine(output: str, host: str) -> Machine:
    """Read what :data:`LOOK` has printed.

    Raises:
        RemoteError: It did not run to its end, or not as root.
    """
    facts: dict[str, str] = {}
    files: dict[str, tuple[str, str, str]] = {}
    for line in output.splitlines():
        name, _, value = line.partition(" ")
        if name == "file":
            words = value.split(" ", 3)
            if len(words) == 4:
                files[words[3]] = (words[0], words[1], words[2])
        else:
            facts[name] = value.strip()
    if facts.get("uid") != "0":
        raise RemoteError(
            f"not root there, but user {facts.get('uid', 'unknown')}",
            hint="--login a user that is root, or may use sudo without a password",
            host=host,
        )
    return Machine(facts, files)
