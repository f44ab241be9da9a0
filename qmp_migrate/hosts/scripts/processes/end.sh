#: Part of kill and kill_closed, with their arguments: sends the signal and waits. Prints "gone" or "live".
found=$(same "$1" "$2" "$3") || exit 1
if [ "$found" = gone ]; then echo gone; exit 0; fi
locks=$(sed -n 's/^lock:[^0-9]*[0-9]*: \(OFDLCK .*\)/\1/p' "/proc/$1/fdinfo/"* 2>/dev/null)
held() { sed 's/^[0-9]*: //' /proc/locks | grep -cxF -e "$locks"; }
if [ -n "$locks" ]; then others=$(($(held) - $(printf '%s\n' "$locks" | wc -l))); fi
kill -s "$5" "$1" || {
    found=$(same "$1" "$2" "$3") && [ "$found" = gone ] || exit 1  # it lives: we may not send it signals
}
found=$(wait_gone "$1" "$2" "$3" "$4") || exit 1
if [ "$found" = gone ] && [ -n "$locks" ]; then
    tries=0
    while [ "$(held)" -gt "$others" ] && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
fi
echo "$found"
