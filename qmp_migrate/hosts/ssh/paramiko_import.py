"""paramiko, without what we never use of it.

paramiko's reader of ``ssh_config`` imports Invoke, if it is there, for ``Match exec``. We read no ``ssh_config``, and the
import costs a third of paramiko's whole (about 0.1 s of each command). It is hidden for the moment of the import only.
"""

from __future__ import annotations

import sys

_HIDDEN = "invoke"
_hide = _HIDDEN not in sys.modules
if _hide:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment]
try:
    import paramiko as paramiko
finally:
    if _hide:
        del sys.modules[_HIDDEN]

__all__ = ["paramiko"]
