#: For each path: kind, size, time of the last write (nanoseconds), inode, device.
#: relay: image, *
for path do
    if [ ! -e "$path" ]; then echo "absent 0 0 0 0"; continue; fi
    if [ -f "$path" ]; then kind=file; elif [ -b "$path" ]; then kind=block; else kind=other; fi
    echo "$kind $(stat -L -c '%s %.9Y %i %d' -- "$path")" || exit 1
done
