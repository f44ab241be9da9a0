#: $1 directory, $2 operation; the definition arrives on standard input.
umask 077
mkdir -p -- "$1" && cat >"$1/argv.json.$2" && sync -- "$1/argv.json.$2" "$1"
