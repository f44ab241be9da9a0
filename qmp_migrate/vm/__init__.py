"""What a guest is: its QEMU command line. Pure: no files, no processes, no clock.

==============  ====================================================================================
module          what it does
==============  ====================================================================================
`cmdline`       reads an argv without loss and asks it what the guest is
`disks`         its disks, `chardevs` its consoles and monitors, `netdevs` its network back ends
`paths`         which files it names; `addresses` where it listens; `hostbound` what ties it to its host
`derive`        the destination's command line from the source's
`visible`       what the guest can tell of a command line, for comparing two
`spec`          a guest written down in TOML; `argv` makes a command line of it
`names`         names and socket paths; `units` sizes, rates and times
==============  ====================================================================================

Below them: `options` (QEMU's options as a table), `properties` (``key=value`` and JSON), `filenames` (the block
layer's), `sockets` (our two monitors), `fields` and `toml_lines` (for `spec`).
"""
