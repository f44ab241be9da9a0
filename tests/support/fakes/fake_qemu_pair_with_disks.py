"""The pair of fake QEMUs, with a disk that is carried along: what `QemuPair` does, with block jobs, an NBD server and files.

It keeps count of two more truths: a source that is let go on before its disk is whole over there, and a guest that runs over
there while somebody else may still write to its disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.storage import images
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.settings import HostSettings
from tests.support.fakes.fake_qemu import Fails, Reply
from tests.support.fakes.fake_qemu_pair import SOURCE, PairHost, QemuPair

COPIES = (
    DiskCopy(0, "d0", "/a/one.raw", "/b/one.raw", "1:11", virtual_bytes=1 << 20, expected_bytes=1 << 19),
    DiskCopy(1, "cd", "/a/cd.iso", "/b/cd.iso", "1:12", virtual_bytes=1 << 20, writable=False),
)


IMAGE_SCRIPTS = frozenset({images._MAKE, images._REMOVE, images._KEEP, images._PUT_AWAY})


class Disks:
    """What the QEMUs of a pair do with disks, and what their hosts do with files.

    Attributes:
        jobs: Of the source: status, error.
        nodes: Of both QEMUs, beside the guest's own.
        serves: The destination's NBD server runs, and wants a key.
        exports: Of the destination.
        files: On the destination.
        put_away: What was done with the source's images.
        breaks: The copies fail from here on: a disk is full over there.
    """

    def __init__(self, pair: QemuPair, *, later: bool = False) -> None:
        """Teach a pair to carry disks; `later`: its source can put a mirror in step later (8.2 and up)."""
        self.pair, self.later = pair, later
        self.source, self.destination, self.wrong = pair.source, pair.destination, pair.wrong
        self.jobs: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, set[str]] = {"a": set(), "b": set()}
        self.serves = False
        self.exports: set[str] = set()
        self.files: set[str] = set()
        self.put_away: list[str] = []
        self.breaks = False
        source, destination = pair.source, pair.destination
        for name, qemu in (("a", source), ("b", destination)):
            qemu.on("blockdev-add", lambda arguments, name=name: self._add(name, arguments))
            qemu.on("blockdev-del", lambda arguments, name=name: self._del(name, arguments))
        commands = [{"name": "block-job-change"}] if self.later else []
        source.on("query-commands", commands)
        source.on("query-block", [_block("d0", "#d0"), _block("cd", "#cd")])
        source.on("query-named-block-nodes", [])
        source.on("blockdev-mirror", self._mirror)
        source.on("query-jobs", lambda _: [self._job(name) for name in self.jobs])
        source.on("query-block-jobs", lambda _: self._block_jobs())
        source.on("block-job-change", self._change)
        source.on("block-job-set-speed", {})
        source.on("block-job-cancel", self._end)
        source.on("job-dismiss", lambda arguments: self._dismiss(arguments["id"]))
        yank_migration = source._replies["yank"][0]
        source.on("yank", lambda arguments: self._yank(arguments, yank_migration))
        go_on, run = source._replies["migrate-continue"][0], destination._replies["cont"][0]
        source.on("migrate-continue", lambda arguments: self._look_at_disks() or go_on(arguments))
        destination.on("cont", lambda arguments: self._look_at_exports() or run(arguments))
        destination.on("nbd-server-start", lambda arguments: self._serve(arguments))
        destination.on("nbd-server-stop", lambda _: self._stop_serving())
        destination.on("block-export-add", lambda arguments: self.exports.add(arguments["id"]) or {})
        destination.on("query-block-exports", lambda _: [{"type": "nbd", "id": name} for name in self.exports])

    # -- what QEMU does ---------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.destination.alive and self.serves

    def _add(self, name: str, arguments: dict[str, Any]) -> Reply:
        if arguments["driver"] == "nbd":
            if not self.connected or arguments["export"] not in self.exports:
                return Fails("Failed to connect to server")
            if "tls-creds" not in arguments:
                return Fails("Denied by server for option 7: server requires TLS")
        self.nodes[name].add(arguments["node-name"])
        return {}

    def _del(self, name: str, arguments: dict[str, Any]) -> Reply:
        node = arguments["node-name"]
        if node not in self.nodes[name]:
            return Fails(f"Failed to find node with node-name='{node}'")
        if node in self.exports or any(
            job["target"] == node and job["status"] != "concluded" for job in self.jobs.values()
        ):
            return Fails(f"Node '{node}' is busy")
        self.nodes[name].discard(node)
        return {}

    def _serve(self, arguments: dict[str, Any]) -> Reply:
        if self.serves:
            return Fails("NBD server already running")
        self.serves = True
        if "tls-creds" not in arguments:
            self.wrong.append("disks in the clear")
        return {}

    def _stop_serving(self) -> Reply:
        if not self.serves:
            return Fails("NBD server not running")
        self.serves = False
        self.exports.clear()
        return {}

    def _mirror(self, arguments: dict[str, Any]) -> Reply:
        if arguments["on-target-error"] != "report" or arguments["auto-dismiss"] is not False:
            self.wrong.append("a mirror that the guest would see, or nobody could ask")
        if (arguments["copy-mode"] == "background") is not self.later:
            self.wrong.append("a mirror that can never be in step")
        self.jobs[arguments["job-id"]] = {"status": "running", "target": arguments["target"], "step": not self.later}
        return {}

    def _job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        if self.breaks and job["status"] != "concluded":
            job |= {"status": "concluded", "error": "No space left on device"}
        told = {"id": name, "type": "mirror", "status": job["status"], "current-progress": 8, "total-progress": 8}
        return told | ({"error": job["error"]} if job.get("error") else {})

    def _block_jobs(self) -> list[dict[str, Any]]:
        under_way = []
        for name, job in self.jobs.items():
            if job["status"] == "concluded":
                continue
            told = {"device": name, "offset": 8, "len": 8, "ready": job["status"] == "ready", "io-status": "ok"}
            under_way.append(told | ({"actively-synced": job["step"]} if self.later else {}))
            job["status"] = "ready"  # the next time
        return under_way

    def _change(self, arguments: dict[str, Any]) -> Reply:
        self.jobs[arguments["id"]]["step"] = True
        return {}

    def _end(self, arguments: dict[str, Any]) -> Reply:
        job = self.jobs.get(arguments["device"])
        if job is None or job["status"] == "concluded":
            return Fails(f"Block job '{arguments['device']}' not found", "DeviceNotActive")
        if arguments.get("force"):
            job["error"] = "Operation canceled"
        elif not self.connected or job.get("cut"):
            job["error"] = "Input/output error"
        elif not job["step"] and self.source.running and "j0" in arguments["device"]:
            self.wrong.append("a copy that was ended while the guest writes")
        job["status"] = "concluded"
        return {}

    def _dismiss(self, name: str) -> Reply:
        if self.jobs.pop(name, None) is None:
            return Fails("Job not found")
        return {}

    def _yank(self, arguments: dict[str, Any], yank_migration: Any) -> Reply:
        [instance] = arguments["instances"]
        if instance["type"] == "migration":
            return yank_migration(arguments)
        if instance["node-name"] not in self.nodes["a"]:
            return Fails("Instance not found")
        for job in self.jobs.values():
            if job["target"] == instance["node-name"]:
                job["cut"] = True
        return {}

    def _look_at_disks(self) -> None:
        if len(self.jobs) != len(COPIES) or any(
            j["status"] != "concluded" or j.get("error") for j in self.jobs.values()
        ):
            self.wrong.append(f"let go on before its disks are whole: {self.jobs}")
        if self.exports or self.serves or self.nodes["b"]:
            self.wrong.append("let go on while somebody may write to its disks over there")

    def _look_at_exports(self) -> None:
        if self.exports or self.nodes["b"]:
            self.wrong.append("it runs while somebody may write to its disks")

    # -- what the hosts do --------------------------------------------------------------------------------------------

    def script(self, source: str, args: Sequence[str]) -> str | None:
        """Do a script on image files; return what it did, None where it is about something else."""
        match source:
            case images._MAKE:
                self.files |= {*args[1::3], *(f"{path}.copying" for path in args[1::3])}
                return "making images"
            case images._REMOVE:
                if self.destination.alive:
                    self.wrong.append("images are removed under a QEMU")
                self.files -= {name for path in args[1:] for name in (path, f"{path}.copying")}
                return "removing images"
            case images._KEEP:
                self.files -= {f"{path}.copying" for path in args[1:]}
                return "keeping images"
            case images._PUT_AWAY:
                if self.source.alive:
                    self.wrong.append("images are put away under a QEMU")
                self.put_away.append(args[2])
                return "putting images away"
        return None

    @property
    def left(self) -> list[str]:
        """What of the copies is in the source's QEMU, and at the destination."""
        here = [*self.jobs, *self.nodes["a"], *(name for name in self.source.objects if name.endswith("nbd"))]
        return sorted(here) + sorted(self.files)

    def untruths(self, owner: str) -> list[str]:
        """Return what is not as it should be at the end, where the guest is that side's."""
        found = []
        if owner == "source":
            if self.left:
                found.append(f"left of the copies: {self.left}")
            if self.put_away:
                found.append("put away: the guest's own images")
        if owner == "destination":
            if self.files != {copy.path for copy in COPIES}:
                found.append(f"files: {self.files}")
            if set(self.put_away) != {"/a/one.raw"}:
                found.append(f"put away: {self.put_away}")
        return found


@dataclass
class DiskPair(QemuPair):
    """A pair that carries disks."""

    later: bool = False
    disks: Disks = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.disks = Disks(self, later=self.later)

    def side(self, name: str) -> Side:
        qemu = self.source if name == "a" else self.destination
        process = SOURCE if name == "a" else None
        host = DiskHost(name, qemu)
        host.disks = self.disks
        return Side(host, HostSettings(address=f"192.0.2.{ord(name)}"), "web1", process=process)


class DiskHost(PairHost):
    """A host of the pair: its scripts for image files are done on `Disks.files`."""

    disks: Disks

    def _do(self, source: str, args: Sequence[str]) -> bytes:
        self.disks.script(source, args)
        return super()._do(source, args)


def _block(name: str, node: str) -> dict[str, Any]:
    image = {"filename": f"/a/{name}", "format": "raw", "virtual-size": 1 << 20}
    return {
        "device": name,
        "inserted": {"node-name": node, "drv": "raw", "ro": False, "file": f"/a/{name}", "image": image},
    }
