#: $1 pid, $2 start time, $3 boot id.
#: relay: number, number, boot id
#: include processes/state_of
same "$1" "$2" "$3"
