"""A model of one guest that more than one controller wants: the QEMUs, the stream, the hosts' locks, the guardian.

Where `exhaustive_model` has one controller and is walked through whole, this one has what lies around it as well, and is
walked through at random by `test_decision_model.py`. Two things are kept apart on purpose: what a controller *sends* is put
in flight and has its effect when it *arrives*, which may be much later or never; and a host knows only which connections are
open, not who is right. What `controller_model` decides comes from `decision.decide`, always from a look that may
be out of date by then.

Everything may happen between any two steps: a lease may end at any time (its holder was frozen, cut off, or believed to be),
the guardian may believe at any time that nobody is there. Each `Bug` takes one protection away, to see that it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Final, Literal, NamedTuple

from qmp_migrate.migration.ownership import decision
from qmp_migrate.migration.ownership.decision import Action, Destination, Goal, Source
from tests.support.models import exhaustive_model

A, B = 0, 1  # the source's host and the destination's

Src = Literal[
    *("copying", "holding", "switching", "failing", "runs-on", "runs-again", "completed", "resumed"),
    *("postcopy", "interrupted", "dead"),
]
Dst = Literal["incoming", "loaded", "running", "halted", "waiting", "postcopy", "stuck", "dead"]
Stream = Literal["flows", "answers lost", "silent", "broken"]

SOURCE_WORDS: Final[dict[str, tuple[str, str]]] = {
    **exhaustive_model.SOURCE_WORDS,
    "postcopy": ("finish-migrate", "postcopy-active"),
    "interrupted": ("finish-migrate", "postcopy-paused"),
}  # what ``query-status`` and ``query-migrate`` say

DESTINATION_WORDS: Final[dict[str, tuple[str, str]]] = {
    **exhaustive_model.DESTINATION_WORDS,
    "waiting": ("paused", "postcopy-active"),  # its device state is there; it waits for `cont`
    "postcopy": ("running", "postcopy-active"),
    "stuck": ("running", "postcopy-paused"),  # says that it runs; its vCPU waits for a page that does not come
}

FROM_AFAR: Final = {"postcopy", "interrupted"}

IN_POSTCOPY: Final = {"waiting", "postcopy", "stuck"}


class Bug(StrEnum):
    """One protection that is taken away."""

    EPOCH_IGNORED = "a controller may come back under an epoch that is not the newest"
    NO_EVICTION = "who takes a lock over leaves the old holder's connection open"
    TIMEOUT_IS_DEATH = "who does not answer counts as dead"
    KILL_NOT_CONFIRMED = "a kill that was sent counts as done"
    EARLY_COMMIT = "`cont` is sent once the destination has loaded, whatever the source says"
    GUARDIAN_RESUMES = "the guardian continues a source that is completed"
    ARMED_TOO_LATE = "the journal is written after `cont`"
    JOURNAL_READ_EARLY = "the journal is read before the locks are taken"
    JOURNAL_UNFENCED = "an old controller may take back what the journal says"
    RISE_IGNORED = "a controller trusts its journal although another one had the guest since"
    POSTCOPY_FORGOTTEN = "that post-copy was asked for is not known once another controller takes over"
    RISE_FORGOTTEN = "that another one had the guest since is known, but not written down with the new epoch"


class Variant(NamedTuple):
    """What kind of migration, and of fleet.

    Attributes:
        guarded: The source waits at pre-switchover, and its agent's guardian may take the guest back there.
        postcopy: The controller may switch to post-copy.
        shared: Both controllers write into one journal; else each into its own.
        paused: The guest was paused when it began.
        stopped: We have stopped it so that its memory can travel: where it fails, it does not run on by itself.
        bug: The seeded one.
    """

    guarded: bool = False
    postcopy: bool = False
    shared: bool = True
    paused: bool = False
    stopped: bool = False
    bug: Bug | None = None


class Host(NamedTuple):
    """A host: the guest's epoch, and who is connected.

    Attributes:
        epoch: The number in the guest's epoch file.
        holder: The controller that has the lock, which may have died; None: nobody.
        open: The epochs of the connections that are open; what was sent over a closed one is lost.
    """

    epoch: int = 1
    holder: int | None = 0
    open: tuple[int, ...] = (1,)


class Journal(NamedTuple):
    """What is on disk.

    Attributes:
        armed: The destination may have run.
        postcopy: Post-copy may have been asked for.
        committed: It was seen to run.
        epoch: The newest one that its controller had.
    """

    armed: bool = False
    postcopy: bool = False
    committed: bool = False
    epoch: int = 1


class Command(NamedTuple):
    """Something that was sent to a host and has not arrived.

    Attributes:
        epoch: Of the connection.
        act: What: an `Action`, or ``postcopy``.
        deaths: How many QEMUs had died when it was decided.
    """

    epoch: int
    act: Action | Literal["postcopy"]
    deaths: int

    @property
    def host(self) -> int:
        return B if self.act in {Action.KILL_DESTINATION, Action.COMMIT, Action.CONTINUE_DESTINATION} else A


class Move(NamedTuple):
    """What a controller is in the middle of: it has seen some of both QEMUs, or has decided."""

    status: str | None = None
    source: Source | None = None
    destination: Destination | None = None
    action: Action | None = None
    deaths: int = 0


class Controller(NamedTuple):
    """A controller.

    Attributes:
        alive: It runs.
        epoch: Its epoch; 0: it has none yet.
        taken: The locks it has taken and not begun under.
        before: The highest epoch it found there; None: it has not raised it yet, or has claimed the guest in its journal.
        cut: It cannot reach this host.
        knows: It has been there from the beginning.
        armed, postcopy, committed: What it has read in its journal, or written.
        sent: It has sent `cont`.
        others: It has found that another controller had the guest since.
        heard: It has heard the source say ``completed``.
        yanked: It has yanked a stuck source.
        believed: It takes its kill for done (a bug).
    """

    alive: bool = False
    epoch: int = 0
    taken: tuple[bool, bool] = (False, False)
    before: int | None = None
    cut: tuple[bool, bool] = (False, False)
    goal: Goal = Goal.FORWARD
    knows: bool = False
    armed: bool = False
    postcopy: bool = False
    committed: bool = False
    sent: bool = False
    others: bool = False
    heard: bool = False
    yanked: bool = False
    believed: bool = False
    move: Move | None = None


class World(NamedTuple):
    """Everything there is.

    Attributes:
        late: Post-copy was asked for: the source begins with it when it gets to it, or when it leaves pre-switchover.
        flight: What was sent and has not arrived.
        ran: The destination has run the guest.
        stale: The source has run the guest on after the destination had loaded it.
        deaths: How many QEMUs have died, or guests powered off.
        guardian: The guardian has seen pre-switchover and believes that nobody is there.
        wrong: What must never happen and did.
    """

    variant: Variant = Variant()
    src: Src = "copying"
    dst: Dst = "incoming"
    stream: Stream = "flows"
    late: bool = False
    hosts: tuple[Host, Host] = (Host(), Host())
    controllers: tuple[Controller, Controller] = (Controller(True, 1, knows=True), Controller())
    journals: tuple[Journal, Journal] = (Journal(), Journal(armed=True, epoch=0))
    flight: tuple[Command, ...] = ()
    ran: bool = False
    stale: bool = False
    deaths: int = 0
    guardian: bool = False
    wrong: tuple[str, ...] = ()

    # -- what is the case -----------------------------------------------------------------------------------------

    @property
    def source_runs(self) -> bool:
        by_itself = {"copying", "runs-on"} if not self.variant.stopped else set()
        return self.src in {"runs-again", "resumed", *by_itself} and not self.variant.paused

    @property
    def guest_exists(self) -> bool:
        """There is a copy that may be run, or in post-copy two halves of one."""
        if self.src in FROM_AFAR:
            return self.dst != "dead"
        if self.dst in IN_POSTCOPY:
            return self.src == "completed"
        return (self.dst in {"loaded", "running", "halted"} and not self.stale) or (self.src != "dead" and not self.ran)

    def seen_source(self, status: str) -> Source:
        """Return the source as it is sorted after ``query-migrate`` has said `status` and ``query-status`` is asked."""
        run_state = SOURCE_WORDS[self.src][0]
        stands = self.variant.paused or (self.variant.stopped and self.src in {"copying", "runs-on"})
        if run_state == "running" and stands:
            run_state = "paused"
        return decision.classify_source(alive=True, run_state=run_state, status=status)

    def seen_destination(self) -> Destination:
        if self.dst == "dead":
            return decision.classify_destination(alive=False, run_state=None, status=None)
        run_state, status = DESTINATION_WORDS[self.dst]
        return decision.classify_destination(alive=True, run_state=run_state, status=status)

    def checked(self) -> World:
        """Return this world, with a note of what must not be."""
        wrong = []
        if self.source_runs and self.dst in {"running", "postcopy"}:
            wrong.append("two copies run")
        if self.source_runs and self.ran:
            wrong.append("the source runs after the destination has")
        if self.ran and self.stale:
            wrong.append("the destination runs after the source has run on")
        return self._replace(wrong=(*self.wrong, *wrong)) if wrong else self

    # -- what the QEMUs do ----------------------------------------------------------------------------------------

    def by_itself(self) -> Iterator[tuple[str, World]]:
        """Yield what the QEMUs do sooner or later if nothing goes wrong any more."""
        arrives = self.stream in {"flows", "answers lost"}
        match self.src, self.dst:
            case "copying", "incoming" if arrives:
                if self.late and not self.variant.guarded:
                    yield "the source turns to post-copy", self._replace(src="postcopy")
                elif self.variant.guarded:
                    yield "the source waits at pre-switchover", self._replace(src="holding")
                else:
                    yield "the source stops", self._replace(src="switching")
            case "switching", "incoming" if arrives:
                yield "the destination has loaded", self._replace(dst="loaded")
            case "switching", "loaded" if self.stream == "flows":
                yield "the source is completed", self._replace(src="completed")
            case "failing", _:
                stale = self.dst == "loaded" and not self.variant.stopped
                yield "the source runs on", self._replace(src="runs-on", stale=stale).checked()
            case (("dead" | "runs-on" | "runs-again"), "incoming"):
                yield "the destination ends: nobody sends", self._replace(dst="dead")
            case _, "incoming" if self.stream == "broken":
                yield "the destination ends: nobody sends", self._replace(dst="dead")
            case (("copying" | "switching" | "postcopy"), "dead") if self.stream != "silent":
                yield "the source notices", self.breaks()
            case "postcopy", "incoming" if arrives:
                yield "the destination has the devices", self._replace(dst="waiting")
            case "postcopy", "postcopy" if arrives:
                yield "the last page has arrived", self._replace(dst="running")
            case "postcopy", "waiting" if arrives and self.variant.paused:
                yield "the last page has arrived", self._replace(dst="loaded")
            case "postcopy", ("running" | "halted" | "loaded") if self.stream == "flows":
                yield "the source is completed", self._replace(src="completed")
            case (("dead" | "interrupted"), ("postcopy" | "waiting")):
                yield "the destination waits for a page", self._replace(dst="stuck")

    def breaks(self) -> World:
        """Break the stream: each QEMU gives up as it does then."""
        after: dict[Src, Src] = {"copying": "runs-on", "switching": "failing", "postcopy": "interrupted"}
        return self._replace(src=after.get(self.src, self.src), stream="broken").checked()

    def faults(self) -> Iterator[tuple[str, World]]:
        """Yield what may go wrong with the QEMUs and the stream."""
        if self.src != "dead":
            yield "the source dies", self._replace(src="dead", deaths=self.deaths + 1)
        if self.dst != "dead":
            yield "the destination dies", self._replace(dst="dead", deaths=self.deaths + 1)
        if self.src == "copying" and self.late and not self.variant.guarded:
            yield "it is done before it turns", self._replace(src="switching", late=False)
        if self.src == "postcopy" and self.dst == "waiting" and self.stream == "flows":
            yield "the last page comes before `cont`", self._replace(dst="loaded")
        if self.dst == "running":
            yield "the guest powers off", self._replace(dst="halted", deaths=self.deaths + 1)
        if self.stream == "flows":
            yield "the stream's answers are lost", self._replace(stream="answers lost")
        if self.stream in {"flows", "answers lost"}:
            yield "the stream goes silent", self._replace(stream="silent")
        if self.stream in {"silent", "answers lost"}:
            yield "the stream flows again", self._replace(stream="flows")
        if self.stream != "broken":
            yield "the stream breaks", self.breaks()

    def guardians(self) -> Iterator[tuple[str, World]]:
        """Yield what the source's guardian does: it looks, and takes the guest back later, rightly or not.

        It keeps away from what may turn into post-copy: its cancel could come after that, and QEMU 7.2 would obey.
        """
        if not self.variant.guarded or self.variant.postcopy:
            return
        if self.guardian:
            yield "the guardian is started anew", self._replace(guardian=False)
            yield "the guardian cancels", self._replace(guardian=False)._act(Action.CANCEL_SOURCE)
        elif self.src == "holding":
            yield "the guardian sees pre-switchover, and nobody", self._replace(guardian=True)
        elif self.src == "completed" and self.variant.bug is Bug.GUARDIAN_RESUMES:
            yield "the guardian resumes the source", self._act(Action.RESUME_SOURCE)

    # -- what is in flight ----------------------------------------------------------------------------------------

    def flying(self) -> Iterator[tuple[str, World]]:
        """Yield what may become of what was sent."""
        for place, command in enumerate(self.flight):
            without = self._replace(flight=self.flight[:place] + self.flight[place + 1 :])
            if self._ahead(place):
                yield f"`{command.act}` of epoch {command.epoch} arrives", without.arrives(command)
            yield f"`{command.act}` of epoch {command.epoch} is lost", without

    def _ahead(self, place: int) -> bool:
        """Whether nothing that was sent before over the same connection is still on its way."""
        command = self.flight[place]
        return not any((c.epoch, c.host) == (command.epoch, command.host) for c in self.flight[:place])

    def arrives(self, command: Command) -> World:
        """Do what was sent, if its connection is still there."""
        host = self.hosts[command.host]
        if command.epoch not in host.open:
            return self
        after = self._act(command.act)
        wrong = list(after.wrong)
        if after != self and command.epoch < host.epoch:
            wrong.append(f"`{command.act}` of epoch {command.epoch} had an effect under epoch {host.epoch}")
        if self.guest_exists and not after.guest_exists and command.deaths == self.deaths:
            wrong.append(f"`{command.act}` loses the guest")
        return after._replace(wrong=tuple(wrong))

    def _act(self, act: Action | Literal["postcopy"]) -> World:
        """Return the world after something was done to whatever is there by now."""
        forbidden = {Action.CANCEL_SOURCE, Action.YANK_SOURCE, Action.RESUME_SOURCE, Action.KILL_DESTINATION}
        # A paused guest is the destination's once it has loaded: in post-copy that means the last page, too.
        if self.dst not in {"running", "halted", *(["loaded"] if self.variant.paused else [])}:
            forbidden.add(Action.RELEASE_SOURCE)
        if self.src in FROM_AFAR and act in forbidden:
            return self._replace(wrong=(*self.wrong, f"`{act}` in post-copy"))
        match act:
            case Action.CANCEL_SOURCE if self.src in {"copying", "holding"}:
                return self._replace(src="runs-on", stream="broken").checked()
            case Action.CANCEL_SOURCE | Action.YANK_SOURCE if self.src in {"copying", "switching"}:
                return self.breaks()
            case Action.YANK_SOURCE if self.src == "holding":
                return self._replace(stream="broken")
            case Action.CONTINUE_SOURCE if self.src == "holding":
                if self.late:
                    return self._replace(src="interrupted" if self.stream == "broken" else "postcopy")
                return self._replace(src="failing" if self.stream == "broken" else "switching")
            case Action.RESUME_SOURCE if self.src == "runs-on" and self.variant.stopped:
                return self._replace(src="runs-again", stale=self.dst == "loaded").checked()
            case Action.RESUME_SOURCE if self.src == "completed":
                return self._replace(src="resumed", stale=self.dst == "loaded").checked()
            case Action.KILL_DESTINATION:
                return self._replace(dst="dead")
            case Action.RELEASE_SOURCE | Action.END_SOURCE:
                return self._replace(src="dead")
            case Action.COMMIT | Action.CONTINUE_DESTINATION if self.dst == "incoming":
                return self._replace(wrong=(*self.wrong, "`cont` to a destination that still loads"))
            case Action.COMMIT | Action.CONTINUE_DESTINATION if self.dst == "loaded":
                return self._replace(dst="running", ran=True).checked()
            case Action.COMMIT | Action.CONTINUE_DESTINATION if self.dst == "waiting":
                return self._replace(dst="postcopy", ran=True).checked()
            case Action.COMMIT | Action.CONTINUE_DESTINATION if self.dst == "stuck":
                return self._replace(ran=True).checked()
            case Action.PAUSE_POSTCOPY if self.src == "postcopy":
                return self._replace(src="interrupted", stream="broken")
            case Action.RECOVER_POSTCOPY if self.src == "interrupted" and self.dst in IN_POSTCOPY:
                return self._replace(src="postcopy", dst="postcopy" if self.ran else "waiting", stream="flows")
            case "postcopy" if self.src == "copying":
                return self._replace(late=True)
        return self

    # -- hosts ----------------------------------------------------------------------------------------------------

    def leases(self) -> Iterator[tuple[str, World]]:
        """Yield the ends of locks."""
        for number, host in enumerate(self.hosts):
            if host.holder is not None:
                name = f"the lock of controller {host.holder} on {'ab'[number]} ends"
                yield name, self.with_host(number, host._replace(holder=None, open=self.left_open(host)))

    def left_open(self, host: Host) -> tuple[int, ...]:
        """Return the connections that outlive the end of a lock."""
        return host.open if self.variant.bug is Bug.NO_EVICTION else ()

    def with_host(self, number: int, host: Host) -> World:
        return self._replace(hosts=(host, self.hosts[1]) if number == A else (self.hosts[0], host))

    def with_controller(self, number: int, controller: Controller) -> World:
        first, second = self.controllers
        return self._replace(controllers=(controller, second) if number == 0 else (first, controller))

    def journal_of(self, number: int) -> Journal:
        return self.journals[0 if self.variant.shared else number]

    def with_journal(self, number: int, journal: Journal) -> World:
        if self.variant.shared or number == 0:
            return self._replace(journals=(journal, self.journals[1]))
        return self._replace(journals=(self.journals[0], journal))
