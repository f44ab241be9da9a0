#: $1 run directory, $2 guest, $3 time stamp. Moves the guest's directory to .quarantine/NAME-STAMP, never over something.
#: Refuses where its QEMU, or any process with its files in the command line or with it as working directory, lives;
#: and where a launch is under way there: that one has the directory locked.
#: include processes/state_of
#: include cleanup/clean_keys
umask 077
refuse() { echo "$1" >&2; exit 1; }
cd -P -- "$1" || exit 1
[ -d "./$2" ] && [ ! -L "./$2" ] || refuse "$2 is no directory any more"
[ "$(stat -c %u "./$2")" = "$(id -u)" ] || refuse "$2 belongs to somebody else"
exec 9<"./$2" && flock -n 9 || refuse "a launch is under way in $2"
[ "./$2" -ef /proc/self/fd/9 ] || refuse "$2 has just been replaced"
if [ -e "./$2/pid" ]; then
    record "./$2/pid" || exit 1
    found=$(same "$pid" "$start" "$boot") || exit 1
    [ "$found" = gone ] || refuse "a QEMU lives in $2 (process $pid)"
fi
for cwd in /proc/[0-9]*/cwd; do
    if [ "$cwd" -ef "./$2" ]; then cwd=${cwd%/cwd}; refuse "process ${cwd#/proc/} works in $2"; fi
done
users=$(printf '%s\n' "$1/$2/" | grep -lzF -f - /proc/[0-9]*/cmdline 2>/dev/null)
[ -z "$users" ] || refuse "$2 is named in the command line of a process: "$users
for keys in "./$2"/tls-*; do
    if [ -e "$keys" ]; then clean_keys "$keys"; fi
done
[ ! -L .quarantine ] || refuse ".quarantine is a symbolic link"
mkdir -p .quarantine && [ "$(stat -c %u .quarantine)" = "$(id -u)" ] && chmod 700 .quarantine || exit 1
place=".quarantine/$2-$3"
if [ -e "$place" ] || [ -L "$place" ]; then place="$place-$$"; fi
mv -nT -- "./$2" "$place" && [ ! -e "./$2" ] || refuse "$2 could not be moved"
printf '%s\n' "$place"
