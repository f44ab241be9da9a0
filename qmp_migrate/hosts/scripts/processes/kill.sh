#: $1 pid, $2 start time, $3 boot id, $4 hundredths of a second, $5 signal. The identity is proven right before.
#:
#: Gone is not enough for whoever opens its images next: the kernel finishes what was under way with io_uring on its own, and
#: the locks last as long as that (seen: 0.7 s), or as long as a child that has inherited a file. It is waited for, but proves
#: nothing: others may hold the same locks on the same file, so there is a limit.
#: relay: guest's process, number, boot id, number, signal
#: include processes/state_of
#: include processes/end
