#: $1 directory. Prints "none", "gone PID START BOOT", or "live PID START BOOT".
#: relay: guest's directory
#: include processes/state_of
reachable "$1/pid" || exit 1
[ -e "$1/pid" ] || { echo none; exit 0; }
record "$1/pid" || exit 1
found=$(same "$pid" "$start" "$boot") || exit 1
echo "$found $pid $start $boot"
