#: $1 link, $2… files to remove.
link=$1
shift
rm -f -- "$link" "$link.whole" "$link.torn" "$@"
