#: $1 run_dir  $2 guest  $3 qemu  $4 pid of the guest's QEMU here or ""  $5... paths to look at
#: relay: run directory, guest's name, QEMU, address or nothing
export LC_ALL=C
run=$1 vm=$2 qemu=$3 pid=$4
shift 4
IFS= read -r boot </proc/sys/kernel/random/boot_id && echo "boot_id $boot"
while read -r key value unit; do
    case $key in MemAvailable:) echo "mem_available $value";; MemTotal:) echo "mem_total $value";; esac
done </proc/meminfo
if [ -x "$qemu" ] && [ -f "$qemu" ]; then echo "qemu $(stat -L -c '%s.%Y.%i' -- "$qemu")"; fi
if [ -d "$run" ]; then
    if [ -r "$run" ] && [ -w "$run" ] && [ -x "$run" ]; then echo "run_dir writable"; else echo "run_dir unwritable"; fi
elif [ -e "$run" ]; then echo "run_dir unwritable"
else
    up=$run
    while [ ! -e "$up" ]; do up=${up%/*}; [ -n "$up" ] || up=/; done
    if [ -d "$up" ] && [ -w "$up" ]; then echo "run_dir absent"; else echo "run_dir uncreatable"; fi
fi
if [ -e "$run/$vm" ]; then echo "guest_directory yes"; fi
if [ -e "$run/.locks/$vm.lock" ] && ! flock -n "$run/.locks/$vm.lock" true 2>/dev/null; then
    IFS= read -r who <"$run/.locks/$vm.lock"; echo "locked $who"
fi
if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then echo "kvm yes"; fi
IFS= read -r faults </proc/sys/vm/unprivileged_userfaultfd 2>/dev/null || faults=-
if [ -w /dev/userfaultfd ]; then faults=${faults}w; fi
echo "userfaultfd $faults"
if [ -n "$pid" ]; then echo "cmdline $(base64 -w0 "/proc/$pid/cmdline" 2>/dev/null)"; fi
if [ -n "$pid" ]; then
    if [ -f "$run/$vm/cwd" ]; then echo "cwd $(head -c 4096 "$run/$vm/cwd" | base64 -w0)"
    else echo "cwd $(readlink "/proc/$pid/cwd" 2>/dev/null | base64 -w0)"; fi
fi
grep -m1 '^flags' /proc/cpuinfo | sed 's/^flags[^:]*:/cpu_flags/'
grep -m1 '^model name' /proc/cpuinfo | sed 's/^model name[^:]*:/cpu_model/'
echo "fib $(base64 -w0 /proc/net/fib_trie 2>/dev/null)"
echo "if6 $(base64 -w0 /proc/net/if_inet6 2>/dev/null)"
