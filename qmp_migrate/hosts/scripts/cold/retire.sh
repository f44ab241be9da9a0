#: $1 directory, $2 operation. The source's definition loses its name. May be run again.
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
if [ -e argv.json ] && [ ! -e "argv.json.moved-$2" ]; then mv -T -- argv.json "argv.json.moved-$2" || exit 1; fi
sync -- .
