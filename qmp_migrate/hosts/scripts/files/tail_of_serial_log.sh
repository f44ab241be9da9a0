#: $1 the guest's directory, $2 bytes. The end of what its serial port has said.
#: relay: guest's directory, number
for name in serial.log.1 serial.log; do [ ! -f "$1/$name" ] || cat -- "$1/$name"; done | tail -c "$2"
