#: $1 run directory, $2 guest; the mandate on standard input. What was written down of an earlier migration goes.
#: relay: run directory, guest's name
umask 077
mkdir -p -- "$1/.handover" || exit 1
cd -- "$1/.handover" || exit 1
rm -f -- "./$2.record"
cat >"./$2.mandate.new" && mv -f -- "./$2.mandate.new" "./$2.mandate"
