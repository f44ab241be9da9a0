#: $1 part, $2 link. A new, empty, private file, and the name that QEMU gets for it.
set -euC
umask 077
: >"$1"
rm -f -- "$2" "$2.whole" "$2.torn"
ln -s -- "$1" "$2"
