#: $1 directory  $2 MiB to fill, or 0  $3 seconds to live  $4... QEMU
set -u
umask 077
# Ours by name, and nothing but what we know goes.
tidy() {
    ( cd -- "$1" && rm -f -- fill log qmp.sock ./tls-*/keys.psk ./tls-*/dh-params.pem
      for d in ./tls-*; do [ -d "$d" ] && rmdir -- "$d"; done
      cd / && rmdir -- "$1" )
}
for old in "${1%/*}"/.p??????; do  # of a host that lost its power meanwhile
    if [ -n "$(find "$old" -maxdepth 0 -mmin +10 2>/dev/null)" ]; then tidy "$old"; fi
done
mkdir -p -- "$1" && cd -- "$1" || exit 1
dir=$1 size=$2 life=$3
shift 3
if [ "$size" -gt 0 ]; then head -c "${size}M" /dev/urandom >fill; fi
timeout -k 1 "$life" "$@" </dev/null >log 2>&1
code=$?
tail -c 4096 log >&2
tidy "$dir"
exit "$code"
