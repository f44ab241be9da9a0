#: $1 pid  $2 KiB of the guest's memory. KiB of it that are there; else of the whole process.
awk -v wanted="$2" '
    /^[0-9a-f]+-[0-9a-f]+ / { size = 0 }
    /^Size:/ { size = $2 }
    /^(Rss|Swap):/ { all += $2; if (size == wanted) { own += $2; seen = 1 } }
    END { print seen ? own : all }
' "/proc/$1/smaps"
