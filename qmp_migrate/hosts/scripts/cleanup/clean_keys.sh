#: clean_keys DIRECTORY: removes a migration's key directory; fails, and leaves it, where something else is in it.
clean_keys() {
    [ -d "$1" ] && [ ! -L "$1" ] || return 1
    rm -f -- "$1/keys.psk" "$1"/keys.psk.???????? "$1/dh-params.pem" "$1"/dh-params.pem.????????
    rmdir -- "$1"
}
