"""A small model of one migration: two QEMUs, the stream between them, a journal, and a controller that may die.

Everything that may happen next to a `World` is listed by `World.steps`: what QEMU does by itself, faults (either QEMU dies,
the stream breaks or goes silent, an answer does not come, the controller is started anew), and the controller's own next
move: look at the source's run state, at its migration status, at the destination, decide, act. Anything may happen
between any two of these, so a decision is always made from a look that may be out of date. `explore` then walks through
*all* histories; that is a proof over the model, where random tests would be a sample.

What the QEMUs do is what 7.2 and 10.0 were seen to do (`research/reliability.md` §2, §6).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from qmp_migrate.migration.ownership import decision as ownership_decision
from qmp_migrate.migration.ownership.decision import Action, Decision, Destination, Facts, Goal, Source

Src = Literal[
    *("copying", "holding", "switching", "failing", "runs-on", "runs-again", "completed", "resumed"),
    *("postcopy", "interrupted", "dead"),
]
Dst = Literal["incoming", "loaded", "running", "halted", "waiting", "postcopy", "stuck", "dead"]

SOURCE_WORDS: Final[dict[Src, tuple[str, str]]] = {
    "copying": ("running", "active"),
    "holding": ("finish-migrate", "pre-switchover"),
    "switching": ("finish-migrate", "device"),
    "failing": ("finish-migrate", "failed"),  # for an instant, before it resumes by itself
    "runs-on": ("running", "failed"),
    "runs-again": ("running", "failed"),
    "completed": ("postmigrate", "completed"),
    "resumed": ("running", "completed"),
    "postcopy": ("finish-migrate", "postcopy-active"),
    "interrupted": ("finish-migrate", "postcopy-paused"),
}
"""What ``query-status`` and ``query-migrate`` say."""

DESTINATION_WORDS: Final[dict[Dst, tuple[str, str]]] = {
    "incoming": ("inmigrate", "active"),
    "loaded": ("paused", "completed"),
    "running": ("running", "completed"),
    "halted": ("shutdown", "completed"),
    "waiting": ("paused", "postcopy-active"),  # its device state is there; it waits for `cont`
    "postcopy": ("running", "postcopy-active"),
    "stuck": ("running", "postcopy-paused"),  # says that it runs; its vCPU waits for a page that does not come
}

FROM_AFAR: Final = {"postcopy", "interrupted"}
IN_POSTCOPY: Final = {"waiting", "postcopy", "stuck"}

FINAL: Final = {
    Action.FINISHED_AT_SOURCE,
    Action.FINISHED_AT_DESTINATION,
    Action.RELEASE_SOURCE,
    Action.GUEST_GONE,
    Action.SPLIT_BRAIN,
    Action.PARK,
}


class Move(NamedTuple):
    """What the controller is in the middle of: it has seen some of both QEMUs, or has decided on an action as well."""

    run_state: str | None = None
    source: Source | None = None
    action: Action | None = None


class World(NamedTuple):
    """Everything there is.

    Attributes:
        stopped: We have stopped the guest so that its memory can travel: where it fails, it does not run on by itself.
        may_turn: The controller may ask for post-copy.
        asked: It has, or was about to; this is in the journal.
        turning: The source has been told.
        flows: The stream between the two works.
        armed: The journal says that the destination may have run.
        sent: This controller has sent ``cont``; forgotten when it is started anew.
        knows: This controller has been there from the beginning.
        on_its_way: A ``cont`` that was sent and has not arrived.
        ran: The destination has run the guest.
        stale: The source has run the guest on after the destination had loaded it.
        seen_completed: This controller has heard the source say ``completed``.
        move: What the controller is in the middle of; None: nothing.
    """

    src: Src = "copying"
    dst: Dst = "incoming"
    stopped: bool = False
    may_turn: bool = False
    asked: bool = False
    turning: bool = False
    flows: bool = True
    armed: bool = False
    sent: bool = False
    knows: bool = True
    on_its_way: bool = False
    ran: bool = False
    stale: bool = False
    seen_completed: bool = False
    move: Move | None = None

    @property
    def source_runs(self) -> bool:
        by_itself = {"copying", "runs-on"} if not self.stopped else set()
        return self.src in {"runs-again", "resumed", *by_itself}

    @property
    def run_state(self) -> str:
        """What ``query-status`` says at the source."""
        stands = self.stopped and self.src in {"copying", "runs-on"}
        return "paused" if stands else SOURCE_WORDS[self.src][0]  # type: ignore[index]  # of a dead one nobody asks

    @property
    def guest_exists(self) -> bool:
        """Some QEMU holds a copy of the guest that may be run: the newest one."""
        if self.src in FROM_AFAR:
            return self.dst != "dead"
        if self.dst in IN_POSTCOPY:
            return self.src == "completed"
        at_destination = self.dst in {"loaded", "running", "halted"} and not self.stale
        return at_destination or (self.src != "dead" and not self.ran)

    def facts(self, *, patience: bool) -> Facts:
        return Facts(
            may_have_run=self.armed,
            never_ran=self.knows and not self.sent,
            source_completed=self.seen_completed,
            stopped_by_us=self.stopped,
            postcopy=self.asked,
            patience=patience,
        )

    def steps(self) -> Iterator[tuple[str, World]]:
        """Yield all that may happen next, by name."""
        yield from self.by_itself()
        yield from self._faults()
        yield from self._controller()

    # -- the QEMUs ------------------------------------------------------------------------------------------------

    def by_itself(self) -> Iterator[tuple[str, World]]:
        """Yield what happens sooner or later if nothing goes wrong any more."""
        match self.src, self.dst:
            case "copying", "incoming" if self.flows and self.turning:
                yield "the source turns to post-copy", self._replace(src="postcopy")
            case "postcopy", "incoming" if self.flows:
                yield "the destination has the devices", self._replace(dst="waiting")
            case "postcopy", "postcopy" if self.flows:
                yield "the last page has arrived", self._replace(dst="running")
            case "postcopy", ("running" | "halted" | "loaded") if self.flows:
                yield "the source is completed", self._replace(src="completed")
            case (("dead" | "interrupted"), ("postcopy" | "waiting")):
                yield "the destination waits for a page", self._replace(dst="stuck")
            case "copying", "incoming" if self.flows:
                yield "the source stops", self._replace(src="switching")
                yield "the source waits at pre-switchover", self._replace(src="holding")
            case "switching", "incoming" if self.flows:
                yield "the destination has loaded", self._replace(dst="loaded")
            case "switching", "loaded" if self.flows:
                yield "the source is completed", self._replace(src="completed")
            case "failing", _:
                yield (
                    "the source runs on",
                    self._replace(src="runs-on", stale=self.dst == "loaded" and not self.stopped),
                )
            case (("dead" | "runs-on" | "runs-again"), "incoming"):
                yield "the destination ends: nobody sends", self._replace(dst="dead")
            case (("copying" | "switching" | "postcopy"), "dead") if self.flows:
                yield "the source notices", self._stream_breaks()
        if self.on_its_way:
            arrived = self._replace(on_its_way=False)
            if self.dst == "loaded":
                arrived = arrived._replace(dst="running", ran=True)
            elif self.dst in IN_POSTCOPY:
                arrived = arrived._replace(dst="stuck" if self.dst == "stuck" else "postcopy", ran=True)
            yield "`cont` arrives", arrived

    def _faults(self) -> Iterator[tuple[str, World]]:
        if self.src != "dead":
            yield "the source dies", self._replace(src="dead")
        if self.dst != "dead":
            yield "the destination dies", self._replace(dst="dead")
        if self.dst == "running":
            yield "the guest powers off", self._replace(dst="halted")
        if self.flows and self.src in {"copying", "holding", "switching", "postcopy"}:
            yield "the stream goes silent", self._replace(flows=False)
        if self.src == "copying" and self.turning and self.flows:
            yield "it is done before it turns", self._replace(src="switching", turning=False)
        if self.src == "postcopy" and self.dst == "waiting" and self.flows:
            yield "the last page comes before `cont`", self._replace(dst="loaded")
        if self.src in {"copying", "switching", "postcopy"}:
            yield "the stream breaks", self._stream_breaks()
        if self.on_its_way:
            yield "`cont` is lost", self._replace(on_its_way=False)
        if self.knows or self.move is not None:
            yield "the controller is started anew", self._replace(knows=False, seen_completed=False, move=None)
        if self.may_turn and self.knows and not self.asked and not self.sent and self.move is None:
            told = self._replace(asked=True, armed=False)
            yield "post-copy is asked for, and that is lost", told
            yield "post-copy is asked for", told._replace(turning=self.src == "copying")
        if not self.armed and self.knows and self.src in {"copying", "holding", "switching", "postcopy"}:
            yield "the journal is armed", self._replace(armed=True)

    def _stream_breaks(self) -> World:
        """Break the connection: the source gives up and runs on, the destination as well unless it has everything."""
        after: dict[Src, Src] = {"copying": "runs-on", "switching": "failing", "postcopy": "interrupted"}
        return self._replace(src=after.get(self.src, self.src), flows=False)

    # -- the controller ---------------------------------------------------------------------------------------------

    def _controller(self) -> Iterator[tuple[str, World]]:
        move = self.move
        if move is None:
            yield from self._no_answer()
            if self.src == "dead":
                yield "looks at the source: gone", self._sorted(None, None, alive=False)
            else:
                run_state = self.run_state
                yield f"looks at the source: {run_state}", self._replace(move=Move(run_state=run_state))
        elif move.source is None:
            yield from self._no_answer()
            if self.src != "dead":
                status = SOURCE_WORDS[self.src][1]
                yield f"looks at the source: migration {status}", self._sorted(move.run_state, status, alive=True)
        elif move.action is None:
            seen = {self.destination()} | ({Destination.UNKNOWN, Destination.HANGS} if self.dst != "dead" else set())
            for destination in sorted(seen):
                for goal in Goal:
                    for patience in (True, False):
                        decision = ownership_decision.decide(
                            move.source, destination, self.facts(patience=patience), goal
                        )
                        name = f"sees {move.source}/{destination}, {goal}, patience {patience}: {decision.action}"
                        yield name, self._replace(move=Move(source=move.source, action=decision.action))
        else:
            still = self._replace(move=None)
            yield f"fails to {move.action}", still
            yield f"does {move.action}", still.act(move.action)

    def _no_answer(self) -> Iterator[tuple[str, World]]:
        yield "looks at the source: no answer", self._sorted(None, None, alive=None)
        if self.src != "dead":
            yield "looks at the source: no answer, but it lives", self._sorted(None, None, alive=True)

    def _sorted(self, run_state: str | None, status: str | None, *, alive: bool | None) -> World:
        source = ownership_decision.classify_source(alive=alive, run_state=run_state, status=status)
        return self._replace(move=Move(source=source), seen_completed=self.seen_completed or status == "completed")

    def source(self) -> Source:
        """Return what one look at the source gives, if it answers; a hung one is only known to live."""
        if self.src == "dead":
            return ownership_decision.classify_source(alive=False, run_state=None, status=None)
        if self.src == "switching" and not self.flows:
            return ownership_decision.classify_source(alive=True, run_state=None, status=None)
        return ownership_decision.classify_source(
            alive=True, run_state=self.run_state, status=SOURCE_WORDS[self.src][1]
        )

    def destination(self) -> Destination:
        """Return what a look at the destination gives, if it answers."""
        if self.dst == "dead":
            return ownership_decision.classify_destination(alive=False, run_state=None, status=None)
        run_state, status = DESTINATION_WORDS[self.dst]
        return ownership_decision.classify_destination(alive=True, run_state=run_state, status=status)

    def act(self, action: Action) -> World:
        """Return the world after an action, done to whatever is there by now."""
        match action:
            case Action.CANCEL_SOURCE if self.src in {"copying", "holding"}:
                return self._replace(src="runs-on", flows=False)
            case Action.CANCEL_SOURCE | Action.YANK_SOURCE if self.src in {"copying", "switching"}:
                return self._stream_breaks()
            case Action.CONTINUE_SOURCE if self.src == "holding":
                return self._replace(src="switching")
            case Action.RESUME_SOURCE if self.src == "runs-on" and self.stopped:
                return self._replace(src="runs-again", stale=self.dst == "loaded")
            case Action.RESUME_SOURCE if self.src == "completed":
                return self._replace(src="resumed", stale=self.dst == "loaded")
            case Action.KILL_DESTINATION:
                return self._replace(dst="dead", on_its_way=False)
            case Action.COMMIT | Action.CONTINUE_DESTINATION:
                return self._replace(armed=True, sent=True, on_its_way=True)
            case Action.RELEASE_SOURCE | Action.END_SOURCE:
                return self._replace(src="dead")
            case Action.PAUSE_POSTCOPY if self.src == "postcopy":
                return self._replace(src="interrupted", flows=False)
            case Action.RECOVER_POSTCOPY if self.src == "interrupted" and self.dst in IN_POSTCOPY:
                return self._replace(src="postcopy", dst="postcopy" if self.ran else "waiting", flows=True)
        return self


START: Final = World()


def explore(start: World = START) -> dict[World, tuple[World, str] | None]:
    """Return every world that can be reached, each with the one before it and what happened."""
    seen: dict[World, tuple[World, str] | None] = {start: None}
    frontier = [start]
    while frontier:
        following = []
        for world in frontier:
            for name, after in world.steps():
                if after not in seen:
                    seen[after] = (world, name)
                    following.append(after)
        frontier = following
    return seen


def history(worlds: dict[World, tuple[World, str] | None], world: World) -> str:
    """Tell one shortest way to a world, one step per line."""
    lines = [f"=> {world}"]
    at: World | None = world
    while at is not None and (step := worlds[at]) is not None:
        at, name = step
        lines.append(name)
    return "\n".join(reversed(lines))


def settle(world: World, goal: Goal) -> tuple[World, Decision]:
    """Let nothing go wrong any more, and look, decide and act until it ends.

    Returns:
        The world at the end, and the last decision.

    Raises:
        AssertionError: It does not end.
    """
    world = world._replace(move=None)
    for turn in range(40):
        while step := next(world.by_itself(), None):
            world = step[1]
        # A new connection is tried for its own time.
        patience = turn < 3 or (world.src == "interrupted" and turn < 20)
        decision = ownership_decision.decide(world.source(), world.destination(), world.facts(patience=patience), goal)
        if decision.action in FINAL and (decision.action is not Action.PARK or turn > 3):
            return world.act(decision.action), decision
        world = world.act(decision.action)
    raise AssertionError(f"no end: {decision} in {world}")
