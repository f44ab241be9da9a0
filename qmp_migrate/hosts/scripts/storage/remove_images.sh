#: $1 migration; then the paths of images, "--", and directories, innermost first.
id=$1
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    mark=$1.$id.copying
    if [ -e "$mark" ]; then
        if [ "$1" -ef "$mark" ]; then rm -f -- "$1" || exit 1; fi
        rm -f -- "$mark" || exit 1
    fi
    shift
done
[ $# -eq 0 ] || shift
for dir do rmdir -- "$dir" 2>/dev/null; done
exit 0
