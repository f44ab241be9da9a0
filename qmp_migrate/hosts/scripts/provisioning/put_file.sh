#: $1 path, $2 mode, $3 whose group, $4 length; the content comes in. It is on the disk before the name says so.
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
