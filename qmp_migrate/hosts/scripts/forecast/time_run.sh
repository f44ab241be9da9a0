#: $1 pid  $2... threads. Clock ticks per second, then those that each thread has run.
pid=$1
shift
getconf CLK_TCK
for thread do
    IFS= read -r stat <"/proc/$pid/task/$thread/stat" || exit 1
    set -f; set -- ${stat##*) }; set +f
    echo "$(( ${12} + ${13} ))"
done
