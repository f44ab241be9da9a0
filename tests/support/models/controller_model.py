"""The controllers of `contested`: take the locks, look, ask `decision.decide`, act; dying and coming back at any moment.

A look is three questions (the source's migration status, its run state, the destination), a decision is one step and what
it sends another, so that anything may happen between any two of them. What a controller knows beside that is what the
product's controllers know: the one that began has its own memory (`Controller.knows`), everyone else has what the
journal said once both locks were held. With journals of their own, one that finds an epoch it has not written down
itself knows that somebody else had the guest, and then trusts nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmp_migrate.migration.ownership import decision as ownership_decision
from qmp_migrate.migration.ownership.decision import Action, Decision, Destination, Facts, Goal, Source
from tests.support.models.multi_controller_model import SOURCE_WORDS, A, B, Bug, Command, Controller, Move, World

FINAL: Final = {
    Action.FINISHED_AT_SOURCE,
    Action.FINISHED_AT_DESTINATION,
    Action.GUEST_GONE,
    Action.SPLIT_BRAIN,
    Action.PARK,
}


def comes_and_goes(world: World, number: int) -> Iterator[tuple[str, World]]:
    """Yield how a controller is started and dies, loses the network, and takes the guest or loses it for good."""
    controller, who = world.controllers[number], f"controller {number}"
    if not controller.alive:
        journal = world.journal_of(number)
        for goal in Goal:  # `recover`, or `cancel` of a migration whose controller is gone
            new = Controller(True, goal=goal, armed=journal.armed, committed=journal.committed)
            yield f"{who} is started, {goal}", world.with_controller(number, new)
        return
    yield f"{who} dies", world.with_controller(number, Controller())
    for host in (A, B):
        cut = tuple(now != (place == host) for place, now in enumerate(controller.cut))
        verb = "can reach" if controller.cut[host] else "cannot reach"
        yield f"{who} {verb} {'ab'[host]}", world.with_controller(number, controller._replace(cut=cut))
        if not controller.cut[host] and not connected(world, number, host):
            yield from _takes(world, number, host)
    if any(controller.taken):
        yield f"{who} raises the epoch", raise_epoch(world, number)
    if controller.before is not None:
        yield f"{who} claims the guest", claim(world, number)


def _takes(world: World, number: int, place: int) -> Iterator[tuple[str, World]]:
    controller, host = world.controllers[number], world.hosts[place]
    who, where = f"controller {number}", "ab"[place]
    mine = controller.epoch and (host.epoch == controller.epoch or world.variant.bug is Bug.EPOCH_IGNORED)
    if mine and host.holder is None:
        opened = host._replace(holder=number, open=(*host.open, controller.epoch))
        yield f"{who} is back on {where}", world.with_host(place, opened)
    elif controller.epoch and host.epoch > controller.epoch:
        yield f"{who} is told that it is too old", give_up(world, number)
    elif not mine and not controller.taken[place]:
        evicted = host._replace(holder=number, open=world.left_open(host))
        taken = (True, controller.taken[B]) if place == A else (controller.taken[A], True)
        after = world.with_host(place, evicted).with_controller(number, controller._replace(taken=taken))
        yield f"{who} takes the lock on {where}", after


def raise_epoch(world: World, number: int) -> World:
    """Raise the epoch on the hosts that are locked: from now on whoever had the guest can do nothing more."""
    controller = world.controllers[number]
    held = [place for place in (A, B) if controller.taken[place] and world.hosts[place].holder == number]
    held += [place for place in (A, B) if place not in held and connected(world, number, place)]
    if not held:
        return world.with_controller(number, controller._replace(taken=(False, False)))
    before = max(world.hosts[place].epoch for place in held)
    epoch = max(before, controller.epoch) + 1
    for place in held:
        world = world.with_host(place, world.hosts[place]._replace(epoch=epoch, open=(*_others(world, place), epoch)))
    early = {"armed": controller.armed, "committed": controller.committed}
    new = Controller(True, epoch, before=before, cut=controller.cut, goal=controller.goal, **early)
    return world.with_controller(number, new)


def claim(world: World, number: int) -> World:
    """Write the epoch into the journal, and read what that says, now that nobody else writes there any more."""
    controller, journal = world.controllers[number], world.journal_of(number)
    assert controller.before is not None
    if journal.epoch > controller.epoch:
        return give_up(world, number)
    # Who raised it without writing it here: another controller, or one that died right then. Nobody knows what it did.
    risen = controller.before > journal.epoch and world.variant.bug is not Bug.RISE_IGNORED
    armed, committed = journal.armed or risen, journal.committed and not risen
    postcopy = journal.postcopy or (
        risen and world.variant.postcopy
    )  # the capability is on: they may have asked for it
    if world.variant.bug is Bug.JOURNAL_READ_EARLY:
        armed, committed = controller.armed, controller.committed
    claimed = controller._replace(before=None, armed=armed, postcopy=postcopy, committed=committed, others=risen)
    # That it had risen is written down with it: the next start of this controller must know as well.
    noted = risen and world.variant.bug is not Bug.RISE_FORGOTTEN
    turned = journal.postcopy or (noted and postcopy)
    written = journal._replace(
        epoch=controller.epoch, armed=journal.armed or noted, postcopy=turned, committed=committed
    )
    return world.with_controller(number, claimed).with_journal(number, written)


def _others(world: World, place: int) -> tuple[int, ...]:
    host = world.hosts[place]
    return host.open if world.variant.bug is Bug.NO_EVICTION else ()


def connected(world: World, number: int, place: int) -> bool:
    """Whether a controller's connection to a host is open."""
    epoch = world.controllers[number].epoch
    return epoch != 0 and epoch in world.hosts[place].open


def give_up(world: World, number: int) -> World:
    """End a controller in good order: its locks are released."""
    epoch = world.controllers[number].epoch
    for place, host in enumerate(world.hosts):
        if host.holder == number and epoch in host.open:
            world = world.with_host(place, host._replace(holder=None, open=tuple(e for e in host.open if e != epoch)))
    return world.with_controller(number, Controller())


# -- look, decide, act ------------------------------------------------------------------------------------------------


def goes_on(world: World, number: int) -> Iterator[tuple[str, World]]:
    """Yield what a controller may do next with the guest."""
    controller, who = world.controllers[number], f"controller {number}"
    move = controller.move
    if not controller.alive or not controller.epoch or controller.before is not None:
        return
    if move is None:
        yield from by_its_own_plan(world, number)
        yield from _looks_at_source(world, number)
    elif move.source is None:
        yield f"{who}: the source does not answer", _sees(world, number, source=_silence(world, number, A))
        if answers(world, number, A) and world.src != "dead" and move.status is not None:
            seen = _sees(world, number, source=world.seen_source(move.status))
            yield f"{who} looks at the source: {SOURCE_WORDS[world.src][0]}", seen
    elif move.destination is None:
        believed = controller.believed and world.variant.bug is Bug.KILL_NOT_CONFIRMED
        if not believed:
            silent = Destination.ABSENT if world.variant.bug is Bug.TIMEOUT_IS_DEATH else Destination.UNKNOWN
            yield f"{who}: the destination does not answer", _sees(world, number, destination=silent)
        if believed or answers(world, number, B):
            destination = Destination.ABSENT if believed else world.seen_destination()
            if destination is not Destination.ABSENT:
                hung = ownership_decision.classify_destination(alive=True, run_state=None, status=None)
                yield f"{who}: the destination lives, and does not answer", _sees(world, number, destination=hung)
            yield f"{who} looks at the destination: {destination}", _sees(world, number, destination=destination)
    elif move.action is None:
        for patience in (True, False):
            decision = decide(world, number, patience=patience)
            name = f"{who} sees {move.source}/{move.destination}, {controller.goal}, patience {patience}: "
            yield name + str(decision.action), _with_move(world, number, move._replace(action=decision.action))
    else:
        yield f"{who} fails to {move.action}", _with_move(world, number, None)
        yield f"{who} does {move.action}", act(world, number, move.action)


def by_its_own_plan(world: World, number: int) -> Iterator[tuple[str, World]]:
    """Yield what is no answer to a look: the commit is written in good time, a cancel, the start of post-copy."""
    controller, who = world.controllers[number], f"controller {number}"
    if not controller.alive or not controller.epoch or controller.before is not None:
        return
    if controller.knows and not controller.armed:
        yield f"{who} writes the commit", _armed(world, number)
    if controller.goal is Goal.FORWARD and not controller.sent and not controller.postcopy:
        yield f"{who} turns back", world.with_controller(number, controller._replace(goal=Goal.BACK))
    if controller.knows and controller.armed and not controller.sent and _goes_back(controller):
        journal = world.journal_of(number)
        if journal.epoch == controller.epoch or world.variant.bug is Bug.JOURNAL_UNFENCED:
            world = world.with_journal(number, journal._replace(armed=False))
            yield f"{who} writes that it was no commit", world.with_controller(number, controller._replace(armed=False))
    starts = world.variant.postcopy and controller.knows and controller.goal is Goal.FORWARD and not controller.sent
    if starts and not controller.postcopy:
        # What was written for an ordinary end that seemed near is taken back: this one writes it anew before `cont`.
        journal = world.journal_of(number)
        begun = world
        if journal.epoch == controller.epoch:
            begun = begun.with_journal(number, journal._replace(postcopy=True, armed=False))
        else:
            return  # fenced: it writes nothing, and asks for nothing
        begun = begun.with_controller(number, controller._replace(postcopy=True, armed=False))
        yield f"{who} starts post-copy", _send(begun, number, "postcopy")


def _goes_back(controller: Controller) -> bool:
    return controller.goal is Goal.BACK and not controller.postcopy


def _looks_at_source(world: World, number: int) -> Iterator[tuple[str, World]]:
    controller, who = world.controllers[number], f"controller {number}"
    yield f"{who}: the source does not answer", _sees(world, number, source=_silence(world, number, A))
    if answers(world, number, A):
        if world.src == "dead":
            yield f"{who} looks at the source: gone", _sees(world, number, source=Source.DEAD)
        else:
            yield f"{who}: the source lives, and does not answer", _sees(world, number, source=Source.HANGS)
            status = SOURCE_WORDS[world.src][1]
            heard = controller._replace(move=Move(status=status), heard=controller.heard or status == "completed")
            yield f"{who} looks at the source: migration {status}", world.with_controller(number, heard)


def _silence(world: World, number: int, place: int) -> Source:
    alive = False if world.variant.bug is Bug.TIMEOUT_IS_DEATH else None
    return ownership_decision.classify_source(alive=alive, run_state=None, status=None)


def answers(world: World, number: int, place: int) -> bool:
    """Whether a question can be answered now: what was sent before over the same connection is answered first."""
    controller = world.controllers[number]
    waits = any((c.epoch, c.host) == (controller.epoch, place) for c in world.flight)
    return connected(world, number, place) and not controller.cut[place] and not waits


def _sees(world: World, number: int, *, source: Source | None = None, destination: Destination | None = None) -> World:
    move = world.controllers[number].move or Move()
    if source is not None:
        move = Move(status=move.status, source=source, deaths=world.deaths)
    return _with_move(world, number, move._replace(destination=destination))


def _with_move(world: World, number: int, move: Move | None) -> World:
    return world.with_controller(number, world.controllers[number]._replace(move=move))


def facts(world: World, number: int, *, patience: bool) -> Facts:
    """Return what a controller knows beside what it sees, and what that proves."""
    controller, move = world.controllers[number], world.controllers[number].move
    proven = move is not None and move.source is not None and not controller.others
    proven = proven and ownership_decision.proves_never_ran(move.source, move.status, postcopy=controller.postcopy)
    return Facts(
        may_have_run=controller.armed,
        never_ran=proven or (controller.knows and not controller.sent),
        source_completed=controller.heard or controller.committed,
        was_running=not world.variant.paused,
        stopped_by_us=world.variant.stopped,
        postcopy=controller.postcopy and world.variant.bug is not Bug.POSTCOPY_FORGOTTEN,
        patience=patience,
        yanked=controller.yanked,
    )


def wrong_beliefs(world: World) -> list[str]:
    """Return what a controller that is connected to both hosts takes for a fact and is not so; likewise the journal."""
    wrong = []
    for number, controller in enumerate(world.controllers):
        known = facts(world, number, patience=True)
        in_charge = (
            controller.alive
            and controller.before is None
            and connected(world, number, A)
            and connected(world, number, B)
        )
        if in_charge and world.ran and known.surely_never_ran:
            wrong.append(f"controller {number} is sure that the destination never ran, and it has")
        if in_charge and world.stale and known.source_completed and world.dst == "loaded":
            wrong.append(f"controller {number} is sure that the source has not run on, and it has")
    if world.variant.shared and world.ran and not world.journals[0].armed:
        wrong.append("the destination has run, and the journal does not say that it may have")
    return wrong


def decide(world: World, number: int, *, patience: bool) -> Decision:
    """Ask the product, about what this controller has seen."""
    controller = world.controllers[number]
    assert controller.move is not None
    source, destination = controller.move.source, controller.move.destination
    assert source is not None
    assert destination is not None
    if world.variant.bug is Bug.EARLY_COMMIT and source is Source.SWITCHES and destination is Destination.LOADED:
        return Decision(Action.COMMIT, "the bug")
    return ownership_decision.decide(source, destination, facts(world, number, patience=patience), controller.goal)


def act(world: World, number: int, action: Action) -> World:
    """Return the world after a controller has done what was decided: written, sent, or ended."""
    controller = world.controllers[number]
    if action in FINAL:
        world = world._replace(wrong=(*world.wrong, *_lies(world, action)))
        parked_for_now = action is Action.PARK
        return _with_move(world, number, None) if parked_for_now else give_up(world, number)
    if action is Action.WAIT:
        return _with_move(world, number, None)
    if action in {Action.COMMIT, Action.CONTINUE_DESTINATION}:
        if world.variant.paused:
            return _send(_committed(_armed(world, number), number), number, Action.RELEASE_SOURCE)
        late = world.variant.bug is Bug.ARMED_TOO_LATE
        world = world if late else _armed(world, number)
        world = world.with_controller(number, world.controllers[number]._replace(sent=True, goal=Goal.FORWARD))
    if action is Action.RELEASE_SOURCE:
        world = _committed(world, number)
    if action is Action.YANK_SOURCE:
        world = world.with_controller(number, controller._replace(yanked=True))
    if action is Action.KILL_DESTINATION:
        world = world.with_controller(number, controller._replace(believed=True))
    return _send(world, number, action)


def _lies(world: World, action: Action) -> list[str]:
    """Return what is said of the end and is not so; a QEMU that is dead does not come back."""
    gone: dict[Action, tuple[bool, bool]] = {
        Action.FINISHED_AT_SOURCE: (False, True),
        Action.FINISHED_AT_DESTINATION: (True, False),
        Action.GUEST_GONE: (True, True),
    }
    source, destination = gone.get(action, (False, False))
    lies = ["a split brain was seen"] if action is Action.SPLIT_BRAIN else []
    if source and world.src != "dead":
        lies.append(f"{action}, and the source lives")
    if destination and world.dst != "dead":
        lies.append(f"{action}, and the destination lives")
    return lies


def _armed(world: World, number: int) -> World:
    world = world.with_controller(number, world.controllers[number]._replace(armed=True))
    return world.with_journal(number, world.journal_of(number)._replace(armed=True))


def _committed(world: World, number: int) -> World:
    world = world.with_controller(number, world.controllers[number]._replace(committed=True))
    return world.with_journal(number, world.journal_of(number)._replace(committed=True))


def _send(world: World, number: int, what: Action | str) -> World:
    controller = world.controllers[number]
    deaths = controller.move.deaths if controller.move is not None else world.deaths
    command = Command(controller.epoch, what, deaths)
    return _with_move(world._replace(flight=(*world.flight, command)), number, None)


# -- the end ----------------------------------------------------------------------------------------------------------


def settle(world: World, number: int, goal: Goal, *, delivers: bool, flows: bool) -> tuple[World, Decision]:
    """Let nothing go wrong any more: every controller has died, one comes back and recovers until it ends.

    Args:
        world: Where it begins.
        number: Which controller comes back.
        goal: What it wants.
        delivers: What is in flight still arrives; else it is lost.
        flows: The stream between the two flows again, if it was silent.

    Returns:
        The world at the end, and the last decision.

    Raises:
        AssertionError: It does not end.
    """
    while delivers and world.flight:
        world = world._replace(flight=world.flight[1:]).arrives(world.flight[0])
    world = world._replace(flight=(), guardian=False)
    if flows and world.stream in {"silent", "answers lost"}:
        world = world._replace(stream="flows")
    journal = world.journal_of(number)
    both = (True, True)
    new = Controller(True, taken=both, goal=goal, armed=journal.armed, committed=journal.committed)
    world = world._replace(
        hosts=tuple(host._replace(holder=number, open=world.left_open(host)) for host in world.hosts),
        controllers=(new, Controller()) if number == 0 else (Controller(), new),
    )
    world = claim(raise_epoch(world, number), number)
    for turn in range(60):
        while step := next(world.by_itself(), None):
            world = step[1]
        world = _with_move(
            world,
            number,
            Move(status=_status(world), source=look(world), destination=world.seen_destination(), deaths=world.deaths),
        )
        decision = decide(world, number, patience=turn % 5 < 3)
        if decision.action in FINAL and (decision.action is not Action.PARK or turn > 10):
            return world, decision
        if decision.action is Action.COMMIT and world.variant.paused and world.src == "dead":
            return world, Decision(Action.FINISHED_AT_DESTINATION, "it is there, paused as it was")
        if turn == 20:  # the watchdog
            world = world.with_controller(number, world.controllers[number]._replace(goal=Goal.BACK))
        world = act(world, number, decision.action)
        while world.flight:
            world = world._replace(flight=world.flight[1:]).arrives(world.flight[0])
    raise AssertionError(f"no end: {decision} in {world}")


def _status(world: World) -> str | None:
    return None if world.src == "dead" or hangs(world) else SOURCE_WORDS[world.src][1]


def hangs(world: World) -> bool:
    """The device state was on its way when the stream went silent: QEMU's main loop answers nobody any more."""
    return world.src == "switching" and world.stream in {"silent", "answers lost"}


def look(world: World) -> Source:
    """Return what one look at the source gives, if it answers; a hung one is only known to live."""
    if world.src == "dead":
        return Source.DEAD
    return Source.HANGS if hangs(world) else world.seen_source(SOURCE_WORDS[world.src][1])
