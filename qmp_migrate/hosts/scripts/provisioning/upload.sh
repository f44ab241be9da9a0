#: $1 offset of this piece; prints the length so far. In root's own directory: nobody can put another file in the way.
set -eu
umask 077
mkdir -p -m 0755 -- /var/lib/qmp-migrate-setup
cd /var/lib/qmp-migrate-setup
[ "$1" -ne 0 ] || : >package.deb
[ "$(wc -c <package.deb)" -eq "$1" ] || { echo "another setup of this host is at work" >&2; exit 1; }
cat >>package.deb
wc -c <package.deb
