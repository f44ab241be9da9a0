#: $1 SHA-256
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
cd /var/lib/qmp-migrate-setup
trap 'rm -f /var/lib/qmp-migrate-setup/package.deb' EXIT
echo "$1  package.deb" | sha256sum --check --quiet --status || { echo "the package was damaged on its way" >&2; exit 1; }
chmod 0644 package.deb
apt-get install --yes --quiet --no-install-recommends --allow-downgrades --reinstall -o DPkg::Lock::Timeout=60 \
    -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root ./package.deb </dev/null
echo "$1" >/var/lib/qmp-migrate-setup/package.sha256
