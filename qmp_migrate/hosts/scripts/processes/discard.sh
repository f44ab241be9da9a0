#: $1 directory. Removes what a guest left there: files of ours only, never a subdirectory's content. Refuses where a process
#: lives that was started there, or cannot be proven gone.
#: relay: guest's directory
#: include processes/state_of
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
