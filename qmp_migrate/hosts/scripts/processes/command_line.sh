#: $1 pid. Its command line, in base64.
#: relay: number
base64 -w0 "/proc/$1/cmdline"
