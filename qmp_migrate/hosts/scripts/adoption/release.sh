#: $1 directory. Only what is adopted: its monitor is a link.
cd -- "$1" 2>/dev/null || { echo absent; exit 0; }
[ -L qmp.sock ] || { echo ours; exit 0; }
rm -f pid qmp.sock argv.json cwd
[ ! -L agent.sock ] || rm -f agent.sock
cd / && rmdir -- "$1" 2>/dev/null || :
echo released
