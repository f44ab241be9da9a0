#: $1 directory, $2 hundredths of a second, $3 the file that appears when it is ready, $4 log file,
#: $5 length of argv.json on standard input, $6… argv.
#: Answers: "live PID START BOOT" · "exists PID" · "starting" (another launch is under way there)
#: · "died STATUS" or "stuck" followed by what the process wrote to the log.
#: relay: guest's directory, number, word, word, number, argv
#: include processes/state_of
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
