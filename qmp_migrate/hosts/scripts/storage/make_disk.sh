#: $1 path  $2 format  $3 bytes  $4 qemu-img beside the QEMU binary
set -eu
[ -e "$1" ] && exit 0
img=$4; [ -x "$img" ] || img=qemu-img
umask 077
"$img" create -q -f "$2" -- "$1" "$3"
