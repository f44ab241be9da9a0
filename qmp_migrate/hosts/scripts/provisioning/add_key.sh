#: $1 user, $2 line. Done as the user: what is written there can be led nowhere that is not the user's anyway.
set -eu
home=$(getent passwd "$1" | cut -d: -f6)
[ -d "$home" ] || install -d -m 0750 -o "$1" -g "$(id -gn "$1")" -- "$home"
runuser -u "$1" -- test -w "$home" -a -x "$home" || {
    echo "$1 may not write into its home $home, which belongs to $(stat -c %U -- "$home")" >&2
    exit 1
}
exec runuser -u "$1" -- sh -euc '
umask 077
cd -- "$1"
mkdir -p .ssh
new=$(mktemp .ssh/.authorized_keys.XXXXXX)
trap "rm -f -- $new" EXIT
[ ! -f .ssh/authorized_keys ] || sed "\$a\\" .ssh/authorized_keys >"$new"
printf "%s\n" "$2" >>"$new"
mv -f -- "$new" .ssh/authorized_keys
trap - EXIT
' sh "$home" "$2"
