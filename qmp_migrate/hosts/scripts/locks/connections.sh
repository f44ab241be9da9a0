#: look PID: sets $comm, $state, $parent and $begun from /proc/PID/stat; fails where there is no such process.
#:
#: connection PID: sets $session and $since to the process that serves the SSH connection which PID lives on, and the time
#: that one began; fails where there is none. The nearest sshd above is meant, whatever is between (login shell, timeout):
#:
#:     OpenSSH < 9.8, user:   sshd (listens) - sshd: user [priv] - sshd: user@notty - shell - holder
#:     OpenSSH < 9.8, root:   sshd (listens) - sshd: root@notty - shell - holder
#:     OpenSSH >= 9.8:        sshd (listens) - sshd-session: user [priv] - sshd-session: user@notty - shell - holder
#:
#: It owns all channels of the connection; a [priv] above it ends by itself. It is never the one that listens: an sshd is
#: taken for a session only as the child of another sshd, or where its title says so (inetd and socket activation).
#:
#: end PID START_TIME: SIGTERM, a second later SIGKILL, then waits for as long as it takes: ends only when it is proven
#: gone. A zombie has closed everything already. What was visible in /proc before stays so: no uid changes meanwhile.
look() {
    stat=
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    comm=${stat#*(}
    comm=${comm%)*}
    set -f; set -- ${stat##*) }; set +f
    state=$1 parent=$2 begun=${20}
}
connection() {
    next=$1
    while look "$next"; do
        session=$next since=$begun
        case $comm in
        sshd-session) return 0 ;;
        sshd)
            title=
            { IFS= read -r title <"/proc/$next/cmdline"; } 2>/dev/null
            case $title in
            *"[listener]"*) return 1 ;;
            "sshd: "*@*) return 0 ;;
            esac
            look "$parent" && [ "$comm" = sshd ]
            return
            ;;
        esac
        next=$parent
    done
    return 1
}
alive() {
    look "$1" || [ ! -e /proc/self/stat ] || return 1
    [ "$begun" = "$2" ] || return 1
    case $state in [ZXx]) return 1 ;; esac
}
end() {
    tries=0
    while alive "$1" "$2"; do
        if [ "$tries" -eq 0 ]; then kill -TERM "$1"; elif [ "$tries" -ge 20 ]; then kill -KILL "$1"; fi
        tries=$((tries + 1))
        sleep 0.05
    done
}
