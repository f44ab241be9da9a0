#: One line per QEMU: PID START_TICKS UID CWD PWD OPEN UNIT RESTART CMDLINE, the words in base64 where anything may be in them.
#: What belongs to another user shows no working directory: then "-" stands there.
read -r boot </proc/sys/kernel/random/boot_id
echo "boot $boot"
for dir in /proc/[0-9]*; do
    IFS= read -r words <"$dir/cmdline" || [ -n "$words" ] || continue
    case $words in *qemu-system-*|*qemu-kvm*|*/kvm*|kvm*) ;; *) continue ;; esac
    pid=${dir#/proc/}
    [ "$pid" != "$$" ] || continue
    { IFS= read -r stat <"$dir/stat"; } 2>/dev/null || continue
    set -f; set -- ${stat##*) }; set +f
    case $1 in [ZXx]) continue ;; esac
    start=${20}
    uid=$(stat -c %u "$dir" 2>/dev/null) || continue
    cwd=$(readlink "$dir/cwd" 2>/dev/null | base64 -w0)
    pwd=$(tr '\0' '\n' <"$dir/environ" 2>/dev/null | sed -n 's/^PWD=//p' | head -n 1 | base64 -w0)
    open=$(readlink "$dir"/fd/* 2>/dev/null | grep '^/' | base64 -w0)
    unit=- restart=-
    while IFS= read -r line; do
        case $line in 0::*.service) unit=${line##*/} ;; esac
    done <"$dir/cgroup"
    if [ "$unit" != - ] && command -v systemctl >/dev/null; then
        restart=$(systemctl show -p Restart --value -- "$unit" 2>/dev/null) || restart=-
    fi
    echo "qemu $pid $start $uid ${cwd:--} ${pwd:--} ${open:--} $unit ${restart:--} $(base64 -w0 "$dir/cmdline" 2>/dev/null)"
done
