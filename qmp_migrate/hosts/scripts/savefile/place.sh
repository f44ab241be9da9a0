#: $1 file, $2 part. Prints: "exists" or "free", bytes free there, "direct" or "cached", and the directory's real path.
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
