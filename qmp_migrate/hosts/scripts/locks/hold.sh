#: $1 seconds of silence that end it, $2 "connection" where its end by silence is to end the SSH connection as well.
#: Lines in: "lock FD PATH OWNER", "unlock FD PATH ", "beat", tabs between the words. One line answers each.
#: relay: number, scope of locks
#: include locks/connections
umask 077
exec 2>/dev/null
lease=$1 scope=$2
tab=$(printf '\t')
look "$$"
me="$$ $begun"
same() { [ "$path" -ef "/proc/self/fd/$fd" ]; }
shut() { eval "exec $fd>&-; held_$fd="; }
# who: sets $found to the owner line; fails where the file does not name a holder that lives. Then it is of before, was
# just released, or is just being written.
who() {
    for glance in 1 2 3 4; do
        found= pid= start=
        { IFS= read -r found && read -r pid start; } <"$path"
        if [ -n "$pid" ] && alive "$pid" "$start"; then return 0; fi
        [ -e "$path" ] || return 1
        sleep 0.05
    done
    return 1
}
take() {
    for attempt in 1 2 3 4 5; do
        if ! eval "command exec $fd>>\"\$path\""; then echo "error cannot open"; return; fi
        if ! flock -n "$fd"; then
            shut
            if who || [ "$attempt" -eq 5 ]; then printf 'busy %s\n' "$found"; return; fi
            continue
        fi
        if same; then
            printf '%s\n%s\n' "$owner" "$me" >"$path"
            eval "held_$fd=\$path"
            live
            echo ok
            return
        fi
        shut
    done
    echo "error the lock file is being replaced all the time"
}
drop() {
    if same; then
        case $path in *.lock) rm -f -- "${path%.lock}.beat" "${path%.lock}.beat.new" "$path" ;; *) rm -f -- "$path" ;; esac
    fi
    shut
    live
    echo ok
}
# A sign of life came: say so beside every lock. Renamed into place, so that a reader sees the old or the new one.
live() {
    read -r up rest </proc/uptime
    for held in "$held_3" "$held_4" "$held_5" "$held_6" "$held_7" "$held_8" "$held_9"; do
        case $held in
        *.lock)
            held=${held%.lock}
            printf '%s\n' "$up" >"$held.beat.new" && mv -f -- "$held.beat.new" "$held.beat"
            ;;
        esac
    done
}
for need in flock timeout; do
    command -v "$need" >/dev/null || { echo "error $need(1) is not installed (packages util-linux, coreutils)"; exit 1; }
done
echo ready
while
    line=$(
        exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-  # this child must not keep the locks of a killed holder
        exec timeout "$lease" sh -c 'IFS= read -r line && printf "%s\n" "$line"'
    )
    status=$?
    [ "$status" -eq 0 ]
do
    IFS=$tab read -r verb fd path owner <<END
$line
END
    case $verb in
    lock) take ;;
    unlock) drop ;;
    beat) live; echo ok ;;
    esac
done
# 1: the end of the input. 124: silence. The locks are still held: nobody gets one before the connection has ended.
if [ "$status" -eq 124 ] && [ "$scope" = connection ] && connection "$$"; then
    trap '' HUP TERM PIPE
    end "$session" "$since"
fi
