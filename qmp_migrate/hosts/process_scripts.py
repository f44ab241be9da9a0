"""The shell scripts behind :mod:`qmp_migrate.hosts.process`.

They answer with one line ``WORD …`` on standard output and exit status 0; any other status means that the question could
not be answered. A process is *this* process when its pid, its start time and the boot id of its machine are the same
(DESIGN rule 5): a pid alone is given to somebody else sooner or later.
"""

from __future__ import annotations

# state_of PID: prints "none" (nobody alive has it) or "live START_TIME"; fails where nothing can be proven.
#
# /proc/PID/stat is "PID (NAME) STATE PPID …"; NAME may hold spaces and parentheses, so it is cut off at the last one.
# Then field 1 is the state, 18 the number of threads, 20 the start time in clock ticks since boot. A zombie is dead,
# unless other threads of it still end: a vCPU thread stuck in the kernel may yet write to the disk.
STATE_OF = r"""
state_of() {
    for attempt in 1 2 3; do
        stat=
        { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null
        if [ -n "$stat" ]; then
            fields=${stat##*) }
            set -f; set -- $fields; set +f
            case $1 in
            [ZXx]) if [ "${18}" -le 1 ]; then echo "none"; else echo "live ${20}"; fi ;;
            *) echo "live ${20}" ;;
            esac
            return 0
        fi
        # Absent is a proof only where others can be seen at all: not without /proc, nor with it mounted hidepid=.
        if [ ! -e "/proc/$1" ] && [ -e /proc/1/stat ]; then echo "none"; return 0; fi
    done
    echo "/proc does not show whether process $1 exists (mounted with hidepid?)" >&2
    return 1
}
# same PID START_TIME BOOT_ID: "live" or "gone".
same() {
    IFS= read -r boot </proc/sys/kernel/random/boot_id || return 1
    if [ "$boot" != "$3" ]; then echo gone; return 0; fi
    state=$(state_of "$1") || return 1
    if [ "$state" = "live $2" ]; then echo live; else echo gone; fi
}
# record FILE: sets $pid, $start and $boot from a pid file. A damaged one proves nothing, least of all that nobody lives.
record() {
    pid= start= boot=
    read -r pid start boot rest <"$1"
    case $pid$start in
    *[!0-9]*) boot= ;;
    esac
    if [ -z "$pid" ] || [ -z "$start" ] || [ -z "$boot" ]; then
        echo "$1 is damaged: remove it when you know that the process it named is gone" >&2
        return 1
    fi
}
# reachable PATH: succeeds where an absent PATH is really absent, not only hidden behind a directory that is closed to us.
reachable() {
    above=$1
    if [ -e "$1" ]; then return 0; fi
    while [ ! -e "$above" ]; do above=$(dirname -- "$above"); done
    if [ -d "$above" ] && [ -x "$above" ]; then return 0; fi
    echo "cannot look into $above" >&2
    return 1
}
# clock: sets $now to the hundredths of a second since boot, without starting a process.
clock() { read -r up rest </proc/uptime && now=${up%.*}${up#*.}; }
# wait_gone PID START_TIME BOOT_ID HUNDREDTHS: "live" or "gone".
wait_gone() {
    clock || return 1
    begin=$now pause=0.02
    while :; do
        found=$(same "$1" "$2" "$3") || return 1
        clock
        if [ "$found" = gone ] || [ $((now - begin)) -ge "$4" ]; then echo "$found"; return 0; fi
        if [ $((now - begin)) -gt 100 ]; then pause=0.1; fi
        sleep "$pause"
    done
}
"""

#: $1 pid, $2 start time, $3 boot id.
IS_ALIVE = (
    STATE_OF
    + r"""
same "$1" "$2" "$3"
"""
)

#: $1 pid, $2 start time, $3 boot id, $4 hundredths of a second.
WAIT_GONE = (
    STATE_OF
    + r"""
wait_gone "$1" "$2" "$3" "$4"
"""
)

_END = r"""
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
"""

#: $1 pid, $2 start time, $3 boot id, $4 hundredths of a second, $5 signal. The identity is proven right before.
#:
#: Gone is not enough for whoever opens its images next: the kernel finishes what was under way with io_uring on its own, and
#: the locks last as long as that (seen: 0.7 s), or as long as a child that has inherited a file. It is waited for, but proves
#: nothing: others may hold the same locks on the same file, so there is a limit.
KILL = STATE_OF + _END

#: As `KILL`, but only where the process holds nothing open any more to which a guest's data may still be on its way; else
#: "holds" and what it is. Images are open for reading and writing (logs for writing only), or reached through a socket that
#: the process has connected itself: of its own ones the listening ones, and what has come to them, may stay.
KILL_CLOSED = (
    STATE_OF
    + r"""
# passive PID: the inodes of its sockets that wait for others, and of those that others have connected to.
passive() {
    while read -r number count protocol flags kind state inode path; do
        case $flags,$path in 00010000,* | *,?*) printf ' %s ' "$inode" ;; esac
    done <"/proc/$1/net/unix"
    for version in tcp tcp6; do
        while read -r number from to state queues timer again uid wait inode rest; do
            if [ "$state" = 0A ]; then printf ' %s ' "$inode"; fi
        done <"/proc/$1/net/$version"
    done
}
# holds PID: prints what is open, nothing where all is closed.
holds() {
    if [ ! -r "/proc/$1/fd" ] || [ ! -e "/proc/$1/fd/0" ]; then echo "files that cannot be seen from here"; return; fi
    passive=$(passive "$1" 2>/dev/null)
    for file in "/proc/$1/fd/"*; do
        fd=${file##*/}
        link=$(readlink "$file") || continue  # closed meanwhile
        case $link in
        socket:*)
            inode=${link#*\[} inode=${inode%]}
            case $passive in *" $inode "*) continue ;; esac
            if [ "$fd" -gt 2 ]; then echo "a connection to a server"; return; fi ;;
        "/memfd:"*) ;;
        *)
            if [ ! -f "$file" ] && [ ! -b "$file" ]; then continue; fi
            flags=$(sed -n 's/^flags:[^0-9]*//p' "/proc/$1/fdinfo/$fd" 2>/dev/null)
            case $flags in *[26]) printf '%s\n' "$link"; return ;; esac ;;
        esac
    done
}
found=$(same "$1" "$2" "$3") || exit 1
if [ "$found" = gone ]; then echo gone; exit 0; fi
held=$(holds "$1")
found=$(same "$1" "$2" "$3") || exit 1
if [ "$found" = live ] && [ -n "$held" ]; then printf 'holds %s\n' "$held"; exit 0; fi
"""
    + _END
)

#: $1 directory. Prints "none", "gone PID START BOOT", or "live PID START BOOT".
IDENTIFY = (
    STATE_OF
    + r"""
reachable "$1/pid" || exit 1
[ -e "$1/pid" ] || { echo none; exit 0; }
record "$1/pid" || exit 1
found=$(same "$pid" "$start" "$boot") || exit 1
echo "$found $pid $start $boot"
"""
)

#: $1 directory, $2 hundredths of a second, $3 the file that appears when it is ready, $4 log file,
#: $5 length of argv.json on standard input, $6… argv.
#: Answers: "live PID START BOOT" · "exists PID" · "starting" (another launch is under way there)
#: · "died STATUS" or "stuck" followed by what the process wrote to the log.
LAUNCH = (
    STATE_OF
    + r"""
umask 077
dir=$1 limit=$2 ready=$3 log=$4 length=$5
shift 5
made=
if [ ! -d "$dir" ]; then mkdir -p -- "$dir" || exit 1; made=yes; fi
cd -- "$dir" && chmod 700 . || exit 1
exec 9<. || exit 1
flock -n 9 || { echo starting; exit 0; }
if [ -e pid ]; then
    record pid || exit 1
    found=$(same "$pid" "$start" "$boot") || exit 1
    if [ "$found" = live ]; then echo "exists $pid"; exit 0; fi
fi
tidy() {
    rm -f pid pid.new agent.sock "$ready"
    if [ -n "$made" ]; then rm -f argv.json "$log" serial.log && cd / && rmdir -- "$dir"; fi
}
cat >argv.json
[ "$(wc -c <argv.json)" -eq "$length" ] || { tidy; echo "argv.json arrived in part only" >&2; exit 1; }
rm -f pid agent.sock "$ready"
: >>"$log"
begun=$(wc -c <"$log")
# The child writes down who it is before it becomes QEMU: no QEMU is ever without a record, whatever dies when.
# setsid keeps the pid (the child leads no group), and frees QEMU from the end of the SSH session.
setsid sh -c '
    IFS= read -r stat </proc/self/stat && IFS= read -r boot </proc/sys/kernel/random/boot_id || exit 125
    fields=${stat##*) }
    set -f; start=$(set -- $fields; echo "${20}"); set +f
    echo "$$ $start $boot" >pid.new && mv -f pid.new pid || exit 125
    exec "$@"
' sh "$@" </dev/null >>"$log" 2>&1 9<&- &
child=$!
# A socket is there a moment before anybody listens at it: whoever connected then would be refused. Others of the machine may
# be bound by the same relative name, so none of that name may be in between. Where /proc does not tell, a second is enough.
listens() {
    if [ ! -S "$ready" ]; then return 0; fi
    since=${since:-$now} found=
    while read -r number count protocol flags kind state inode path; do
        case $state$flags$path in
        0100000000"$ready" | 0100000000*/"${dir##*/}/$ready") found=; break ;;
        0100010000"$ready" | 0100010000*/"${dir##*/}/$ready") found=yes ;;
        esac
    done </proc/net/unix
    [ -n "$found" ] || [ $((now - since)) -ge 100 ]
}
since=
clock
begin=$now
while :; do
    clock
    if [ -e "$ready" ] && [ -e pid ] && listens; then
        record pid
        if [ "$pid" = "$child" ] && [ "$(same "$pid" "$start" "$boot")" = live ]; then
            echo "live $pid $start $boot"
            exit 0
        fi
    fi
    # "none" for a zombie as well: it is our child, so nobody else can have its pid yet.
    if [ "$(state_of "$child")" = none ]; then
        wait "$child"
        echo "died $?"
        break
    fi
    if [ $((now - begin)) -ge "$limit" ]; then
        kill -KILL "$child"
        wait "$child" 2>/dev/null
        echo stuck
        break
    fi
    sleep 0.02
done
tail -c "+$((begun + 1))" "$log" | tail -c 16384
tidy
"""
)

#: $1 pid. Its command line, in base64.
COMMAND_LINE = 'base64 -w0 "/proc/$1/cmdline"'

#: $1 directory. Removes what a guest left there: files of ours only, never a subdirectory's content. Refuses where a process
#: lives that was started there, or cannot be proven gone.
DISCARD = (
    STATE_OF
    + r"""
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
if [ -e pid ]; then
    record pid || exit 1
    found=$(same "$pid" "$start" "$boot") || exit 1
    if [ "$found" = live ]; then echo "process $pid lives in $1" >&2; exit 1; fi
fi
set -e
clean() {
    rm -f -- qmp.sock agent.sock pid argv.json cwd qemu.log serial.log serial.log.1
    rm -f -- saved-state saved-state.whole saved-state.torn
    rm -f -- ./tls-*/keys.psk ./tls-*/keys.psk.* ./tls-*/dh-params.pem
    for d in ./tls-*; do if [ -d "$d" ]; then rmdir -- "$d"; fi; done
}
clean
cd /
rmdir -- "$1" 2>/dev/null && exit 0
# Something came between: what ends at this moment may still write a last word.
sleep 0.2
cd -- "$1" || exit 0
clean
cd /
rmdir -- "$1" 2>/dev/null || { echo "$1 holds what is not ours: $(ls -A -- "$1" | tr '\n' ' ')" >&2; exit 1; }
"""
)

#: $1 run directory. One line "NAME live|gone PID START BOOT" for each guest in it; one that is only defined is "gone 0 0 -".
LIST = (
    STATE_OF
    + r"""
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
"""
)
