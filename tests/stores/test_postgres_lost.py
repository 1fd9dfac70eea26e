"""The acknowledgement of a commit is lost: the identical commit, appended again, is done once, whenever the first lands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple
from uuid import uuid4

import pytest

from stores import PostgresStore
from tests.proxy import Proxy
from tests.server import Server
from tests.storm import Storm
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import QUEUE, Change, Commit, Committed, Gone, Lease
from workflow.testing.conformance.rows import FLOW, ME, commit, move, queue, touch
from workflow.testing.conformance.suite import done, loaded, one, seqs, started


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def app(server: Server) -> str:
    """The url of a role, no superuser."""
    return server.create_role("app")


@pytest.fixture
async def proxy(server) -> AsyncIterator[Proxy]:
    async with asyncio.timeout(20), Proxy(server.home) as proxy:
        yield proxy


class Pair(NamedTuple):
    """Two stores on the same instances: one hears through the proxy, the other at once."""

    far: PostgresStore
    near: PostgresStore


@pytest.fixture
async def stores(proxy, app) -> AsyncIterator[Pair]:
    schema = uuid4().hex
    async with PostgresStore(proxy.url(app), schema=schema) as far, PostgresStore(app, schema=schema) as near:
        yield Pair(far, near)


def lease(seq: int, number: int = 0, attempt: int = 1) -> Lease:
    return Lease(ME, seq, number, attempt)


OWING = [queue(2, absent=True)]
CASES: dict[str, Callable[[], Change]] = {
    "start": lambda: move("i-new", 0, "key"),
    "start and move": lambda: move("i-new", 0, None, "key"),
    "move": lambda: move("i-a", 1, "key"),
    "move that owes": lambda: move("i-a", 1, "key", owes=["hook"], puts=OWING),
    "move that settles": lambda: move("i-b", 2, "key", lease=lease(2), drops=[QUEUE]),
    "settle": lambda: touch("i-b", 2, lease=lease(2), drops=[QUEUE]),
    "settle and go on": lambda: touch("i-b", 2, lease=lease(2), puts=[queue(2, number=1)]),
}


async def prepared(store: PostgresStore) -> None:
    """`a` at rest, `b` with two effects of line 2."""
    await started(store, "i-a")
    await started(store, "i-b")
    await done(store, move("i-b", 1, None, owes=["one", "two"], puts=[queue(2, absent=True)]))


async def unheard(store: PostgresStore, *commits: Commit) -> None:
    """The store cannot say what became of them."""
    for answer in await asyncio.gather(*(one(store, each) for each in commits), return_exceptions=True):
        assert isinstance(answer, StoreUnavailable), answer
        assert answer.committed is None


async def written(store: PostgresStore) -> list[object]:
    """All that there is; not from the feed, which any other transaction may hold up."""
    ids = ["i-a", "i-b", "i-new"]
    return [await store.load(FLOW, ids), *[await store.history(FLOW, id) for id in ids]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("again", ["far", "near"])
async def test_a_lost_answer(stores, proxy, case, again):
    """It was done: again, it answers what was done, by its own store's other connection or by another process."""
    await prepared(stores.near)
    change = CASES[case]()
    first = commit(change)
    proxy.lose(change.id, "answer")
    await unheard(stores.far, first)
    before = await written(stores.near)
    assert (await loaded(stores.near, change.id)).head.seq == change.seq + len(change.lines)
    for _ in range(2):
        answer = await one(getattr(stores, again), first)
        assert isinstance(answer, Committed if change.lines else Gone)
        assert await written(stores.near) == before


@pytest.mark.parametrize("case", CASES)
async def test_a_lost_question(stores, proxy, case):
    """It was not done: again, it is."""
    await prepared(stores.near)
    change = CASES[case]()
    first = commit(change)
    before = await written(stores.near)
    proxy.lose(change.id, "question")
    await unheard(stores.far, first)
    assert await written(stores.near) == before
    assert isinstance(await one(stores.far, first), Committed)
    assert await written(stores.near) != before


@pytest.mark.parametrize("case", CASES)
async def test_a_first_copy_that_lands_last(stores, proxy, case):
    """A read finds nothing, the second copy is done, life goes on; then the first copy lands, and changes nothing."""
    await prepared(stores.near)
    change = CASES[case]()
    first = commit(change)
    before = await written(stores.near)
    proxy.lose(change.id, "late")
    await unheard(stores.far, first)
    assert await written(stores.near) == before
    assert isinstance(await one(stores.far, first), Committed)
    for after in (False, True):
        if after:
            await done(stores.near, move(change.id, change.seq + len(change.lines), "another"))
        before = await written(stores.near)
        await proxy.land()
        assert await written(stores.near) == before


@pytest.mark.parametrize("puts", [[], [queue(2, number=1)]], ids=["SETTLE", "GROUP"])
async def test_a_late_settle_never_moves_the_queue_back(stores, proxy, puts):
    """The same owner, attempt and line number, and yet another effect: (line, number) tells."""
    await prepared(stores.near)
    settle = commit(touch("i-b", 2, lease=lease(2), puts=puts, drops=[] if puts else [QUEUE]))
    proxy.lose("i-b", "late")
    await unheard(stores.far, settle)
    assert isinstance(await one(stores.near, settle), Committed)
    await done(stores.near, touch("i-b", 2, puts=[queue(2, number=2)]))
    before = await loaded(stores.near, "i-b")
    await proxy.land()
    assert await loaded(stores.near, "i-b") == before
    assert await one(stores.near, settle) == Gone()
    assert before.effects is not None
    assert (before.effects.number, before.effects.attempt, before.effects.token) == (2, 1, ME)


async def test_a_late_settle_after_a_retry(stores, proxy):
    """The same effect, owner and line number, but another attempt: it is not the late copy's."""
    await prepared(stores.near)
    settle = commit(touch("i-b", 2, lease=lease(2), drops=[QUEUE]))
    proxy.lose("i-b", "late")
    await unheard(stores.far, settle)
    await done(stores.near, touch("i-b", 2, lease=lease(2), puts=[queue(2, attempt=2)]))
    before = await loaded(stores.near, "i-b")
    await proxy.land()
    assert await loaded(stores.near, "i-b") == before


@pytest.mark.parametrize("how", ["answer", "question", "late"])
async def test_a_group_whose_answer_is_lost(stores, proxy, how):
    """Each of its commits is appended again for itself, and each is done once."""
    await asyncio.gather(*(started(stores.near, f"i-{n}") for n in range(60)))
    commits = [commit(move(f"i-{n}", 1, "key")) for n in range(60)]
    fresh = [commit(move(f"new-{n}", 0, "key")) for n in range(20)]
    proxy.lose("i-40", how)
    heard = await asyncio.gather(*(one(stores.far, each) for each in commits + fresh), return_exceptions=True)
    lost = [answer for answer in heard if not isinstance(answer, Committed)]
    assert lost
    assert all(isinstance(answer, StoreUnavailable) and answer.committed is None for answer in lost)
    heard = await asyncio.gather(*(one(stores.far, each) for each in commits + fresh))
    await proxy.land()
    assert all(isinstance(answer, Committed) for answer in heard), heard
    assert all([await seqs(stores.near, f"i-{n}") == [1, 2] for n in range(60)])
    assert all([await seqs(stores.near, f"new-{n}") == [1] for n in range(20)])


@pytest.mark.parametrize("how", ["answer", "question", "late"])
async def test_a_commit_over_two_instances(stores, proxy, how):
    """Its COMMIT or one of its statements is lost: all of it is done once, or nothing."""
    await prepared(stores.near)
    for seq, mark in enumerate(("COMMIT", "{"), 1):
        both = commit(move("i-a", seq), move("i-c", seq - 1))
        proxy.lose(mark, how)
        with pytest.raises(StoreError) as caught:
            await one(stores.far, both)
        assert isinstance(caught.value, StoreUnavailable)
        if caught.value.committed is False:
            assert await seqs(stores.near, "i-a") == list(range(1, seq + 1))
        await asyncio.gather(one(stores.far, both), proxy.land())
        assert isinstance(await one(stores.far, both), Committed)
        assert await seqs(stores.near, "i-a") == [*range(1, seq + 2)]
        assert await seqs(stores.near, "i-c") == [*range(1, seq + 1)]


async def test_a_late_first_copy_that_still_runs(stores, proxy, app):
    """The second copy waits for the first, which holds the head, and answers what it did."""
    await prepared(stores.near)
    first = commit(move("i-a", 1, "key"))
    async with stores.near.transaction() as holder:  # whatever holds the head
        assert await holder.lock(FLOW, "i-a", 1.0)
        again = asyncio.ensure_future(one(stores.far, first))
        await asyncio.sleep(0.1)
        assert not again.done()
        assert isinstance(await one(holder, first), Committed)
    assert isinstance(await again, Committed)
    assert await seqs(stores.near, "i-a") == [1, 2]


async def test_bad_weather(app, proxy):
    """Of all requests of 64 callers one in thirty is lost, one way or another: no commit is in doubt."""
    storm = Storm(app, uuid4().hex)

    async def trouble() -> None:
        proxy.weather = 0.03
        await asyncio.sleep(5)
        proxy.weather = 0.0

    async with storm.manager(proxy.url(app)) as manager:
        await storm.begin(manager)
        await storm.rage(manager, trouble)
    await storm.agree()
    assert proxy.lost > 20
    assert len(storm.errors) < proxy.lost / 4, "of a read that was lost twice a caller may hear"
    assert all(error.committed is False for error in storm.errors)
