#: $1 user, $2 run_dir, $3 QEMU, $4 base64 of the key ("": none), $5 the key's line, $6… files. Lines `NAME VALUE`.
#: What was installed is told by its SHA-256: two builds of one version are not the same.
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
user=$1 run_dir=$2 qemu=$3 blob=$4 line=$5
shift 5
say() { printf '%s %s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')"; }
say uid "$(id -u)"
say kernel "$(uname -s)"
say machine "$(uname -m)"
say os "$(. /etc/os-release 2>/dev/null && printf %s "$PRETTY_NAME")"
say dpkg "$(dpkg --print-architecture 2>/dev/null)"
say python "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
[ ! -c /dev/kvm ] || say kvm yes
getent group kvm >/dev/null && say kvm_group yes
[ ! -x "$qemu" ] || say qemu "$("$qemu" --version 2>/dev/null | sed -n '1s/.*version //p')"
if entry=$(getent passwd "$user"); then
    home=$(printf %s "$entry" | cut -d: -f6)
    say home "$home"
    say shell "$(printf %s "$entry" | cut -d: -f7)"
    say groups "$(id -nG "$user")"
    say group "$(id -gn "$user")"
    keys=$home/.ssh/authorized_keys
    if [ -n "$blob" ] && [ -f "$keys" ]; then
        if grep -qxF -- "$line" "$keys"; then say key present
        elif grep -v '^[[:space:]]*#' "$keys" | grep -qF -- "$blob"; then say key other; fi
    fi
fi
[ ! -d "$run_dir" ] || say run_dir "$(stat -c '%a %U' -- "$run_dir")"
case $(dpkg-query -W -f '${db:Status-Status}' qmp-migrate 2>/dev/null) in
installed) say package "$(dpkg-query -W -f '${Version}' qmp-migrate)"
    note=/var/lib/qmp-migrate-setup/package.sha256
    [ ! -f $note ] || say package_digest "$(cat $note)" ;;
esac
if command -v sshd >/dev/null; then
    found=$(sshd -T 2>/dev/null)
    say sshd_streamlocal "$(printf '%s\n' "$found" | sed -n 's/^allowstreamlocalforwarding //p')"
    say sshd_sessions "$(printf '%s\n' "$found" | sed -n 's/^maxsessions //p')"
fi
if [ -d /run/systemd/system ]; then
    say systemd yes
    say agent_active "$(systemctl show -p ActiveState --value qmp-hostagent.service)"
    say agent_enabled "$(systemctl is-enabled qmp-hostagent.service 2>/dev/null)"
    say agent_status "$(systemctl show -p StatusText --value qmp-hostagent.service)"
    # analysing the files needs no logind that answers
    found=$(systemd-analyze cat-config systemd/logind.conf 2>/dev/null)
    say kill_user_processes "$(printf '%s\n' "$found" | sed -n 's/^KillUserProcesses=//p' | tail -n 1)"
fi
for file; do
    [ -f "$file" ] || continue
    printf 'file %s %s %s\n' "$(sha256sum <"$file" | cut -d' ' -f1)" "$(stat -c '%a %U:%G' -- "$file")" "$file"
done
