#: $1 lock file, $2 owner. Ends the holder of a lock whose owner line is $2, and the SSH connection that it lives on.
#: Answers "ended" when both are proven gone (also when they were before), "other" where somebody else holds the lock.
#: Its own connection is never the one: then it ends the holder only.
#: relay: lock, line of text
#: include locks/connections
owner= pid= start=
{ IFS= read -r owner && read -r pid start; } <"$1"
if [ "$owner" != "$2" ]; then echo other; exit 0; fi
case $pid in ''|*[!0-9]*) echo ended; exit 0 ;; esac
if connection "$$"; then own=$session; else own=; fi
if alive "$pid" "$start"; then
    if connection "$pid" && [ "$session" != "$own" ]; then end "$session" "$since"; fi
    end "$pid" "$start"
fi
echo ended
