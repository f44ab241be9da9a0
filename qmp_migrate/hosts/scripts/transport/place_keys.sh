#: $1 directory, $2 key file, $3 group file, $4 bytes of the key on standard input; what follows is the group.
#: relay: file of a guest, word, word, number
set -eu
umask 077
mkdir -p -- "$1"
cd -- "$1"
head -c "$4" >"$2"
[ "$(wc -c <"$2")" -eq "$4" ] || { echo "the key arrived in part only" >&2; exit 1; }
cat >"$3"
[ -s "$3" ] || rm -f -- "$3"
