#: As kill, but only where the process holds nothing open any more to which a guest's data may still be on its way; else
#: "holds" and what it is. Images are open for reading and writing (logs for writing only), or reached through a socket that
#: the process has connected itself: of its own ones the listening ones, and what has come to them, may stay.
#: relay: guest's process, number, boot id, number, signal
#: include processes/state_of
# passive PID: the inodes of its sockets that wait for others, and of those that others have connected to.
passive() {
    while read -r number count protocol flags kind state inode path; do
        case $flags,$path in 00010000,* | *,?*) printf ' %s ' "$inode" ;; esac
    done <"/proc/$1/net/unix"
    for version in tcp tcp6; do
        while read -r number from to state queues timer again uid wait inode rest; do
            if [ "$state" = 0A ]; then printf ' %s ' "$inode"; fi
        done <"/proc/$1/net/$version"
    done
}
# holds PID: prints what is open, nothing where all is closed.
holds() {
    if [ ! -r "/proc/$1/fd" ] || [ ! -e "/proc/$1/fd/0" ]; then echo "files that cannot be seen from here"; return; fi
    passive=$(passive "$1" 2>/dev/null)
    for file in "/proc/$1/fd/"*; do
        fd=${file##*/}
        link=$(readlink "$file") || continue  # closed meanwhile
        case $link in
        socket:*)
            inode=${link#*\[} inode=${inode%]}
            case $passive in *" $inode "*) continue ;; esac
            if [ "$fd" -gt 2 ]; then echo "a connection to a server"; return; fi ;;
        "/memfd:"*) ;;
        *)
            if [ ! -f "$file" ] && [ ! -b "$file" ]; then continue; fi
            flags=$(sed -n 's/^flags:[^0-9]*//p' "/proc/$1/fdinfo/$fd" 2>/dev/null)
            case $flags in *[26]) printf '%s\n' "$link"; return ;; esac ;;
        esac
    done
}
found=$(same "$1" "$2" "$3") || exit 1
if [ "$found" = gone ]; then echo gone; exit 0; fi
held=$(holds "$1")
found=$(same "$1" "$2" "$3") || exit 1
if [ "$found" = live ] && [ -n "$held" ]; then printf 'holds %s\n' "$held"; exit 0; fi
#: include processes/end
