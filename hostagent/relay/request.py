"""What ``SSH_ORIGINAL_COMMAND`` asks for: taken apart, checked, or refused. Pure but for looks at the file system."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from hostagent.relay.argument_rules import NAME, Refused, check
from hostagent.relay.script_registry import FILE, digest
from hostagent.relay.settings import Allowed

COMMAND_LIMIT: Final = 1 << 20
INPUT_LIMIT: Final = 4 << 20
CONNECT: Final = "qmp-relay"
ACCELERATOR: Final = re.compile(r"tcg|kvm(,dirty-ring-size=[0-9]{1,6})?")
PROBE: Final = (
    "-M",
    "none",
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-accel",
    "",
    "-qmp",
    "stdio",
    "-incoming",
    "defer",
)

How = Literal["run", "locks", "connect"]


@dataclass(frozen=True, slots=True)
class Request:
    """What may be done.

    Attributes:
        how: ``run`` it; run it and look at its input line by line (``guest_locks``); ``connect`` to a monitor.
        name: For the log.
        argv: What to run.
        path: Where to connect.
        guests_pid: Pid and start time that must be those of a guest.
        groups_pid: Pid and start time of a command of ours that is to be ended.
        record: Standard input must be this list of words, as JSON.
        input_digest: Standard input must have this SHA-256.
    """

    how: How
    name: str
    argv: tuple[str, ...] = ()
    path: str = ""
    guests_pid: tuple[str, str] | None = None
    groups_pid: tuple[str, str] | None = None
    record: tuple[str, ...] | None = None
    input_digest: str = ""


def load() -> dict[str, Any]:
    """Return the scripts that are known."""
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def understand(command: str, allowed: Allowed, known: dict[str, Any]) -> Request:
    """Say what a command asks for.

    Args:
        command: As SSH has it.
        allowed: What the host's owner allows.
        known: See `load`.

    Raises:
        Refused: It is not one of the controller's, or asks for what is not allowed.
    """
    if not command:
        raise Refused("no shell here: this key is for qmp-migrate")
    if len(command) > COMMAND_LIMIT:
        raise Refused(f"a command of {len(command)} characters")
    try:
        words = shlex.split(command)
    except ValueError:
        raise Refused("not a command of qmp-migrate") from None
    if shlex.join(words) != command:
        raise Refused("not a command of qmp-migrate (another notation)")
    if words[:2] == [CONNECT, "connect"] and len(words) == 3:
        return _connect(words[2], allowed)
    argv = words
    if words[:2] == ["sh", "-c"] and len(words) > 5 and words[3] == "sh" and digest(words[2]) == known["wrapper"]:
        if not re.fullmatch(r"[0-9]{1,6}", words[4]):
            raise Refused("not a command of qmp-migrate (time limit)")
        words = words[5:]
    if words[:2] == ["sh", "-c"] and len(words) > 3 and words[3] == "sh":
        return _script(words[2], words[4:], tuple(argv), allowed, known)
    if words and words[0] in allowed.qemus and _is_probe(words[1:]):
        return Request("run", "qemu probe", tuple(argv), input_digest=known["questions"])
    raise Refused(f"not a command of qmp-migrate, or one that the relay does not do: {words[0][:60]!r}")


def _is_probe(words: list[str]) -> bool:
    if len(words) != len(PROBE) or not ACCELERATOR.fullmatch(words[7]):
        return False
    return all(given == wanted or not wanted for given, wanted in zip(words, PROBE, strict=True))


def _connect(path: str, allowed: Allowed) -> Request:
    directory, _, socket = path.rpartition("/")
    above, _, name = directory.rpartition("/")
    if above != allowed.run_dir or not NAME.fullmatch(name) or socket not in {"qmp.sock", "agent.sock"}:
        raise Refused(f"{path[:120]!r} is no monitor of a guest")
    for each in (directory, path):
        if Path(each).is_symlink():  # an adopted guest's leads to a place of somebody else's
            raise Refused(f"{each[:120]!r} is a symbolic link")
    return Request("connect", f"monitor of {name}", path=path)


def _script(source: str, args: list[str], argv: tuple[str, ...], allowed: Allowed, known: dict[str, Any]) -> Request:
    entry = known["scripts"].get(digest(source))
    if entry is None:
        raise Refused(
            "a script that this relay does not know: another version of qmp-migrate, or something that the relay does not do"
        )
    kinds: list[str] = entry["args"]
    name: str = entry["name"]
    rest: list[str] = []
    digest_of_input = ""
    launches = kinds[-1:] == ["argv"]
    if kinds[-1:] == ["probe"]:
        kinds = kinds[:-1]
        args, words = args[: len(kinds)], args[len(kinds) :]
        if not words or words[0] not in allowed.qemus or not _is_probe(words[1:]):
            raise Refused(f"{name}: not the command line of a probe")
        digest_of_input = known["questions"]
    elif launches:
        kinds = kinds[:-1]
        args, rest = args[: len(kinds)], args[len(kinds) :]
    elif kinds[-1:] == ["*"]:
        kinds = kinds[:-2] + [kinds[-2]] * max(0, len(args) - len(kinds) + 2)
    if len(args) != len(kinds):
        raise Refused(f"{name}: {len(args)} arguments, not {len(kinds)}")
    for kind, word in zip(kinds, args, strict=True):
        try:
            check(kind, word, allowed)
        except Refused as refused:
            raise Refused(f"{name}: {refused}") from None
    if launches:
        from hostagent.relay.qemu_args_policy import check_command_line

        own = args[kinds.index("guest's directory") :]
        check_command_line(rest, own[0], allowed)
        if own[2:4] != ["qmp.sock", "qemu.log"]:
            raise Refused(f"{name}: other files than qmp.sock and qemu.log")
        return Request("run", name, argv, record=tuple(rest))
    return Request(
        "locks" if "scope of locks" in kinds else "run",
        name,
        argv,
        guests_pid=_process("guest's process", kinds, args),
        groups_pid=_process("command's process", kinds, args),
        input_digest=digest_of_input,
    )


def _process(kind: str, kinds: list[str], args: list[str]) -> tuple[str, str] | None:
    """Return the pid of that kind, and what always follows it: the time at which the process began."""
    at = kinds.index(kind) if kind in kinds else -1
    return None if at < 0 else (args[at], args[at + 1])
