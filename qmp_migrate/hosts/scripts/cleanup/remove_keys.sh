#: $1 run directory, $2 guest, $3 name of the key directory.
#: include cleanup/clean_keys
cd -- "$1" && [ -d "./$2" ] && [ ! -L "./$2" ] || exit 1
[ -e "./$2/$3" ] || exit 0
clean_keys "./$2/$3"
