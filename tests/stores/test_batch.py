"""Group commit, without a database: who flies with whom, who waits for whom, who hears what."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from stores import batch
from stores.batch import Batch
from stores.looks import Looks
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Answer, Commit, Committed, Conflicted, Locked
from workflow.testing.conformance.rows import NOON, commit, move

DONE = Committed(NOON)


async def turns(number: int = 8) -> None:
    """Let everybody run who can."""
    for _ in range(number):
        await asyncio.sleep(0)


def apart(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """In a task of its own."""
    return asyncio.get_running_loop().create_task(work)


class Disk:
    """A fake write: remembers what flew together; with `hold` each flight waits to be let go."""

    def __init__(self, *, hold: bool = False) -> None:
        self.flights: list[list[str]] = []
        self.writers: list[int] = []
        self.timeouts: list[float | None] = []
        self.aloft: list[asyncio.Future[None]] = []
        self.hold = hold
        self.locked: set[str] = set()
        self.answer: Callable[[Commit], Answer] = lambda commit: DONE
        self.fail: Callable[[Sequence[str]], BaseException | None] = lambda ids: None

    async def __call__(self, writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        names = ["+".join(change.id for change in each.changes) for each in commits]
        self.flights.append(names)
        self.writers.append(writer)
        self.timeouts.append(timeout)
        if self.hold:
            self.aloft.append(asyncio.get_running_loop().create_future())
            await self.aloft[-1]
        else:
            await asyncio.sleep(0)
        error = self.fail(names)
        if error is not None:
            raise error
        return [
            None if self.locked & set(name.split("+")) else self.answer(each)
            for name, each in zip(names, commits, strict=True)
        ]

    async def land(self, number: int = 0) -> None:
        """Let that flight go, and everybody run."""
        self.aloft[number].set_result(None)
        await turns()


def one(queue: Batch, *ids: str, timeout: float | None = None, seq: int = 0) -> asyncio.Task[list[Answer]]:
    """A caller with one commit over these instances."""
    return apart(_listed(queue.append([commit(*(move(id, seq) for id in ids))], timeout)))


async def _listed(answers: Awaitable[Sequence[Answer]]) -> list[Answer]:
    return list(await answers)


# --- who flies with whom --------------------------------------------------------------------------


async def test_what_queues_during_a_flight_goes_out_in_the_next():
    """The first caller goes at once and alone; the others wait for him and go together."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    calls = [one(queue, "a")]
    await turns()
    calls += [one(queue, id) for id in "bcd"]
    await turns()
    assert disk.flights == [["a"]]
    await disk.land(0)
    assert calls[0].done()
    assert disk.flights == [["a"], ["b", "c", "d"]]
    await disk.land(1)
    assert [await call for call in calls] == [[DONE]] * 4


async def test_nobody_lingers():
    """A lone commit is handed to the writer in the turn in which it comes, again and again."""
    disk = Disk()
    queue = Batch(disk)
    for n in range(3):
        call = one(queue, "a", seq=n)
        await turns(2)  # the caller's turn, the writer's turn
        assert len(disk.flights) == n + 1
        assert await call == [DONE]
        await turns()


async def test_who_was_just_answered_may_join_the_next_flight():
    """Callers that send one after the other fall into one group, not into groups of 1 and 63."""
    disk = Disk()
    queue = Batch(disk)

    async def caller(id: str) -> None:
        for seq in range(20):
            await queue.append([commit(move(id, seq))], None)

    await asyncio.gather(*(caller(f"i-{n}") for n in range(64)))
    sizes = [len(flight) for flight in disk.flights]
    assert sum(sizes) == 64 * 20
    assert len(sizes) <= 22


async def test_answers_come_in_the_order_of_the_commits():
    """To each commit its own, also for several in one call."""
    disk = Disk()
    disk.answer = lambda commit: Conflicted() if commit.changes[0].id == "b" else DONE
    queue = Batch(disk)
    assert await queue.append([commit(move(id, 0)) for id in "abc"], None) == [DONE, Conflicted(), DONE]
    assert list(await queue.append([], None)) == []


@pytest.mark.parametrize("writers", [1, 2])
async def test_an_instance_is_never_twice_in_the_air(writers):
    """Not in one flight, nor in two at once; and its commits go in the order in which they came."""
    disk = Disk()
    aloft: set[str] = set()
    seen: list[str] = []

    async def write(writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        ids = [change.id for each in commits for change in each.changes]
        assert len(ids) == len(set(ids))
        assert aloft.isdisjoint(ids)
        aloft.update(ids)
        seen.extend(f"{change.id}{change.seq}" for each in commits for change in each.changes)
        await turns(1 + len(seen) % 3)
        aloft.difference_update(ids)
        return await disk(writer, commits, timeout)

    queue = Batch(write, writers=writers)
    commits = [commit(*(move(id, seq) for id in ids)) for seq in range(20) for ids in ("a", "b", "bc", "c", "ad", "e")]
    calls = [apart(queue.append([each], None)) for each in commits]
    await asyncio.gather(*calls)
    for id in "abcde":
        assert [name for name in seen if name[0] == id] == [
            f"{id}{change.seq}" for each in commits for change in each.changes if change.id == id
        ]


async def test_a_commit_over_several_instances_flies_alone():
    """It waits for the ones before it on its instances, those behind it on them wait for it, others pass."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    calls = [one(queue, "a"), one(queue, "x")]
    await turns()
    calls += [one(queue, "a", "b"), one(queue, "b"), one(queue, "c")]
    await turns()
    assert disk.flights == [["a", "x"]]
    for n in range(3):
        await disk.land(n)
    assert disk.flights == [["a", "x"], ["a+b"], ["b", "c"]]
    assert all(call.done() for call in calls)


async def test_two_writers_share_a_long_queue():
    """From `SPLIT` waiting commits on each idle writer takes its share; fewer go in one flight."""
    disk = Disk(hold=True)
    queue = Batch(disk, writers=2)
    calls = [one(queue, f"i-{n}") for n in range(64)]
    await turns()
    assert [len(flight) for flight in disk.flights] == [32, 32]
    assert sorted(disk.writers) == [0, 1]
    for n in range(2):
        await disk.land(n)
    calls += [one(queue, f"i-{n}") for n in range(63)]
    await turns()
    assert [len(flight) for flight in disk.flights] == [32, 32, 63]
    await disk.land(2)
    assert await asyncio.gather(*calls) == [[DONE]] * 127


async def test_a_flight_has_a_largest_size(monkeypatch):
    """What is too much for one goes in several."""
    monkeypatch.setattr(batch, "LARGEST", 10)
    disk = Disk()
    queue = Batch(disk)
    await asyncio.gather(*(one(queue, f"i-{n}") for n in range(25)))
    assert [len(flight) for flight in disk.flights] == [10, 10, 5]


async def test_a_flight_knows_nothing_of_the_caller_that_started_it():
    """No variable of his context is seen by the others' commits."""
    mark = ContextVar("mark", default="none")
    seen: list[str] = []

    async def write(writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        seen.append(mark.get())
        return [DONE for _ in commits]

    mark.set("a caller's")
    await Batch(write).append([commit(move("a", 0))], None)
    assert seen == ["none"]


# --- failures -------------------------------------------------------------------------------------


async def test_a_bad_row_harms_only_itself():
    """A group that fails is redone by halves, in a bounded number of writes."""
    disk = Disk()
    disk.fail = lambda ids: StoreError("bad row", committed=False) if "i-37" in ids else None
    queue = Batch(disk)
    heard = await asyncio.gather(*(one(queue, f"i-{n}") for n in range(64)), return_exceptions=True)
    bad = heard.pop(37)
    assert isinstance(bad, StoreError)
    assert bad.committed is False
    assert heard == [[DONE]] * 63
    assert len(disk.flights) == 1 + 2 * 6


@pytest.mark.parametrize(
    "error", [StoreError("cut", committed=None), StoreUnavailable("cut", committed=None), StoreUnavailable("down")]
)
async def test_an_unknown_outcome_is_everybodys(error):
    """No second try: part of it may be there, or nothing can be. Each caller has an error of his own."""
    error.__cause__ = OSError("cable")
    disk = Disk()
    disk.fail = lambda ids: error
    queue = Batch(disk)
    heard = await asyncio.gather(*(one(queue, id) for id in "abcd"), return_exceptions=True)
    assert len(disk.flights) == 1
    assert len({id(each) for each in [error, *heard]}) == 5
    for each in heard:
        assert isinstance(each, StoreError)
        assert type(each) is type(error)
        assert each.committed is error.committed
        assert each.__cause__ is error.__cause__


async def test_a_call_of_which_a_part_was_written_does_not_know():
    """One error for several commits: `committed` is None when another of them stands."""
    disk = Disk()
    disk.fail = lambda ids: StoreError("bad row", committed=False) if "b" in ids else None
    queue = Batch(disk)
    with pytest.raises(StoreError) as caught:
        await queue.append([commit(move("a", 0)), commit(move("b", 0))], None)
    assert caught.value.committed is None
    with pytest.raises(StoreError) as caught:
        await queue.append([commit(move("b", 0)), commit(move("b", 1))], None)
    assert caught.value.committed is False


async def test_a_writer_that_breaks_strands_nobody():
    """An error that is no StoreError reaches its callers as an unknown outcome; those behind them fly."""
    disk = Disk(hold=True)
    disk.fail = lambda ids: KeyError("a mistake") if "a" in ids else None
    queue = Batch(disk)
    first, second = one(queue, "a"), None
    await turns()
    second = one(queue, "b")
    await turns()
    await disk.land(0)
    await disk.land(1)
    with pytest.raises(StoreUnavailable, match="a mistake") as caught:
        await first
    assert caught.value.committed is None
    assert isinstance(caught.value.__cause__, KeyError)
    assert await second == [DONE]


async def test_a_cancelled_caller_does_not_disturb_the_group():
    """In flight his commit is written all the same; before, it is left out. The others are answered."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    flying = [one(queue, id) for id in "ab"]
    await turns()
    waiting = [one(queue, id) for id in "cd"]
    await turns()
    flying[0].cancel()
    waiting[0].cancel()
    await turns()
    await disk.land(0)
    await disk.land(1)
    assert disk.flights == [["a", "b"], ["d"]]
    assert [await flying[1], await waiting[1]] == [[DONE]] * 2
    assert flying[0].cancelled()
    assert waiting[0].cancelled()
    again = one(queue, "a", seq=1)
    await turns()
    await disk.land(2)
    assert await again == [DONE]


async def test_a_cancelled_call_of_several_commits_takes_all_of_them_back():
    """Those that have not flown yet never will."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    one(queue, "x")
    await turns()
    several = apart(queue.append([commit(move(id, 0)) for id in "ab"], None))
    other = one(queue, "c")
    await turns()
    several.cancel()
    await turns()
    await disk.land(0)
    await disk.land(1)
    assert await other == [DONE]
    assert disk.flights == [["x"], ["c"]]


# --- instances that another transaction holds ------------------------------------------------------


async def test_a_stalled_commit_stalls_nobody_else():
    """It is tried again and again; the others of its group are answered, and others fly meanwhile."""
    disk = Disk()
    disk.locked = {"a"}
    queue = Batch(disk)
    stalled = one(queue, "a")
    assert await asyncio.gather(*(one(queue, id) for id in "bc")) == [[DONE]] * 2
    for n in range(10):
        await asyncio.wait_for(one(queue, "d", seq=n), 1)
    assert not stalled.done()
    disk.locked.clear()
    assert await stalled == [DONE]


async def test_the_order_on_an_instance_is_kept_when_the_first_is_stalled():
    """The second waits behind it, although it could fly."""
    disk = Disk()
    disk.locked = {"a"}
    written: list[int] = []

    def answer(commit: Commit) -> Answer:
        written.append(commit.changes[0].seq)
        return DONE

    disk.answer = answer
    queue = Batch(disk, writers=2)
    first, second, pair = one(queue, "a", seq=0), one(queue, "a", seq=1), one(queue, "b", "a", seq=2)
    await turns()
    await asyncio.wait_for(one(queue, "c", seq=9), 1)
    assert not any(each.done() for each in (first, second, pair))
    disk.locked.clear()
    await asyncio.gather(first, second, pair)
    assert written == [9, 0, 1, 2]


async def test_a_stalled_commit_ends_as_locked_at_its_deadline():
    """Not before, and soon after; without a timeout after the store's patience. The next on it has its turn."""
    disk = Disk()
    disk.locked = {"a", "b"}
    queue = Batch(disk, patience=0.09)
    loop = asyncio.get_running_loop()
    began = loop.time()
    hurried, patient, behind = one(queue, "a", timeout=0.04), one(queue, "b"), one(queue, "a", timeout=60.0)
    assert await hurried == [Locked()]
    assert loop.time() - began >= 0.04
    disk.locked.remove("a")
    assert await behind == [DONE]
    assert await patient == [Locked()]
    assert 0.09 <= loop.time() - began < 5


async def test_a_stalled_commit_is_tried_for_as_long_as_it_takes(monkeypatch):
    """Ever more slowly, but never more slowly than at the longest pause."""
    monkeypatch.setattr(batch, "_LONGEST_PAUSE", 0.0)
    disk = Disk()
    disk.locked = {"a"}
    stalled = one(Batch(disk, patience=60.0), "a")
    while len(disk.flights) < 1100:  # noqa: ASYNC110  the loop itself is watched
        await asyncio.sleep(0)
    disk.locked.clear()
    assert await stalled == [DONE]


async def test_the_most_hurried_caller_sets_the_timeout_of_a_flight():
    """None when nobody is in a hurry, zero when he is late already."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    one(queue, "a")
    await turns()
    for id, timeout in (("b", 30.0), ("c", None), ("d", 20.0)):
        one(queue, id, timeout=timeout)
    await turns()
    await disk.land(0)
    one(queue, "e", timeout=0.0)
    await turns()
    await disk.land(1)
    await disk.land(2)
    first, second, third = disk.timeouts
    assert first is None
    assert second is not None
    assert 10 < second <= 20
    assert third == 0.0
    await queue.landed()


async def test_a_cancelled_caller_lets_go_of_what_is_stalled():
    """His commit is not tried for ever, and the next on that instance flies."""
    disk = Disk()
    disk.locked = {"a"}
    queue = Batch(disk, patience=math.inf)
    stalled = one(queue, "a")
    await turns()
    stalled.cancel()
    await turns()
    disk.locked.clear()
    assert await asyncio.wait_for(one(queue, "a"), 1) == [DONE]
    await asyncio.wait_for(queue.landed(), 1)


# --- back-pressure and closing ---------------------------------------------------------------------


async def test_a_full_queue_lets_callers_wait(monkeypatch):
    """They are let in in the order in which they came; nobody overtakes them."""
    monkeypatch.setattr(batch, "BOUND", 2)
    disk = Disk(hold=True)
    queue = Batch(disk)
    order: list[str] = []

    async def caller(id: str) -> None:
        await queue.append([commit(move(id, 0))], None)
        order.append(id)

    calls = [apart(caller(id)) for id in "abcdef"]
    await turns()
    assert disk.flights == [["a", "b"]]
    calls.append(apart(caller("g")))
    for n in range(4):
        await disk.land(n)
    assert disk.flights == [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]
    await asyncio.gather(*calls)
    assert order == list("abcdefg")


async def test_no_room_until_the_deadline_is_an_error(monkeypatch):
    """Nothing was written, and who gives up or is cancelled blocks nobody behind him."""
    monkeypatch.setattr(batch, "BOUND", 1)
    disk = Disk(hold=True)
    queue = Batch(disk)
    flying = one(queue, "a")
    await turns()
    late, gone, last = one(queue, "b", timeout=0.01), one(queue, "c"), one(queue, "d")
    with pytest.raises(StoreUnavailable, match="1 commits are waiting") as caught:
        await late
    assert caught.value.committed is False
    disk.aloft[0].set_result(None)
    while not gone.cancelled():  # just as he is let in
        gone.cancel()
        await asyncio.sleep(0)
    await turns()
    await disk.land(1)
    assert disk.flights == [["a"], ["d"]]
    assert [await flying, await last] == [[DONE]] * 2
    free = one(queue, "e")
    await turns()
    await disk.land(2)
    assert await free == [DONE]


async def test_landed_waits_for_all(monkeypatch):
    """In the air, in the queue, stalled, and before its door."""
    monkeypatch.setattr(batch, "BOUND", 3)
    disk = Disk()
    disk.locked = {"a"}
    queue = Batch(disk, patience=0.05)
    calls = [one(queue, id) for id in "abcdefgh"]
    await turns(1)
    await queue.landed()
    await turns()
    assert all(call.done() for call in calls)
    assert sorted(id for flight in disk.flights for id in flight if id != "a") == list("bcdefgh")
    await queue.landed()


async def test_a_batch_with_nothing_to_do_has_no_task():
    """Nothing runs, nothing is kept."""
    queue = Batch(Disk(), writers=2)
    await asyncio.gather(*(one(queue, f"i-{n}") for n in range(40)))
    await queue.landed()
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not queue._held
    assert not queue._flights
    assert sorted(queue._idle) == [0, 1]


# --- looks ----------------------------------------------------------------------------------------


class Eyes:
    """A fake look: remembers what was looked for together."""

    def __init__(self) -> None:
        self.looks: list[list[str]] = []
        self.aloft: list[asyncio.Future[None]] = []
        self.fail: Callable[[Sequence[str]], BaseException | None] = lambda keys: None

    async def __call__(self, keys: Sequence[str]) -> Sequence[str]:
        self.looks.append(list(keys))
        self.aloft.append(asyncio.get_running_loop().create_future())
        await self.aloft[-1]
        error = self.fail(keys)
        if error is not None:
            raise error
        return [key.upper() for key in keys]

    async def see(self, number: int) -> None:
        """That look ends."""
        self.aloft[number].set_result(None)
        await turns()


async def test_what_is_asked_during_a_look_is_asked_together_in_the_next():
    """Each gets what he asked for; none sees a look that began before he asked."""
    eyes = Eyes()
    looks = Looks(eyes, flights=1)
    asked = [apart(looks.ask("a"))]
    await turns()
    asked += [apart(looks.ask(keys)) for keys in ("bc", "", "ad")]
    await turns()
    assert eyes.looks == [["a"]]
    await eyes.see(0)
    assert eyes.looks == [["a"], ["b", "c", "a", "d"]]
    await eyes.see(1)
    assert [await each for each in asked] == [["A"], ["B", "C"], [], ["A", "D"]]


async def test_looks_fly_as_many_as_may():
    """Two at once by default, a third waits."""
    eyes = Eyes()
    looks = Looks(eyes)
    asked: list[asyncio.Task[Sequence[str]]] = []
    for key in "abc":
        asked.append(apart(looks.ask(key)))
        await turns()
    assert eyes.looks == [["a"], ["b"]]
    await eyes.see(0)
    assert eyes.looks[2:] == [["c"]]
    landing = apart(looks.landed())
    await eyes.see(1)
    assert not landing.done()
    await eyes.see(2)
    await landing
    assert all(each.done() for each in asked)


async def test_a_key_that_cannot_be_looked_for_harms_only_its_asker():
    """By halves, as with commits; what everybody must hear, everybody hears, each in an error of his own."""
    eyes = Eyes()
    eyes.fail = lambda keys: StoreError("bad key") if "x" in keys else None
    looks = Looks(eyes, flights=1)
    first = apart(looks.ask("a"))
    await turns()
    asked = [apart(looks.ask(key)) for key in "bcxd"]
    await turns()
    for n in range(6):
        await eyes.see(n)
    heard = await asyncio.gather(first, *asked, return_exceptions=True)
    assert isinstance(heard.pop(3), StoreError)
    assert heard == [["A"], ["B"], ["C"], ["D"]]
    eyes.fail = lambda keys: StoreUnavailable("down")
    asked = [apart(looks.ask(key)) for key in "bcd"]
    await turns()
    await eyes.see(6)
    lost = await asyncio.gather(*asked, return_exceptions=True)
    assert len(eyes.looks) == 7
    assert len({id(each) for each in lost}) == 3
    assert {type(each) for each in lost} == {StoreUnavailable}


async def test_a_cancelled_asker_does_not_disturb_the_look():
    """Nor does one whose look breaks strand those behind him."""
    eyes = Eyes()
    eyes.fail = lambda keys: KeyError("a mistake") if "x" in keys else None
    looks = Looks(eyes, flights=1)
    asked = [apart(looks.ask(key)) for key in "ab"]
    await turns()
    asked += [apart(looks.ask("x"))]
    await turns()
    asked[0].cancel()
    await eyes.see(0)
    asked += [apart(looks.ask("c"))]
    await turns()
    await eyes.see(1)
    await eyes.see(2)
    heard = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(heard[0], asyncio.CancelledError)
    assert isinstance(heard[2], StoreUnavailable)
    assert (heard[1], heard[3]) == (["B"], ["C"])
