"""What an instance may do, in words of its own: told what happened, in order, it objects at the first wrong step."""

from __future__ import annotations

from attrs import define, field

from tests.stage import UPDATED, Began, Claimed, Effect, Ended, Past, Rows, Sketch, Written, height
from workflow.record import Line


@define
class Instance:
    """One instance: where it is, what it owes, and what it was after each line."""

    sketch: Sketch
    fenced: bool
    """No lease ran out under a living owner."""
    state: str = ""
    status: str = "running"
    n: int = 0
    stack: list[tuple[int, str]] = field(factory=list)
    goal: int = 0
    """Height of the stack to which an undoing leads."""
    owed: list[Effect] = field(factory=list)
    events: list[tuple[int, int, str]] = field(factory=list)
    """Returned by a hook of this line, to be judged once what lines up to that one owe is done."""
    updates: list[int] = field(factory=list)
    running: Effect | None = None
    past: list[Past] = field(factory=lambda: [Past("", "", 0, (), 0)])
    lines: list[Line] = field(factory=list)
    row: str = ""
    """The due row that was fired by the line that is being taken."""
    fired: set[int] = field(factory=set)
    """Lines that a due row caused."""

    def pending(self) -> list[Effect]:
        return [e for e in self.owed if not e.done and not e.void]

    def take(self, written: Written) -> None:
        line, self.row = written
        assert line.seq == len(self.past), "a gap"
        assert (line.source or "") == self.state, "not from here"
        getattr(self, line.kind)(line)
        assert (line.target, line.status) == (self.state, self.status)
        assert line.context in (None, "null" if line.kind == "erase" else str(self.n)), "a wrong context"
        owed = tuple(e.name.split("/", 3)[3] for e in self.owed if e.seq == line.seq)
        assert line.owes == owed, f"owes {line.owes}, not {owed}"
        self.past.append(Past(self.state, self.status, self.n, tuple(s for _, s in self.stack[:-1]), self.goal))
        self.lines.append(line)

    def due(self, entry: Rows | Claimed) -> None:
        """Nothing here has a time."""
        raise AssertionError(entry)

    def owe(self, line: Line, *points: tuple[str, int]) -> None:
        start = f"{line.workflow}/{line.id}/{line.seq}"
        for point, count in points:
            self.owed += [Effect(line.seq, f"{start}/{point}/h{k}", line.kind == "compensate") for k in range(count)]

    def enter(self, line: Line, state: str, *before: tuple[str, int]) -> None:
        self.state = state
        self.stack.append((line.seq, state))
        self.owe(line, *before, (f"enter/{state}", self.sketch.enter.get(state, 0)))

    def start(self, line: Line) -> None:
        assert line.seq == 1
        self.enter(line, self.sketch.states[0])

    def event(self, line: Line) -> None:
        assert (self.status, self.goal) == ("running", 0), "it takes no event now"
        if line.chain:
            assert line.chain <= self.sketch.max_chain
            _, after, event = self.events.pop(0)
            assert (event, [e for e in self.pending() if e.seq <= after]) == (line.event, []), "not its turn"
        found = self.sketch.way(line.event, self.state, self.n)
        assert found is not None, "no edge"
        k, way = found
        self.n += way.adds
        action = (f"action/{self.state}/{line.event}/w{k}", way.actions)
        if way.target is None:
            self.owe(line, action)
        else:
            self.enter(line, way.target, (f"exit/{self.state}", self.sketch.leave.get(self.state, 0)), action)
        self.status = "finished" if self.state in self.sketch.final else "running"
        if line.chain and self.owed and self.owed[-1].seq == line.seq:
            self.events = [(origin, max(after, line.seq), event) for origin, after, event in self.events]

    def update(self, line: Line) -> None:
        self.updates.pop(0)
        self.n += UPDATED

    def refused(self, line: Line) -> None:
        closed = self.status != "running" or line.chain > self.sketch.max_chain
        assert line.event == self.events[0][2]
        assert closed or self.sketch.way(line.event, self.state, self.n) is None, "it might have been taken"
        self.status = "failed"

    def fail(self, line: Line) -> None:
        assert not self.fenced or self.pending()[0].again, "nothing failed"
        self.status = "failed"

    def compensate(self, line: Line) -> None:
        seq, state = self.stack.pop()
        assert (line.undoes, line.source) == (seq, state)
        assert self.goal or line.key, "nobody asked for it"
        if line.key:
            self.goal = self.aim(line)
            lowest = self.lowest(line, (seq, state))
            pending = self.pending()
            for effect in pending:
                effect.void = effect.seq >= lowest and not effect.undoing
                effect.fresh = effect.seq > pending[0].seq
            self.events = [e for e in self.events if e[0] < lowest]
            self.updates = [origin for origin in self.updates if origin < lowest]
        self.state, self.status = self.stack[-1][1], "running"
        mine = [e for e in self.owed if e.seq == seq]
        fresh = bool(mine) and all(e.fresh and e.void for e in mine)
        if not mine or any(e.seat for e in mine) or (line.owes and not fresh):  # leased, not begun: either is right
            self.owe(line, (f"undo/{state}", self.sketch.undo.get(state, 0)))
        self.goal = 0 if len(self.stack) == self.goal else self.goal

    def aim(self, line: Line) -> int:
        """To which height of the stack this line's key wants to go back."""
        return height(str(line.key).split("/")[1], tuple(below for _, below in self.stack))

    def lowest(self, line: Line, top: tuple[int, str]) -> int:
        """The first entry of which effects are dropped; `top` is the one just popped."""
        return (*self.stack, top)[self.goal][0]

    def retry(self, line: Line) -> None:
        assert (self.status, self.goal, str(line.key)[:-2]) == ("failed", 0, f"to/{self.state}")
        assert self.pending()[0].undoing
        self.pending()[0].again, self.status = True, "running"

    def began(self, began: Began) -> None:
        effect = next((e for e in self.owed if e.name == began.name), None)
        assert effect is not None, "nobody owes it"
        first = next(iter(self.pending()), effect)
        if self.fenced:
            assert self.running is None, f"{self.running} is still running"
            assert self.status in ("running", "finished") or self.late(effect), f"it is {self.status}"
            assert effect is first or effect.done, f"{first.name} comes first"
            assert effect.again or not effect.seat, "it ran before"
            context = self.n if effect.undoing else self.past[effect.seq].context
            assert began.context == context, f"it sees {began.context}, not {context}"
            self.running = effect
        else:
            assert (effect.seq, effect.name) <= (first.seq, effect.name), f"{first.name} comes first"
        effect.seat, effect.again = began.seat, False

    def late(self, effect: Effect) -> bool:
        """May this begin although the instance does not run any more?"""
        return False

    def ended(self, ended: Ended) -> None:
        effect = next(e for e in self.owed if e.name == ended.name)
        if self.fenced and ended.seat != effect.seat:
            return  # its owner by now is another
        self.running, effect.again = None, effect.again or not ended.did
        if ended.did and not effect.done and not effect.void:
            effect.done = True
            self.events += [] if ended.event is None else [(effect.seq, effect.seq, ended.event)]
            self.updates += [effect.seq] if ended.update else []

    def gone(self, seat: str) -> None:
        """Who ran the last effect may be gone before he could say so."""
        last = next((e for e in reversed(self.owed) if e.seat == seat), None)
        if last is not None:
            self.running, last.again = None, True
