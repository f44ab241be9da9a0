#: $1 migration; then for each image its path, mode, and size ("": QEMU will make it).
id=$1
shift
while [ $# -gt 0 ]; do
    path=$1 mode=$2 size=$3 mark=$1.$id.copying
    shift 3
    mkdir -p -- "$(dirname -- "$path")" || exit 1
    (umask 077 && set -C && : >"$mark") || exit 1
    if chmod -- "$mode" "$mark" && { [ -z "$size" ] || truncate -s "$size" -- "$mark"; } && ln -T -- "$mark" "$path"; then
        continue
    fi
    rm -f -- "$mark"
    exit 1
done
