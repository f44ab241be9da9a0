#: $1 file, $2 bytes before the document's end, $3 bytes of the document.
tail -c "$2" -- "$1" | head -c "$3"
