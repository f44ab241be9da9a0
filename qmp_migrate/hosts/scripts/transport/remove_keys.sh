#: $1 directory of the keys, $2 and $3 the files in it. Removes all three.
#: relay: file of a guest, word, word
[ -d "$1" ] || exit 0
cd -- "$1" && rm -f -- "$2" "$3" && cd / && rmdir -- "$1"
