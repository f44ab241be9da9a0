#: $1 run directory, $2 path below it. The caller has looked at it right before, under the guest's lock.
cd -P -- "$1" || exit 1
case $2 in */*) [ ! -L "./${2%%/*}" ] || exit 1 ;; esac
[ -e "./$2" ] || exit 0
[ -f "./$2" ] && [ ! -L "./$2" ] && rm -f -- "./$2"
