#: $1 directory, $2 controller's monitor, $3 agent's ("": none), $4 working directory, $5-$7 pid, start, boot; argv on stdin.
set -eu
umask 077
mkdir -p -- "$1" && cd -- "$1"
rm -f pid
ln -sfn -- "$2" qmp.sock
if [ -n "$3" ]; then ln -sfn -- "$3" agent.sock; else rm -f agent.sock; fi
cat >argv.json.new && mv -f argv.json.new argv.json
printf '%s\n' "$4" >cwd
printf '%s %s %s\n' "$5" "$6" "$7" >pid.new && mv -f pid.new pid
