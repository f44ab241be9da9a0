#: $1 stamp (device:inode:size, "" for unknown), $2… files. For each: "ours", "other" or "absent". "ours" is on the disk.
stamp=$1
shift
for file do
    dir=$(dirname -- "$file")
    [ -d "$dir" ] && [ -x "$dir" ] || { echo "$dir is not there" >&2; exit 1; }
    if [ ! -e "$file" ]; then echo absent
    elif [ -n "$stamp" ] && [ "$(stat -c %d:%i:%s -- "$file")" != "$stamp" ]; then echo other
    else sync -- "$file" "$dir" && echo ours || exit 1
    fi
done
