#: $1 migration; then paths: they are the guest's disks from now on.
id=$1
shift
for path do rm -f -- "$path.$id.copying" || exit 1; done
