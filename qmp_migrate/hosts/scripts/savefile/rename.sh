#: $1 from, $2 to. Never over a file that is there.
[ -f "$1" ] || { echo "$1 is not there" >&2; exit 1; }
[ ! -e "$2" ] && [ ! -L "$2" ] || { echo "$2 is there already" >&2; exit 1; }
mv -n -T -- "$1" "$2" && [ ! -e "$1" ] || { echo "$1 could not be renamed" >&2; exit 1; }
sync -- "$(dirname -- "$2")"
