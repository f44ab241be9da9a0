#: $1 file, $2 bytes of the state, $3 bytes of a chunk, $4 the digest of a chunk of zeros. Prints the checksum.
#: Each chunk's reader tells its exit status on a line of its own: a read error must not pass for a short chunk.
chunks=$((($2 + $3 - 1) / $3))
sums=$(seq 0 "$((chunks - 1))" | xargs -P "$(nproc)" -n 1 sh -c '
    file=$1 whole=$2 size=$3 zero=$4 index=$5
    at=$((index * size)) count=$size
    [ $((at + count)) -le "$whole" ] || count=$((whole - at))
    if [ "$count" -eq "$size" ] && cmp -s -n "$size" -i "$at:0" -- "$file" /dev/zero 2>/dev/null; then
        echo "$index $zero"
        exit 0
    fi
    exec 4>&1
    status=$({ { dd if="$file" bs=1M skip="$at" count="$count" iflag=fullblock,skip_bytes,count_bytes status=none; \
        echo "$?" >&3; } | sha256sum | { read -r digest rest; echo "$index $digest" >&4; }; } 3>&1)
    [ "$status" = 0 ] || exit 255
' sh "$1" "$2" "$3" "$4") || { echo "$1 cannot be read back" >&2; exit 1; }
[ "$(printf "%s\n" "$sums" | wc -l)" -eq "$chunks" ] || { echo "$1 cannot be read back" >&2; exit 1; }
sum=$(printf "%s\n" "$sums" | sort -n | sha256sum)
