"""Effects: after the commit, in order, one at a time, each recorded."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ONCE,
    SECOND,
    TWICE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    edged,
    flow,
    quiet,
    standing_by,
    story,
    turns,
    until,
    waiting,
)
from workflow import STAY, Busy, Edge, Finished, HookFailed, Manager, NotRunning, Permanent, Retry, Status


async def test_exit_action_enter(store):
    """Exit hooks of the source, the edge's action, enter hooks of the target, each in the order given."""
    log = Log()
    spec = flow(
        edges=edged(Edge(S.A, E.BACK, S.C, action=[log.hook("act 1"), log.plain("act 2")])),
        on_exit={S.A: [log.plain("exit 1"), log.hook("exit 2")], S.C: log.hook("never")},
        on_enter={S.C: [log.hook("enter 1"), log.hook("enter 2")], S.A: log.hook("first")},
    )
    async with Manager(spec, store) as m:
        await m.start("i")
        done = await m.send("i", E.BACK)
        assert log == ["first", "exit 1", "exit 2", "act 1", "act 2", "enter 1", "enter 2"]
        assert (done.settled, done.state) == (True, S.C)
        assert await story(m) == ["start", "event"]
        assert quiet(m)


async def test_stay_runs_only_the_action(store):
    """STAY: neither exit nor enter, the action runs, the line is recorded."""
    log = Log()
    spec = flow(
        edges=edged(Edge(S.A, E.BACK, STAY, action=log.hook("act"))),
        on_exit={S.A: log.hook("exit")},
        on_enter={S.A: log.hook("enter")},
    )
    async with Manager(spec, store) as m:
        await m.start("i")
        del log[:]
        await m.send("i", E.BACK)
        assert log == ["act"]
        assert await story(m) == ["start", "event"]


async def test_an_edge_back_to_its_own_state_exits_and_enters(store):
    """A move to the same state is a move: exit and enter run."""
    log = Log()
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.A)), on_exit={S.A: log.hook("exit")}, on_enter={S.A: log.hook("enter")})
    async with Manager(spec, store) as m:
        await m.start("i")
        await m.send("i", E.BACK)
        assert log == ["enter", "exit", "enter"]


@pytest.mark.parametrize("hooks", [0, 1, 3])
async def test_what_a_send_costs(store, hooks):
    """Each hook costs a commit beside that of the move: n hooks cost 1 + n commits, none costs one; on an instance known to be at rest nothing is read."""
    log, tap = Log(), Tap(store)
    spec = flow(on_enter={S.B: [log.hook(f"h{n}") for n in range(hooks)]} if hooks else {})
    async with Manager(spec, tap, work=False) as m:
        await m.start("i")
        tap.calls.clear()
        await m.send("i", E.GO)
        assert tap.calls == {"append": 1 + hooks}
        assert len(log) == hooks


async def test_the_move_is_durable_before_any_hook(store):
    """A hook finds its own move in the store."""
    seen: list[Any] = []

    async def enter(move):
        seen.append((await m.state("i"), [t.seq for t in await m.history("i")], (await m.get("i")).context))

    async with Manager(flow(on_enter={S.B: enter}), store) as m:
        await m.start("i", Ctx(1))
        await m.send("i", E.GO)
    assert seen == [(S.B, [1, 2], Ctx(1))]


async def test_what_a_hook_is_told(store):
    """A hook sees its line, the stored context, a stable key, its attempt; guards see the context before."""
    moves, guards = [], []

    def guard(m):
        guards.append(m)
        return True

    def assign(m):
        guards.append(m)
        return evolve(m.context, n=m.context.n + 1)

    async def enter(m):
        moves.append(m)

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.C, guard=guard, assign=assign)), on_enter={S.C: [enter, enter]})
    async with Manager(spec, store) as m:
        await m.start("i", Ctx(1))
        await m.send("i", E.BACK, {"by": "me"})
        line = (await m.history("i"))[1]
    for seen in guards:
        assert (seen.context, seen.key, seen.attempt, seen.seq, seen.current) == (Ctx(1), "", 0, 2, True)
        assert (seen.source, seen.target, seen.payload) == (S.A, S.C, {"by": "me"})
        with pytest.raises(RuntimeError):
            seen.update(lambda c: c)
    one, two = moves
    assert (one.workflow, one.id, one.seq, one.source, one.event, one.target) == ("flow", "i", 2, S.A, E.BACK, S.C)
    assert (one.context, one.payload, one.attempt, one.undoes, one.current) == (Ctx(2), {"by": "me"}, 1, None, True)
    assert one.at == line.at
    assert one.key.startswith("flow/i/2/enter/c/")
    assert two.key == one.key + "#2"


async def test_a_hook_with_a_name(store):
    """`name=` replaces the function's own name in the key."""
    keys: list[Any] = []
    spec = flow()

    @spec.on_enter(S.B, name="reserve")
    async def anything(m):
        keys.append(m.key)

    async with Manager(spec, store) as m:
        await m.start("i")
        await m.send("i", E.GO)
    assert keys == ["flow/i/2/enter/b/reserve"]


async def test_current(store, clock):
    """`current` says whether the entry is still the state as the attempt begins."""
    seen: list[Any] = []

    async def enter(m):
        seen.append(m.current)
        if len(seen) == 1:
            raise ValueError

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await clock.advance(SECOND)
    assert seen == [True, False]


# --- running to completion ------------------------------------------------------------------------


async def test_a_send_waits_while_effects_run(store):
    """While effects run a send waits and is judged when they are settled."""
    gate, log = Gate(), Log()
    async with Manager(flow(on_enter={S.B: gate.hook, S.C: log.hook("c")}), store) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        second = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: standing_by(m, "i"))
        assert (await m.get("i")).seq == 2
        assert not log
        gate.open.set()
        assert (await second).state is S.C
        assert (await first).transition.seq == 2
        assert log == ["c"]
        assert quiet(m)


async def test_busy(store):
    """A send whose wait takes longer than its timeout raises Busy; nothing is written."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook})
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        for other in (m, n):
            with pytest.raises(Busy) as e:
                await other.send("i", E.GO, timeout=0.01, key="k")
            assert (e.value.id, e.value.committed) == ("i", False)
            with pytest.raises(Busy):
                await other.send("i", E.NOTE, timeout=0)
        # one that stands behind another caller as well
        second = asyncio.create_task(m.send("i", E.GO, key="k"))
        await until(lambda: standing_by(m, "i"))
        with pytest.raises(Busy):
            await m.send("i", E.NOTE, timeout=0.01)
        gate.open.set()
        await first
        assert not (await second).duplicate
        assert await story(m) == ["start", "event", "event"]
        assert quiet(m)


async def test_timeout_after_the_commit(store):
    """When time is over after the commit, the send answers with settled=False; `settled` waits for the rest."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        done = await m.send("i", E.GO, timeout=0.01)
        assert (done.settled, done.state) == (False, S.B)
        with pytest.raises(Busy):
            await m.settled("i", timeout=0.01)
        rest = asyncio.create_task(m.settled("i"))
        await turns()
        gate.open.set()
        assert (await rest).seq == 2
        assert gate.ended == 1


async def test_a_slow_effect_delays_only_its_own_instance(store):
    """Other instances go on while a hook of one runs."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("slow")
        slow = asyncio.create_task(m.send("slow", E.GO))
        await gate.entered.wait()
        for n in range(20):
            await m.start(f"i{n}")
            await m.send(f"i{n}", E.NOTE)
        gate.open.set()
        await slow


async def test_failed_effects_block_nobody(store, clock):
    """An effect that waits for its retry lets events through; their effects queue behind, in order."""
    log = Log()
    spec = flow(
        on_enter={S.B: [log.failing("b1", 2), log.hook("b2")], S.C: log.hook("c"), S.D: log.hook("d")},
        retry=EVERY_SECOND,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        behind = await m.send("i", E.GO)
        assert (behind.state, behind.settled) == (S.C, False)
        last = await m.send("i", E.GO, key="k")
        assert (last.state, last.settled) == (S.D, False)
        assert log == ["b1"]
        await clock.advance(SECOND)
        assert log == ["b1", "b1"]
        assert not (await m.send("i", E.GO, key="k")).settled
        await clock.advance(SECOND)
        assert log == ["b1", "b1", "b1", "b2", "c", "d"]
        assert (await m.settled("i")).seq == 4
        assert await story(m) == ["start", "event", "event", "event"]


# --- failing --------------------------------------------------------------------------------------


async def test_hook_failed(store, clock):
    """A failing hook raises HookFailed from its error: the move stands, the rest of it is told."""
    log = Log()
    error = ValueError("no stock")
    spec = flow(on_enter={S.B: [log.hook("one"), log.failing("two", 1, error), log.hook("three")]}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO, key="k")
        failed = e.value
        assert failed.committed is True
        assert (failed.outcome.state, failed.outcome.transition.seq, failed.outcome.settled) == (S.B, 2, False)
        assert (failed.hook, failed.attempt, failed.retry_at) == ("two", 1, clock.now() + SECOND)
        assert failed.__cause__ is error
        assert "stands" in str(failed)
        assert (await m.get("i")).status is Status.RUNNING
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.settled) == (True, False)
        await clock.advance(SECOND)
        assert log == ["one", "two", "two", "three"]
        assert (await m.send("i", E.GO, key="k")).settled
        assert await story(m) == ["start", "event"]


async def test_pauses_between_attempts(store, clock):
    """Attempt n is followed by first * factor**(n-1), at most max; attempts count up in the move."""
    seen: list[Any] = []

    async def enter(m):
        seen.append((m.attempt, clock.now()))
        if len(seen) < 5:
            raise ValueError

    retry = Retry(first=SECOND, factor=3.0, max=timedelta(seconds=10), jitter=0.0)
    async with Manager(flow(on_enter={S.B: enter}, retry=retry), store, clock=clock) as m:
        await m.start("i")
        begin = clock.now()
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(timedelta(minutes=5))
    assert [(n, (at - begin).total_seconds()) for n, at in seen] == [(1, 0), (2, 1), (3, 4), (4, 13), (5, 23)]


async def test_exhausted(store, clock):
    """The last attempt failed: a `fail` line with the error as reason, later sends are NotRunning."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b"), S.C: log.hook("c")}, retry=TWICE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await clock.advance(SECOND * 60)
        assert log == ["b", "b"]
        head = await m.get("i")
        assert head.status is Status.FAILED
        assert "b fails" in (head.reason or "")
        assert await story(m) == ["start", "event", "event", "fail"]
        with pytest.raises(NotRunning) as e:
            await m.send("i", E.GO)
        assert (e.value.status, e.value.reason) == ("failed", head.reason)
        assert (await m.settled("i")).status is Status.FAILED
        assert await m.accepted("i") == ()
        assert (await m.resume()).effects == 0


@pytest.mark.parametrize("error", [Permanent("never"), KeyError("other")])
async def test_permanent_errors(store, clock, error):
    """`Permanent`, and what is no instance of `on`, are not tried again."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", error=error)}, retry=Retry(on=ValueError))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO)
        assert (e.value.retry_at, e.value.attempt) == (None, 1)
        assert (await m.get("i")).status is Status.FAILED
        assert await story(m) == ["start", "event", "fail"]


async def test_a_hook_with_its_own_retry(store, clock):
    """A decorator's retry overrides the spec's."""
    log = Log()
    spec = flow(retry=ONCE)
    spec.on_enter(S.B, retry=EVERY_SECOND)(log.failing("b", 3))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND * 10)
        assert log == ["b"] * 4
        assert (await m.get("i")).status is Status.RUNNING


async def test_a_finished_instance_still_owes(store, clock):
    """`finished` is told by the state; its effects may still be retried, and may fail it for good."""
    log = Log()
    async with Manager(flow(on_enter={S.END: log.failing("end", 1)}, retry=TWICE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status is Status.FINISHED
        await clock.advance(SECOND)
        assert log == ["end", "end"]
        assert await story(m) == ["start", "event"]
    async with Manager(flow("two", on_enter={S.END: log.failing("end")}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status is Status.FAILED
        assert await story(m) == ["start", "event", "fail"]


async def test_start_whose_hook_fails(store, clock):
    """A failing hook of the first entry: HookFailed, the instance is there."""
    log = Log()
    async with Manager(flow(on_enter={S.A: log.failing("a", 1)}, retry=EVERY_SECOND), store, clock=clock) as m:
        with pytest.raises(HookFailed) as e:
            await m.start("i")
        assert e.value.outcome.transition.seq == 1
        await clock.advance(SECOND)
        assert log == ["a", "a"]


# --- threads and strange errors -------------------------------------------------------------------


async def test_def_hooks_run_in_threads(store):
    """`def` hooks run in a worker thread with the caller's context; the loop goes on meanwhile."""
    here = threading.get_ident()
    seen, entered, go_on = [], asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def enter(m):
        seen.append(threading.get_ident())
        loop.call_soon_threadsafe(entered.set)
        assert go_on.wait(5)

    def guard(m):
        seen.append(threading.get_ident())
        return True

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.C, guard=guard)), on_enter={S.C: enter})
    async with Manager(spec, store) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.BACK))
        await entered.wait()
        await m.start("j")
        go_on.set()
        await sent
    assert seen[0] == here
    assert seen[1] != here


word = contextvars.ContextVar("word", default="")


async def test_hooks_see_the_context_variables_of_their_sender(store):
    """What a service put into context variables reaches the inline hooks, in threads too."""
    seen: list[Any] = []

    def plain(m):
        seen.append(word.get())

    async def waits(m):
        seen.append(word.get())

    async with Manager(flow(on_enter={S.B: [plain, waits]}), store) as m:
        await m.start("i")
        token = word.set("hello")
        try:
            await m.send("i", E.GO)
        finally:
            word.reset(token)
    assert seen == ["hello", "hello"]


async def test_def_hooks_are_bounded_by_the_manager(memory):
    """At most `concurrency` threads work for one Manager."""
    lock, running, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)

    def enter(m):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(5)
        with lock:
            running -= 1

    async with Manager(flow(on_enter={S.B: enter}), memory, concurrency=2) as m:
        for n in range(6):
            await m.start(f"i{n}")
        await asyncio.gather(*(m.send(f"i{n}", E.GO) for n in range(6)))
    assert most == 2


class Strange(BaseException):
    """Not an Exception."""


def _stop(m):
    raise StopIteration


def _exit(m):
    raise SystemExit(3)


def _strange(m):
    raise Strange("odd")


def _cancelled(m):
    raise asyncio.CancelledError


def _late(m):
    raise TimeoutError("too late")


async def _acancelled(m):
    raise asyncio.CancelledError


async def _alate(m):
    raise TimeoutError("too late")


async def _astrange(m):
    raise Strange("odd")


async def _aexit(m):
    raise SystemExit(3)


async def _suicide(m):
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _slow_suicide(m):
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _deadline(m):
    async with asyncio.timeout(0):
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    "hook",
    [_stop, _exit, _strange, _cancelled, _late, _acancelled, _alate, _astrange, _aexit, _slow_suicide, _deadline],
)
async def test_whatever_a_hook_raises_is_its_failure(store, clock, hook):
    """A hook that raises StopIteration, CancelledError, TimeoutError or a BaseException has failed like any
    other: the sender hears HookFailed, and the Manager works on."""
    log = Log()
    spec = flow(on_enter={S.B: hook, S.D: log.hook("d")}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock, drain=timedelta(0)) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO, timeout=5)
        assert e.value.outcome.state is S.B
        await m.start("j")
        async with asyncio.timeout(5):
            await m.send("j", E.STOP)
        async with asyncio.timeout(5):
            await clock.advance(SECOND * 3)
        assert quiet(m)


async def test_a_hook_that_cancels_its_own_task_and_returns(store):
    """A cancellation that a hook asked of its own task reaches neither its settle nor what comes after."""
    log = Log()
    async with Manager(flow(on_enter={S.B: [_suicide, log.hook("next")]}), store, drain=timedelta(0)) as m:
        await m.start("i")
        assert (await m.send("i", E.GO, timeout=5)).settled
        assert log == ["next"]


async def test_a_stray_cancellation_while_an_effect_is_settled(store, clock):
    """A cancellation that a hook left behind hits the settle: the others go on, the effect is run again."""
    log, tap = Log(), Tap(store)
    tasks: list[Any] = []

    async def enter(m):
        log.append("b")
        tasks.append(asyncio.current_task())

    async def cancel(commits):
        if len(tasks) == 1 and not commits[0].changes[0].lines:
            tasks.append(None)
            tasks[0].cancel()
            await asyncio.sleep(0)

    spec = flow(on_enter={S.B: [enter, log.hook("next")], S.END: log.failing("end", 1)}, retry=EVERY_SECOND)
    async with Manager(spec, tap, clock=clock, drain=timedelta(0)) as m:
        await m.start("i")
        await m.start("j")
        tap.before["append"] = cancel
        done = await m.send("i", E.GO, timeout=5)
        assert not done.settled
        with pytest.raises(HookFailed):
            await m.send("j", E.STOP)
        await clock.advance(MINUTE)
        assert log == ["b", "end", "end", "b", "next"]
        assert quiet(m)


@pytest.mark.parametrize("answer", [True, "go", S.A, 7])
async def test_a_hook_that_returns_junk(store, clock, answer):
    """A hook returns an event, `Then` or None; anything else is its failure."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b", answer)}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="returned"):
            await m.send("i", E.GO)
        assert (await m.get("i")).status is Status.FAILED


async def test_a_hook_with_a_timeout(store, clock):
    """After its timeout an async hook is cancelled and has failed."""
    gate = Gate()
    spec = flow(retry=ONCE)
    spec.on_enter(S.B, timeout=timedelta(milliseconds=5))(gate.hook)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert gate.cancelled == 1


async def test_an_error_with_strange_text(store, clock):
    """The text of an error is bounded and made storable; it never harms the settle."""
    log = Log()
    error = ValueError("\0 \ud800" + "x" * 100_000)
    async with Manager(flow(on_enter={S.B: log.failing("b", error=error)}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert len((await m.get("i")).reason or "") < 5000


async def test_an_error_that_cannot_be_printed(store, clock):
    """An error whose own text cannot be had is a failure like any other."""

    class Mute(Exception):
        def __str__(self):
            raise ValueError("no text")

    log = Log()
    async with Manager(flow(on_enter={S.B: log.failing("b", error=Mute())}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO, timeout=5)
        assert (await m.get("i")).status is Status.FAILED


async def test_a_def_hook_may_hand_back_a_coroutine(store):
    """A plain function that answers with an awaitable is awaited on the loop."""
    log = Log()
    inner = log.hook("inner")

    def partly(m):
        return inner(m)

    async with Manager(flow(on_enter={S.B: partly}), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
    assert log == ["inner"]


async def test_two_callers_get_their_own_answers(store, clock):
    """Each caller gets its own answer or its own exception, also where one of two waiters is refused."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        one = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        two = asyncio.create_task(m.send("i", E.STOP))
        three = asyncio.create_task(m.send("i", E.ADD, 1))
        await until(lambda: waiting(m, "i"))
        gate.open.set()
        answers = await asyncio.gather(one, two, three, return_exceptions=True)
        assert isinstance(answers[2], Finished)
        assert [getattr(a, "state", None) for a in answers[:2]] == [S.B, S.END]
