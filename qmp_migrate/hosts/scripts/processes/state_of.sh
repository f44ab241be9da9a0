#: state_of PID: prints "none" (nobody alive has it) or "live START_TIME"; fails where nothing can be proven.
#:
#: /proc/PID/stat is "PID (NAME) STATE PPID …"; NAME may hold spaces and parentheses, so it is cut off at the last one.
#: Then field 1 is the state, 18 the number of threads, 20 the start time in clock ticks since boot. A zombie is dead,
#: unless other threads of it still end: a vCPU thread stuck in the kernel may yet write to the disk.
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
