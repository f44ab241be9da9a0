#: $1 user, $2 home
set -eu
export PATH="$PATH:/usr/sbin:/sbin"
if ! getent passwd "$1" >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir "$2" --shell /bin/sh --comment 'qmp-migrate guests' -- "$1"
fi
if getent group kvm >/dev/null; then usermod --append --groups kvm -- "$1"; fi
