"""What a controller may say to a monitor: known commands with known arguments. What QEMU answers passes as it is.

Each command is read as JSON, checked, and written anew: QEMU sees what was checked, not what was sent.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from hostagent.relay.argument_rules import Refused, path_below
from hostagent.relay.settings import Allowed

LINE_LIMIT: Final = 1 << 20
DEPTH_LIMIT: Final = 32
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST, _QUOTE, _ESCAPE = b'{}[]"\\'
QUERY: Final = re.compile(r"query-[a-z0-9-]{1,60}")
ANY: Final = frozenset(
    {"cont", "stop", "quit", "migrate_cancel", "migrate-pause", "migrate-start-postcopy", "system_powerdown"}
)
"""Commands without arguments."""
KEYS: Final[dict[str, frozenset[str]]] = {
    "qmp_capabilities": frozenset({"enable"}),
    "qom-list": frozenset({"path"}),
    "qom-get": frozenset({"path", "property"}),
    "qom-list-properties": frozenset({"typename"}),
    "device-list-properties": frozenset({"typename"}),
    "migrate-continue": frozenset({"state"}),
    "migrate-set-capabilities": frozenset({"capabilities"}),
    "announce-self": frozenset({"initial", "max", "rounds", "step", "interfaces", "id"}),
    "calc-dirty-rate": frozenset({"calc-time", "calc-time-unit", "sample-pages", "mode"}),
    "set-vcpu-dirty-limit": frozenset({"cpu-index", "dirty-rate"}),
    "cancel-vcpu-dirty-limit": frozenset({"cpu-index"}),
    "yank": frozenset({"instances"}),
    "object-del": frozenset({"id"}),
    "query-named-block-nodes": frozenset({"flat"}),
    "query-cpu-model-expansion": frozenset({"type", "model"}),
    "x-debug-query-block-graph": frozenset(),
}
PARAMETERS: Final = frozenset(
    [
        "announce-initial",
        "announce-max",
        "announce-rounds",
        "announce-step",
        "avail-switchover-bandwidth",
        "cpu-throttle-increment",
        "cpu-throttle-initial",
        "cpu-throttle-tailslow",
        "downtime-limit",
        "max-bandwidth",
        "max-cpu-throttle",
        "max-postcopy-bandwidth",
        "multifd-channels",
        "multifd-compression",
        "multifd-zlib-level",
        "multifd-zstd-level",
        "throttle-trigger-threshold",
        "tls-creds",
        "tls-hostname",
        "tls-authz",
        "xbzrle-cache-size",
        "zero-page-detection",
        "direct-io",
        "x-vcpu-dirty-limit-period",
        "vcpu-dirty-limit",
    ]
)
"""Of ``migrate-set-parameters``. Not ``mode`` and ``cpr-exec-command``: they run a program."""
TLS: Final = frozenset({"qom-type", "id", "endpoint", "dir", "username", "verify-peer", "priority"})
MONITOR: Final = frozenset({"info network", "info usernet"})
"""What may be said to the human monitor, to the letter."""
TCP: Final = re.compile(r"tcp:[A-Za-z0-9.:\[\]_-]{1,260}:[0-9]{1,5}(,to=[0-9]{1,5})?")


class Objects:
    """Cuts a stream into JSON objects: QMP needs no line ends between them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the objects that are whole with this.

        Args:
            data: What has come.

        Raises:
            Refused: Something stands between objects, or one does not end.
        """
        self._buffer += data
        found = []
        while self._at < len(self._buffer):
            if self._depth == 0:
                while self._at < len(self._buffer) and self._buffer[self._at] in b" \t\r\n":
                    self._at += 1
                del self._buffer[: self._at]
                self._at = 0
                if not self._buffer:
                    break
                if self._buffer[0] != _OPEN:
                    raise Refused("something that is no QMP command", None)
            if self._at >= LINE_LIMIT:
                raise Refused("a QMP command that does not end", None)
            if self._step():
                found.append(bytes(self._buffer[: self._at]))
        return found

    def _step(self) -> bool:
        """Take the next byte; tell whether an object ends with it."""
        byte = self._buffer[self._at]
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = byte == _ESCAPE
            self._quoted = byte != _QUOTE
        elif byte == _QUOTE:
            self._quoted = True
        elif byte in (_OPEN, _OPEN_LIST):
            self._depth += 1
            if self._depth > DEPTH_LIMIT:  # QEMU gives up at 1024, and takes what follows for new commands
                raise Refused("a QMP command that is nested too deeply", None)
        elif byte in (_CLOSE, _CLOSE_LIST):
            self._depth -= 1
        self._at += 1
        return self._depth == 0


def checked(line: bytes, allowed: Allowed) -> bytes:
    """Return a command as it may be sent.

    Args:
        line: What the controller has sent.
        allowed: What the host's owner allows.

    Raises:
        Refused: It is not allowed; ``args[1]`` is its id, for the answer.
    """
    try:
        command = json.loads(line, object_pairs_hook=_without_repetition, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise Refused("not one JSON object a line", None) from None
    if not isinstance(command, dict):
        raise Refused("not a JSON object", None)
    identifier = command.get("id")
    if not isinstance(identifier, str | int | None) or len(str(identifier)) > 128:
        raise Refused("a QMP command with an odd id", None)
    names = [command[key] for key in ("execute", "exec-oob") if key in command]
    arguments = command.get("arguments", {})
    if len(names) != 1 or not isinstance(names[0], str) or not isinstance(arguments, dict):
        raise Refused("not a QMP command", identifier)
    if not set(command) <= {"execute", "exec-oob", "arguments", "id"}:
        raise Refused("a QMP command with other members", identifier)
    if not _allowed(names[0], arguments, allowed):
        raise Refused(f"{names[0][:60]} with these arguments", identifier)
    try:
        return json.dumps(command).encode() + b"\n"
    except (ValueError, RecursionError):
        raise Refused("not a QMP command", None) from None


def answer(reason: str, identifier: object) -> bytes:
    """Return QMP's answer to a command that is refused."""
    error: dict[str, Any] = {"class": "GenericError", "desc": f"refused by the relay of this host: {reason}"}
    document = {"error": error} if identifier is None else {"error": error, "id": identifier}
    return json.dumps(document).encode() + b"\n"


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no number of JSON's")
    return number


def _allowed(name: str, arguments: dict[str, Any], allowed: Allowed) -> bool:
    keys = set(arguments)
    if name in KEYS:
        return keys <= KEYS[name]
    if name in ANY or QUERY.fullmatch(name):
        return not keys
    match name:
        case "migrate":
            return keys <= {"uri", "channels", "detach", "resume"} and _goes_by_tcp(arguments)
        case "migrate-incoming":
            return keys <= {"uri", "channels"} and _goes_by_tcp(arguments)
        case "migrate-recover":
            return keys == {"uri"} and _goes_by_tcp(arguments)
        case "migrate-set-parameters":
            return keys <= PARAMETERS
        case "human-monitor-command":
            line = arguments.get("command-line")
            return keys == {"command-line"} and isinstance(line, str) and line in MONITOR
        case "object-add":
            where = arguments.get("dir")
            return (
                keys <= TLS
                and arguments.get("qom-type") == "tls-creds-psk"
                and isinstance(where, str)
                and path_below(where, (allowed.run_dir,))
            )
    return False


def _goes_by_tcp(arguments: dict[str, Any]) -> bool:
    uri, channels = arguments.get("uri"), arguments.get("channels")
    if (uri is None) == (channels is None):
        return False
    if uri is not None:
        return isinstance(uri, str) and TCP.fullmatch(uri) is not None
    return isinstance(channels, list) and all(_tcp_channel(channel) for channel in channels)


def _tcp_channel(channel: object) -> bool:
    if not isinstance(channel, dict) or not set(channel) <= {"channel-type", "addr"}:
        return False
    address = channel.get("addr")
    return (
        isinstance(address, dict)
        and address.get("transport") == "socket"
        and address.get("type") == "inet"
        and set(address) <= {"transport", "type", "host", "port", "to", "ipv4", "ipv6", "keep-alive", "numeric"}
        and all(isinstance(value, str | int | bool) for value in address.values())
    )
