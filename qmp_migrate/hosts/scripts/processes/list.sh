#: $1 run directory. One line "NAME live|gone PID START BOOT" for each guest in it; one that is only defined is "gone 0 0 -".
#: relay: run directory
#: include processes/state_of
reachable "$1" || exit 1
[ -d "$1" ] || exit 0
cd -- "$1" && [ -r . ] || exit 1
for dir in */; do
    name=${dir%/}
    [ ! -L "$name" ] || continue
    if [ ! -e "$name/pid" ]; then
        # A guest that was never started here; not one that is being launched at this moment.
        if [ -e "$name/argv.json" ] && flock -n "$name" true; then echo "$name gone 0 0 -"; fi
        continue
    fi
    record "$name/pid" || exit 1
    found=$(same "$pid" "$start" "$boot") || exit 1
    echo "$name $found $pid $start $boot"
done
