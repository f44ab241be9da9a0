#: $1 directory, $2 operation. The destination's gets it. May be run again.
cd -- "$1" || exit 1
if [ -e "argv.json.$2" ]; then mv -f -T -- "argv.json.$2" argv.json || exit 1; fi
[ -e argv.json ] || { echo "the definition is not in $1" >&2; exit 1; }
sync -- .
