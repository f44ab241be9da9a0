#: $1 directory, $2 operation.
[ -d "$1" ] || exit 0
rm -f -- "$1/argv.json.moved-$2"
