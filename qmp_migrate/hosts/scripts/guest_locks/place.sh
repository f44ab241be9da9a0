#: $1 run directory. Makes what is absent, and prints what tells this place from every other one, whoever asks.
#: relay: run directory
umask 077
mkdir -p -- "$1/.locks" && IFS= read -r boot </proc/sys/kernel/random/boot_id || exit 1
echo "$boot $(stat -L -c %d:%i -- "$1/.locks")"
