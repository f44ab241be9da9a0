#: $1 path, $2 mode, $3 length of the content, which arrives on standard input.
#: relay: serial log that travels, mode, number
umask 077
[ -d "$1" ] && { echo "is a directory" >&2; exit 1; }
new=$(mktemp -- "$1.XXXXXXXX") || exit 1
trap 'rm -f -- "$new"' EXIT
trap 'exit 1' HUP INT TERM PIPE
chmod -- "$2" "$new" && cat >"$new" || exit 1
# A connection that breaks looks like the end of the content: never put a part in the place of the whole.
[ "$(wc -c <"$new")" -eq "$3" ] || { echo "the content arrived in part only" >&2; exit 1; }
sync -- "$new" && mv -f -- "$new" "$1" || exit 1
trap - EXIT
sync -- "$(dirname -- "$1")"
