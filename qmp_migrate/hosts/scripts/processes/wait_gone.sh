#: $1 pid, $2 start time, $3 boot id, $4 hundredths of a second.
#: relay: number, number, boot id, number
#: include processes/state_of
wait_gone "$1" "$2" "$3" "$4"
