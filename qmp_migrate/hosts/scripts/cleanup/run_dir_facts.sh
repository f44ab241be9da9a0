#: $1 run directory. Records that end in NUL, their fields apart by tabs, the free text last:
#:   h UID BOOT_ID NOW · e TYPE UID MTIME PATH · r NAME·pid file's line·/proc/PID/stat · l held|free FILE·owner
#:   p PID UID, then /proc/PID/stat, then the argv in base64: each process that has the run directory in its argv
#: A process's stat is "absent" where it is proven that there is none, and "?" where nothing can be proven (hidepid).
#: relay: run directory
export LC_ALL=C
stat_of() {
    stat=
    case $1 in ''|*[!0-9]*) stat='?'; return ;; esac
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null
    if [ -z "$stat" ]; then
        stat='?'
        if [ ! -e "/proc/$1" ] && [ -e /proc/1/stat ]; then stat=absent; fi
    fi
}
IFS= read -r boot </proc/sys/kernel/random/boot_id || exit 1
printf 'h\t%s\t%s\t%s\000' "$(id -u)" "$boot" "$(date +%s)"
hits=$(grep -lzF -e "$1/" /proc/[0-9]*/cmdline 2>/dev/null)
for cmdline in $hits; do
    pid=${cmdline#/proc/}
    pid=${pid%/cmdline}
    stat_of "$pid"
    printf 'p\t%s\t%s\t%s\t%s\000' "$pid" "$(stat -c %u "/proc/$pid" 2>/dev/null)" \
        "$(base64 -w0 "$cmdline" 2>/dev/null)" "$stat"
done
[ -e "$1" ] || exit 0
cd -- "$1" || exit 1
find . -mindepth 1 -maxdepth 3 -path './.quarantine/*' -prune -o -printf 'e\t%y\t%U\t%T@\t%P\000' 2>/dev/null
for dir in ./*/; do
    dir=${dir%/}
    [ -f "$dir/pid" ] && [ ! -L "$dir/pid" ] && [ ! -L "$dir" ] || continue
    line=
    { IFS= read -r line <"$dir/pid"; } 2>/dev/null
    stat_of "${line%% *}"
    printf 'r\t%s\t%s\t%s\000' "$line" "$stat" "${dir#./}"
done
for lock in ./.locks/*.lock; do
    [ -f "$lock" ] && [ ! -L "$lock" ] || continue
    # Shared: looks of several do not keep each other out.
    held=free owner=
    flock -s -n "$lock" true 2>/dev/null || held=held
    { IFS= read -r owner <"$lock"; } 2>/dev/null
    printf 'l\t%s\t%s\t%s\000' "$held" "$owner" "${lock#./.locks/}"
done
exit 0
