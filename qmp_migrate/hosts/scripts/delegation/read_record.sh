#: $1 run directory, $2 guest. Prints what an agent has written down; nothing where it has not.
#: relay: run directory, guest's name
[ ! -e "$1/.handover/$2.record" ] || head -c 4096 -- "$1/.handover/$2.record"
