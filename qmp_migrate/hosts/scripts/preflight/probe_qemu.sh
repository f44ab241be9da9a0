#: $1: the run directory; then a QEMU's command line. Its answers go to a file first: QEMU that ends drops what a pipe has not
#: taken by then, and the answers are four times what a pipe holds. The file has no name by the time QEMU runs.
#: relay: run directory, probe
umask 077
run_dir=$1
shift
file=$(mktemp "$run_dir/.probe.XXXXXX" 2>/dev/null || mktemp) || exit 1
exec 3>"$file" 4<"$file"
rm -f -- "$file"
"$@" >&3 3>&- 4<&-
status=$?
cat <&4
exit "$status"
