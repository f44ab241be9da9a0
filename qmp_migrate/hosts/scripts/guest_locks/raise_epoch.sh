#: $1 epoch file, $2 the least the new epoch must exceed, $3 purpose. Runs under the lock.
#: The first line is the epoch; the second says since which epoch nobody has taken the guest but for this purpose.
#: Prints the old epoch, the new one, and that.
#: relay: epoch, number, line of text
set -eu
now=0 since= who=
if [ -e "$1" ]; then { read -r now; read -r since who; } <"$1" || :; fi
case "$now" in ''|*[!0-9]*) echo "epoch file holds no number: $1" >&2; exit 65;; esac
before=$now
[ "$2" -gt "$now" ] && now=$2
now=$((now + 1))
[ "$who" = "$3" ] || since=$now
umask 077
printf '%s\n%s %s\n' "$now" "$since" "$3" > "$1.new"
sync "$1.new"
mv -f "$1.new" "$1"
echo "$before $now $since"
