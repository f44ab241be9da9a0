#: $1 part, $2 the guest's directory, $3 at most so many bytes. Appends the end of its serial log; prints bytes and SHA-256.
before=$(stat -c %s -- "$1") || exit 1
for name in serial.log.1 serial.log; do
    [ ! -f "$2/$name" ] || cat -- "$2/$name"
done | tail -c "$3" >>"$1" || exit 1
sum=$(tail -c "+$((before + 1))" -- "$1" | sha256sum) || exit 1
echo "$(($(stat -c %s -- "$1") - before)) ${sum%% *}"
