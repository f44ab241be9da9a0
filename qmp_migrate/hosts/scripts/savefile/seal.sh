#: $1 part, $2 its whole size in the end; document and footer arrive on standard input. Prints device, inode and size.
cat >>"$1" || exit 1
[ "$(stat -c %s -- "$1")" -eq "$2" ] || { echo "$1 was not written as a whole" >&2; exit 1; }
sync -- "$1" || exit 1
stat -c %d:%i:%s -- "$1"
