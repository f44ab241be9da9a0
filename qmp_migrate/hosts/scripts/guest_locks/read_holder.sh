#: $1 lock file. Prints who holds it; nothing where nobody does.
#: relay: lock
[ -e "$1" ] || exit 0
flock -n "$1" true || head -n 1 -- "$1"
