#: $1 link, $2 tenths of a second. Waits for the mark that the writer behind `exec:` leaves.
left=$2
while [ ! -e "$1.whole" ]; do
    [ ! -e "$1.torn" ] || { echo "the state could not be written" >&2; exit 1; }
    [ "$left" -gt 0 ] || { echo "the writer did not end" >&2; exit 1; }
    left=$((left - 1))
    sleep 0.1
done
