#: $1 user, $2 directory
set -eu
[ ! -L "$2" ] || { echo "$2 is a symbolic link" >&2; exit 1; }
install -d -m 0700 -o "$1" -g "$(id -gn "$1")" -- "$2"
