"""The shoot-out: ways and policies of moving a guest that dirties memory as fast as the link carries it, side by side.

``make bench SET=policies``. All contenders move the same guest over the same link, in one run, and take turns, so that what
disturbs the machine for a while disturbs all of them. A round is one sample of every contender in every scenario; there
are as many rounds as fit. What can be known beforehand is not waited for again: a contender that was still going at the
bound is measured once.

Files: `field` (who and what, data), `link` (the limited link), `arena` (hosts and controller), `guest`, `sampling` (one
sample), `watch` (both QEMUs' events), `tls` (what TLS allows), and, pure, `inside` (what the guest says), `samples`,
`summary`, `goals`; `table`, `page` and `plots` tell it.
"""
