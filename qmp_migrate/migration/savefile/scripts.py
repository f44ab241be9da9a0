"""What is done to a state file on its host: short shell scripts of ours. The path that a person gave is always a word of its
own (``"$1"``), never a part of a script, and never a part of anything that QEMU is told: QEMU is given `link_path`.
"""

from __future__ import annotations

import re
from typing import Final

from qmp_migrate.errors import UsageError

LINK: Final = "saved-state"
"""Name in ``RUN_DIR/NAME`` of the symbolic link under which QEMU opens the file, and of its marks ``.whole``, ``.torn``."""

_PLAIN: Final = re.compile(r"/[A-Za-z0-9/._+@-]*")


def link_path(directory: str, host: str) -> str:
    """Return the path that QEMU is told to write to or to read from.

    It stands in a QMP URI, and with QEMU 7.2 in a shell line: so it is made of ``RUN_DIR``, the guest's validated name and a
    word of ours, and even these are checked for characters that mean something to either.

    Args:
        directory: ``RUN_DIR/NAME``.
        host: For the error.

    Raises:
        UsageError: ``RUN_DIR`` has such a character.
    """
    path = f"{directory}/{LINK}"
    if not _PLAIN.fullmatch(path):
        raise UsageError(
            f"{directory} has characters that cannot be named to QEMU as a file",
            hint="set a run_dir of letters, digits and / . _ + @ - for that host",
            host=host,
        )
    return path


def write_uri(link: str, *, file_uri: bool) -> str:
    """Return the URI with which QEMU writes to `link_path`.

    QEMU before 8.2 has no ``file:``. It ends the process behind ``exec:`` with SIGTERM and, 10 ms later, with SIGKILL as soon
    as it has written the last byte into the pipe, whether that process has written it to the disk or not. So the process
    that it knows ignores the first and may lose its life to the second, while the one that writes is another one; whether
    that one has got everything onto the disk is told by a mark, and nothing counts as written without it.

    Args:
        link: `link_path`, checked there.
        file_uri: This QEMU knows ``file:``.
    """
    if file_uri:
        return f"file:{link}"
    return f'exec:trap "" TERM; (if cat >{link}; then : >{link}.whole; else : >{link}.torn; fi); :'


def read_uri(link: str, *, file_uri: bool, state_bytes: int) -> str:
    """Return the URI with which QEMU reads from `link_path`, the state only."""
    return f"file:{link}" if file_uri else f"exec:head -c {state_bytes:d} {link}"


# $1 file, $2 part. Prints: "exists" or "free", bytes free there, "direct" or "cached", and the directory's real path.
PLACE: Final = """
export LC_ALL=C
dir=$(dirname -- "$1")
[ -d "$dir" ] || { echo "$dir is not there" >&2; exit 1; }
[ -w "$dir" ] && [ -x "$dir" ] || { echo "$dir cannot be written to by $(id -un)" >&2; exit 1; }
if [ -e "$1" ] || [ -L "$1" ]; then state=exists; else state=free; fi
free=$(df -B1 --output=avail -- "$dir" | tail -n 1)
umask 077
if dd if=/dev/zero of="$2.probe" bs=4096 count=1 oflag=direct conv=excl 2>/dev/null; then how=direct; else how=cached; fi
rm -f -- "$2.probe"
echo "$state $free $how"
"""

# $1 part, $2 link. A new, empty, private file, and the name that QEMU gets for it.
BEGIN: Final = """
set -euC
umask 077
: >"$1"
rm -f -- "$2" "$2.whole" "$2.torn"
ln -s -- "$1" "$2"
"""

# $1 link, $2 tenths of a second. Waits for the mark that the writer behind `exec:` leaves.
WHOLE: Final = """
left=$2
while [ ! -e "$1.whole" ]; do
    [ ! -e "$1.torn" ] || { echo "the state could not be written" >&2; exit 1; }
    [ "$left" -gt 0 ] || { echo "the writer did not end" >&2; exit 1; }
    left=$((left - 1))
    sleep 0.1
done
"""

# $1 file, $2 bytes of the state, $3 bytes of a chunk, $4 the digest of a chunk of zeros. Prints the checksum.
# Each chunk's reader tells its exit status on a line of its own: a read error must not pass for a short chunk.
_SUM: Final = """
chunks=$((($2 + $3 - 1) / $3))
sums=$(seq 0 "$((chunks - 1))" | xargs -P "$(nproc)" -n 1 sh -c '
    file=$1 whole=$2 size=$3 zero=$4 index=$5
    at=$((index * size)) count=$size
    [ $((at + count)) -le "$whole" ] || count=$((whole - at))
    if [ "$count" -eq "$size" ] && cmp -s -n "$size" -i "$at:0" -- "$file" /dev/zero 2>/dev/null; then
        echo "$index $zero"
        exit 0
    fi
    exec 4>&1
    status=$({ { dd if="$file" bs=1M skip="$at" count="$count" iflag=fullblock,skip_bytes,count_bytes status=none; \\
        echo "$?" >&3; } | sha256sum | { read -r digest rest; echo "$index $digest" >&4; }; } 3>&1)
    [ "$status" = 0 ] || exit 255
' sh "$1" "$2" "$3" "$4") || { echo "$1 cannot be read back" >&2; exit 1; }
[ "$(printf "%s\\n" "$sums" | wc -l)" -eq "$chunks" ] || { echo "$1 cannot be read back" >&2; exit 1; }
sum=$(printf "%s\\n" "$sums" | sort -n | sha256sum)
"""

# $1 file, $2 bytes of the state, $3 bytes of a chunk, $4 the digest of a chunk of zeros. Prints the checksum.
SUM: Final = f'{_SUM}\necho "${{sum%% *}}"\n'

# $1 part, $2 -, $3 and $4 as for SUM. On the disk first, then read back. Prints the state's bytes, its checksum, the seconds.
PROVE: Final = f"""
sync -- "$1" || exit 1
begun=$(date +%s%N)
set -- "$1" "$(stat -c %s -- "$1")" "$3" "$4"
[ "$2" -gt 0 ] || {{ echo "$1 is empty" >&2; exit 1; }}
{_SUM}
echo "$2 ${{sum%% *}} $((($(date +%s%N) - begun) / 1000000))"
"""

# $1 part, $2 the guest's directory, $3 at most so many bytes. Appends the end of its serial log; prints bytes and SHA-256.
CONSOLE: Final = """
before=$(stat -c %s -- "$1") || exit 1
for name in serial.log.1 serial.log; do
    [ ! -f "$2/$name" ] || cat -- "$2/$name"
done | tail -c "$3" >>"$1" || exit 1
sum=$(tail -c "+$((before + 1))" -- "$1" | sha256sum) || exit 1
echo "$(($(stat -c %s -- "$1") - before)) ${sum%% *}"
"""

# $1 part, $2 its whole size in the end; document and footer arrive on standard input. Prints device, inode and size.
SEAL: Final = """
cat >>"$1" || exit 1
[ "$(stat -c %s -- "$1")" -eq "$2" ] || { echo "$1 was not written as a whole" >&2; exit 1; }
sync -- "$1" || exit 1
stat -c %d:%i:%s -- "$1"
"""

# $1 from, $2 to. Never over a file that is there.
RENAME: Final = """
[ -f "$1" ] || { echo "$1 is not there" >&2; exit 1; }
[ ! -e "$2" ] && [ ! -L "$2" ] || { echo "$2 is there already" >&2; exit 1; }
mv -n -T -- "$1" "$2" && [ ! -e "$1" ] || { echo "$1 could not be renamed" >&2; exit 1; }
sync -- "$(dirname -- "$2")"
"""

# $1 stamp (device:inode:size, "" for unknown), $2… files. For each: "ours", "other" or "absent". "ours" is on the disk.
LOOK: Final = """
stamp=$1
shift
for file do
    dir=$(dirname -- "$file")
    [ -d "$dir" ] && [ -x "$dir" ] || { echo "$dir is not there" >&2; exit 1; }
    if [ ! -e "$file" ]; then echo absent
    elif [ -n "$stamp" ] && [ "$(stat -c %d:%i:%s -- "$file")" != "$stamp" ]; then echo other
    else sync -- "$file" "$dir" && echo ours || exit 1
    fi
done
"""

# $1 link, $2… files to remove.
CLEAN: Final = """
link=$1
shift
rm -f -- "$link" "$link.whole" "$link.torn" "$@"
"""

# $1 file, $2 bytes of the footer. Prints device:inode:size, then the footer.
FOOTER: Final = """
[ -f "$1" ] || { echo "$1 is not there" >&2; exit 1; }
stat -L -c %d:%i:%s -- "$1" || exit 1
tail -c "$2" -- "$1"
"""

# $1 file, $2 bytes before the document's end, $3 bytes of the document.
DOCUMENT: Final = 'tail -c "$2" -- "$1" | head -c "$3"'

# $1 file, $2 offset, $3 bytes, $4 the guest's directory, $5 SHA-256. Puts the end of its serial log where it belongs.
TAKE_CONSOLE: Final = """
umask 077
tail -c "+$(($2 + 1))" -- "$1" | head -c "$3" >"$4/serial.log.1" || exit 1
sum=$(sha256sum <"$4/serial.log.1")
[ "${sum%% *}" = "$5" ] || { echo "the serial log in $1 is damaged" >&2; exit 1; }
"""

# $1 file, $2 link.
LINK_TO: Final = 'ln -s -f -n -- "$1" "$2"'
