#: $1 path, $2 offset, $3 limit.
#: relay: record or log of a guest, number, number
[ -d "$1" ] && { echo "is a directory" >&2; exit 1; }
exec <"$1" || exit 1
if [ "$2" -gt 0 ]; then tail -c "+$(($2 + 1))"; else cat; fi | head -c "$3"
