"""The shell scripts behind :mod:`qmp_migrate.hosts.lock`: what runs on the host.

A lock file holds two lines: who holds it (for people), and ``PID START_TIME`` of the holder (``/proc/PID/stat``, fields
1 and 22), by which :data:`END_HOLDER` finds it.
"""

from __future__ import annotations

# look PID: sets $comm, $state, $parent and $begun from /proc/PID/stat; fails where there is no such process.
#
# connection PID: sets $session and $since to the process that serves the SSH connection which PID lives on, and the time
# that one began; fails where there is none. The nearest sshd above is meant, whatever is between (login shell, timeout):
#
#     OpenSSH < 9.8, user:   sshd (listens) - sshd: user [priv] - sshd: user@notty - shell - holder
#     OpenSSH < 9.8, root:   sshd (listens) - sshd: root@notty - shell - holder
#     OpenSSH >= 9.8:        sshd (listens) - sshd-session: user [priv] - sshd-session: user@notty - shell - holder
#
# It owns all channels of the connection; a [priv] above it ends by itself. It is never the one that listens: an sshd is
# taken for a session only as the child of another sshd, or where its title says so (inetd and socket activation).
#
# end PID START_TIME: SIGTERM, a second later SIGKILL, then waits for as long as it takes: ends only when it is proven
# gone. A zombie has closed everything already. What was visible in /proc before stays so: no uid changes meanwhile.
_PROCESSES = r"""
look() {
    stat=
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    comm=${stat#*(}
    comm=${comm%)*}
    set -f; set -- ${stat##*) }; set +f
    state=$1 parent=$2 begun=${20}
}
connection() {
    next=$1
    while look "$next"; do
        session=$next since=$begun
        case $comm in
        sshd-session) return 0 ;;
        sshd)
            title=
            { IFS= read -r title <"/proc/$next/cmdline"; } 2>/dev/null
            case $title in
            *"[listener]"*) return 1 ;;
            "sshd: "*@*) return 0 ;;
            esac
            look "$parent" && [ "$comm" = sshd ]
            return
            ;;
        esac
        next=$parent
    done
    return 1
}
alive() {
    look "$1" || [ ! -e /proc/self/stat ] || return 1
    [ "$begun" = "$2" ] || return 1
    case $state in [ZXx]) return 1 ;; esac
}
end() {
    tries=0
    while alive "$1" "$2"; do
        if [ "$tries" -eq 0 ]; then kill -TERM "$1"; elif [ "$tries" -ge 20 ]; then kill -KILL "$1"; fi
        tries=$((tries + 1))
        sleep 0.05
    done
}
"""

#: $1 seconds of silence that end it, $2 "connection" where its end by silence is to end the SSH connection as well.
#: Lines in: "lock FD PATH OWNER", "unlock FD PATH ", "beat", tabs between the words. One line answers each.
HOLDER = (
    _PROCESSES
    + r"""
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
"""
)

#: $1 lock file, $2 owner. Ends the holder of a lock whose owner line is $2, and the SSH connection that it lives on.
#: Answers "ended" when both are proven gone (also when they were before), "other" where somebody else holds the lock.
#: Its own connection is never the one: then it ends the holder only.
END_HOLDER = (
    _PROCESSES
    + r"""
owner= pid= start=
{ IFS= read -r owner && read -r pid start; } <"$1"
if [ "$owner" != "$2" ]; then echo other; exit 0; fi
case $pid in ''|*[!0-9]*) echo ended; exit 0 ;; esac
if connection "$$"; then own=$session; else own=; fi
if alive "$pid" "$start"; then
    if connection "$pid" && [ "$session" != "$own" ]; then end "$session" "$since"; fi
    end "$pid" "$start"
fi
echo ended
"""
)
