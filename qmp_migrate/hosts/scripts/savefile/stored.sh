#: $1 file. The bytes that it takes on the disk.
echo $(($(stat -c %b -- "$1") * 512))
