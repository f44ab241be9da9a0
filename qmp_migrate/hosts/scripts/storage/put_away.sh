#: $1 rename or remove, $2 migration; then for each image its path and its identity. Says what is not there any more.
how=$1 id=$2
shift 2
while [ $# -gt 0 ]; do
    if [ -f "$1" ] && [ ! -L "$1" ] && [ "$(stat -c '%d:%i' -- "$1")" = "$2" ]; then
        if [ "$how" = remove ]; then rm -f -- "$1" || exit 1
        else
            mv -nT -- "$1" "$1.migrated-$id" && [ ! -e "$1" ] || { echo "$1 could not be renamed" >&2; exit 1; }
        fi
    fi
    shift 2
done
