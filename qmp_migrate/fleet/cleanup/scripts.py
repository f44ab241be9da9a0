"""The shell scripts that take leftovers away: each proves once more, on the host and right before, what it acts on."""

from __future__ import annotations

from typing import Final

from qmp_migrate.hosts.process_scripts import STATE_OF

# clean_keys DIRECTORY: removes a migration's key directory; fails, and leaves it, where something else is in it.
_CLEAN_KEYS: Final = r"""
clean_keys() {
    [ -d "$1" ] && [ ! -L "$1" ] || return 1
    rm -f -- "$1/keys.psk" "$1"/keys.psk.???????? "$1/dh-params.pem" "$1"/dh-params.pem.????????
    rmdir -- "$1"
}
"""

#: $1 run directory, $2 guest, $3 name of the key directory.
REMOVE_KEYS: Final = (
    _CLEAN_KEYS
    + r"""
cd -- "$1" && [ -d "./$2" ] && [ ! -L "./$2" ] || exit 1
[ -e "./$2/$3" ] || exit 0
clean_keys "./$2/$3"
"""
)

#: $1 run directory, $2 guest, $3 time stamp. Moves the guest's directory to .quarantine/NAME-STAMP, never over something.
#: Refuses where its QEMU, or any process with its files in the command line or with it as working directory, lives;
#: and where a launch is under way there: that one has the directory locked.
QUARANTINE: Final = (
    STATE_OF
    + _CLEAN_KEYS
    + r"""
umask 077
refuse() { echo "$1" >&2; exit 1; }
cd -P -- "$1" || exit 1
[ -d "./$2" ] && [ ! -L "./$2" ] || refuse "$2 is no directory any more"
[ "$(stat -c %u "./$2")" = "$(id -u)" ] || refuse "$2 belongs to somebody else"
exec 9<"./$2" && flock -n 9 || refuse "a launch is under way in $2"
[ "./$2" -ef /proc/self/fd/9 ] || refuse "$2 has just been replaced"
if [ -e "./$2/pid" ]; then
    record "./$2/pid" || exit 1
    found=$(same "$pid" "$start" "$boot") || exit 1
    [ "$found" = gone ] || refuse "a QEMU lives in $2 (process $pid)"
fi
for cwd in /proc/[0-9]*/cwd; do
    if [ "$cwd" -ef "./$2" ]; then cwd=${cwd%/cwd}; refuse "process ${cwd#/proc/} works in $2"; fi
done
users=$(printf '%s\n' "$1/$2/" | grep -lzF -f - /proc/[0-9]*/cmdline 2>/dev/null)
[ -z "$users" ] || refuse "$2 is named in the command line of a process: "$users
for keys in "./$2"/tls-*; do
    if [ -e "$keys" ]; then clean_keys "$keys"; fi
done
[ ! -L .quarantine ] || refuse ".quarantine is a symbolic link"
mkdir -p .quarantine && [ "$(stat -c %u .quarantine)" = "$(id -u)" ] && chmod 700 .quarantine || exit 1
place=".quarantine/$2-$3"
if [ -e "$place" ] || [ -L "$place" ]; then place="$place-$$"; fi
mv -nT -- "./$2" "$place" && [ ! -e "./$2" ] || refuse "$2 could not be moved"
printf '%s\n' "$place"
"""
)

#: $1 run directory, $2 path below it. The caller has looked at it right before, under the guest's lock.
REMOVE_FILE: Final = r"""
cd -P -- "$1" || exit 1
case $2 in */*) [ ! -L "./${2%%/*}" ] || exit 1 ;; esac
[ -e "./$2" ] || exit 0
[ -f "./$2" ] && [ ! -L "./$2" ] && rm -f -- "./$2"
"""
