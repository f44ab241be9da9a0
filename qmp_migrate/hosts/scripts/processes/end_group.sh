#: $1 process group, $2 start time of its leader: ends what a command line that was begun behind a login shell started.
#: relay: command's process, number
IFS= read -r stat <"/proc/$1/stat" || exit 0
fields=${stat##*) }
group=$1 start=$2
set -f; set -- $fields; set +f
[ "${20}" = "$start" ] || exit 0
kill -TERM "-$group"
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    kill -0 "-$group" || exit 0
    sleep 0.05
done
kill -KILL "-$group"
