"""Rows that no server takes, and rows that only look so: a bad one harms only itself."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from msgspec.structs import replace

from stores import PostgresStore
from workflow import StoreError
from workflow.record import Change, Committed
from workflow.testing.conformance.rows import FLOW, NOON, commit, move, queue, timer
from workflow.testing.conformance.suite import done, loaded, one, seqs, started


@pytest.fixture
async def store(postgres) -> AsyncIterator[PostgresStore]:
    """Open."""
    async with asyncio.timeout(20), PostgresStore(postgres, schema=uuid4().hex) as store:
        yield store


def bad(kind: str) -> Change:
    """A change that cannot be written."""
    change = move("bad", 1, "key", puts=[queue(2, absent=True)])
    (line,), head = change.lines, change.head
    assert head is not None
    match kind:
        case "key with NUL":
            return replace(change, lines=(replace(line, key="a\0b"),))
        case "key with half a character":
            return replace(change, lines=(replace(line, key="\ud800"),))
        case "endless key":
            return replace(change, lines=(replace(line, key="".join(random.choices(string.printable, k=9000))),))
        case "payload that is no JSON":
            return replace(change, lines=(replace(line, payload="{"),))
        case "payload with NUL":
            return replace(change, lines=(replace(line, payload='"\0"'),))
        case "context that is no JSON":
            return replace(change, head=replace(head, context="nonsense"))
        case "number too large":
            return replace(change, lines=(replace(line, chain=2**40),))
        case "seq too large":
            return replace(change, seq=2**70)
        case "no state":
            return replace(change, lines=(replace(line, target=None),))
        case _:
            return replace(change, puts=(timer("\0", NOON),))


KINDS = [
    "key with NUL",
    "key with half a character",
    "endless key",
    "payload that is no JSON",
    "payload with NUL",
    "context that is no JSON",
    "number too large",
    "seq too large",
    "no state",
    "due row with NUL",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bad_row_harms_only_itself(store, kind):
    """Among 64, alone, and inside a transaction of the user's, which goes on."""
    await asyncio.gather(*(started(store, f"i-{n}") for n in range(63)), started(store, "bad"))
    for seq in (1, 2):  # the first group may be one of one
        changes = [move(f"i-{n}", seq, f"key-{seq}") for n in range(63)]
        changes.insert(random.randrange(30, 63), bad(kind))
        heard = await asyncio.gather(*(one(store, commit(change)) for change in changes), return_exceptions=True)
        for change, answer in zip(changes, heard, strict=True):
            if change.id == "bad":
                assert isinstance(answer, StoreError), answer
                assert answer.committed is False
            else:
                assert isinstance(answer, Committed), answer
    async with store.transaction() as transaction:
        with pytest.raises(StoreError):
            await one(transaction, commit(bad(kind)))
        await done(transaction, move("good", 0))
    assert await seqs(store, "bad") == [1]
    assert (await loaded(store, "bad")).effects is None
    assert await seqs(store, "good") == [1]


async def test_awkward_values_are_kept(store):
    """What looks dangerous and is JSON all the same comes back letter for letter."""
    for n, text in enumerate(('"\\u0000"', '"\\ud800"', '{"a":1,"a":2}', " [1 , 2] ", "1e999", "null", '"\\"{S}%s$1"')):
        change = move(f"i-{n}", 0)
        line, head = replace(change.lines[0], payload=text, context=text), change.head
        assert head is not None
        await done(store, replace(change, lines=(line,), head=replace(head, context=text)))
        assert (await loaded(store, f"i-{n}")).head.context == text
        (kept,) = await store.history(FLOW, f"i-{n}")
        assert (kept.payload, kept.context) == (text, text)
