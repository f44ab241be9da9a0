#: $1 directory. Prints "defined", "moving ID" where it is on its way to another host, or "none".
#: relay: guest's directory
[ -d "$1" ] && [ ! -L "$1" ] || { echo none; exit 0; }
for moved in "$1"/argv.json.moved-*; do
    if [ -e "$moved" ]; then echo "moving ${moved##*-}"; exit 0; fi
done
if [ -f "$1/argv.json" ]; then echo defined; else echo none; fi
