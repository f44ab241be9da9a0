#: $1 file, $2 bytes of the footer. Prints device:inode:size, then the footer.
[ -f "$1" ] || { echo "$1 is not there" >&2; exit 1; }
stat -L -c %d:%i:%s -- "$1" || exit 1
tail -c "$2" -- "$1"
