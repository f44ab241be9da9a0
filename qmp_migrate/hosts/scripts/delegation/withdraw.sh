#: $1 run directory, $2 guest.
#: relay: run directory, guest's name
rm -f -- "$1/.handover/$2.mandate" "$1/.handover/$2.mandate.new" "$1/.handover/$2.record" "$1/.handover/$2.record.new"
