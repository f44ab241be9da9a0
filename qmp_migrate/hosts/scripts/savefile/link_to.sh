#: $1 file, $2 link.
ln -s -f -n -- "$1" "$2"
