#: $1 run directory, $2 qemu. One line "KEY VALUE" for each fact.
#: relay: run directory, QEMU
export LC_ALL=C
echo "now $(date +%s.%N)"
for tool in flock timeout setsid find base64; do command -v "$tool" >/dev/null || echo "lacks $tool"; done
echo "qemu $("$2" --version 2>&1 | head -n 1)"
up=$1
while [ ! -e "$up" ]; do up=${up%/*}; [ -n "$up" ] || up=/; done
if [ ! -d "$up" ] || [ ! -w "$up" ] || [ ! -x "$up" ]; then echo "run_dir unusable"
elif [ "$up" = "$1" ]; then echo "run_dir there"; else echo "run_dir absent"; fi
echo "space $(df -Pk -- "$up" | tail -n 1 | { read -r _ _ _ free _; echo "$free"; })"
for socket in /run/dbus/system_bus_socket /run/systemd/journal/stdout "$1"/*/qmp.sock; do
    if [ -S "$socket" ] && [ -w "$socket" ]; then printf 'socket %s\n' "$socket"; break; fi
done
if [ -w /dev/userfaultfd ]; then echo "userfaultfd yes"
elif [ "$(id -u)" = 0 ]; then echo "userfaultfd yes"
else echo "userfaultfd $(cat /proc/sys/vm/unprivileged_userfaultfd 2>/dev/null)"; fi
