#: For each path one line of words: kind size identity mode readable writable link blank fs-type fs-id free above-writable
#: number-of-missing; then one line for each missing directory, outermost first.
export LC_ALL=C
yes_if() { if "$@"; then echo yes; else echo no; fi; }
zeros() { [ "$(tr -d '\0' | head -c 1 | wc -c)" -eq 0 ]; }
for path do
    kind=absent size=0 identity=- mode=600 blank=no
    if [ -b "$path" ]; then
        kind=block
        set -- $(stat -L -c '%d:%i %a 0x%t 0x%T' -- "$path")
        identity=$1 mode=$2
        IFS= read -r sectors <"/sys/dev/block/$(($3)):$(($4))/size" && size=$((sectors * 512))
        if [ -r "$path" ] && head -c 1048576 -- "$path" | zeros && tail -c 1048576 -- "$path" | zeros; then blank=yes; fi
    elif [ -f "$path" ]; then
        kind=file
        set -- $(stat -L -c '%s %d:%i %a' -- "$path")
        size=$1 identity=$2 mode=$3
    elif [ -e "$path" ] || [ -L "$path" ]; then
        kind=other
    fi
    above=$(dirname -- "$path") missing= count=0
    while [ ! -e "$above" ]; do
        missing="$above
$missing" count=$((count + 1)) above=$(dirname -- "$above")
    done
    place=$above
    [ "$kind" = absent ] || place=$path
    set -- $(stat -f -c '%T %i %S %a' -- "$place")
    echo "$kind $size $identity $mode $(yes_if test -r "$path") $(yes_if test -w "$path") $(yes_if test -L "$path")" \
        "$blank $1 $2 $(($3 * $4)) $(yes_if test -d "$above" -a -w "$above" -a -x "$above") $count"
    [ "$count" -eq 0 ] || printf '%s' "$missing"
done
