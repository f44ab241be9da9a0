#: $1 directory, $2 operation. May be run again.
[ -d "$1" ] || exit 0
rm -f -- "$1/argv.json.$2" && { rmdir -- "$1" 2>/dev/null || :; }
