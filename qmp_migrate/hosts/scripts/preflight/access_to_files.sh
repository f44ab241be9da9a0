#: $1… files. For each: "absent", "unreadable", "readable" or "writable".
#: relay: file for a guest, *
for path do
    if [ ! -e "$path" ]; then echo absent
    elif [ ! -r "$path" ]; then echo unreadable
    elif [ ! -w "$path" ]; then echo readable
    else echo writable
    fi
done
