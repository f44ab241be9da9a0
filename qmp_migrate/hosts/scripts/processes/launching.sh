#: $1: a guest's directory. A launch holds its lock until the process is up; `exec` proves that nobody does.
#: relay: guest's directory
[ -d "$1" ] || { echo absent; exit 0; }
flock -n "$1" true && echo idle || echo starting
