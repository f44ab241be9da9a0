#: $1 part, $2 -, $3 and $4 as for checksum. On the disk first, then read back. Prints the state's bytes, its checksum, the seconds.
sync -- "$1" || exit 1
begun=$(date +%s%N)
set -- "$1" "$(stat -c %s -- "$1")" "$3" "$4"
[ "$2" -gt 0 ] || { echo "$1 is empty" >&2; exit 1; }
#: include savefile/sum
echo "$2 ${sum%% *} $((($(date +%s%N) - begun) / 1000000))"
