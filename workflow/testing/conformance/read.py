"""Reading: heads, histories, pages of ids, and the feed of all lines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from msgspec.structs import replace

from workflow.errors import StoreError
from workflow.record import Line, Query

from .rows import FLOW, MINUTE, NOON, commit, move, queue, touch
from .suite import Suite, done, feed, loaded, one, seqs, started


class Loading(Suite):
    """Promises of `load` and `history`."""

    async def test_heads_come_in_the_order_asked(self) -> None:
        """One place for each id, None where there is none."""
        async with self.opened() as store:
            for id in "abc":
                await started(store, id)
            found = await store.load(FLOW, ["c", "x", "a", "b", "c"])
            assert [each and each.head.id for each in found] == ["c", None, "a", "b", "c"]
            assert list(await store.load(FLOW, [])) == []
            assert await store.load("other", ["a"]) == [None]

    async def test_many_ids_are_loaded_at_once(self) -> None:
        """There is no limit on the number of ids."""
        async with self.opened() as store:
            ids = [f"i-{n:04}" for n in range(1200)]
            await store.append([commit(move(id, 0)) for id in ids[::2]])
            found = await store.load(FLOW, ids)
            assert [each is not None for each in found] == [True, False] * 600

    async def test_an_instance_at_rest_owes_nothing(self) -> None:
        """Without an effects row there is no queue, whatever its lines once owed."""
        async with self.opened() as store:
            await done(store, move("a", 0, owes=["hook"]))
            found = await loaded(store, "a")
            assert (found.effects, found.queue) == (None, ())

    async def test_the_queue_is_the_first_two_owing_lines(self) -> None:
        """From the effects row's line on, whole, lines that owe nothing passed over."""
        async with self.opened() as store:
            await done(store, move("a", 0, owes=["one"]))
            await done(store, move("a", 1, owes=["two"], puts=[queue(2)]))
            assert [line.seq for line in (await loaded(store, "a")).queue] == [2]
            for seq, owes in ((2, ()), (3, ["four", "more"]), (4, ()), (5, ["six"])):
                await done(store, move("a", seq, owes=owes))
            queued = (await loaded(store, "a")).queue
            history = await store.history(FLOW, "a")
            assert list(queued) == [history[1], history[3]]
            assert queued[1].owes == ("four", "more")
            await done(store, touch("a", 6, puts=[queue(5)]))
            assert [line.seq for line in (await loaded(store, "a")).queue] == [6]

    async def test_history_is_in_order_and_can_be_paged(self) -> None:
        """`seq` above `after`, at most `limit`."""
        async with self.opened() as store:
            await done(store, move("a", 0, *[None] * 12))
            await started(store, "b")
            assert await seqs(store, "a") == list(range(1, 13))
            assert [line.seq for line in await store.history(FLOW, "a", 5, 3)] == [6, 7, 8]
            assert [line.seq for line in await store.history(FLOW, "a", 10)] == [11, 12]
            assert [line.seq for line in await store.history(FLOW, "a", limit=2)] == [1, 2]
            assert list(await store.history(FLOW, "a", 12)) == []
            assert list(await store.history(FLOW, "a", 0, 0)) == []
            assert list(await store.history(FLOW, "x")) == []

    async def test_what_is_handed_out_is_the_caller_s(self) -> None:
        """Nothing done to an answer changes what is stored."""
        async with self.opened() as store:
            await started(store, "a", queue(1))
            for answer in (
                await store.history(FLOW, "a"),
                await store.load(FLOW, ["a"]),
                await store.find(Query(workflow=FLOW)),
                (await store.read()).transitions,
            ):
                if isinstance(answer, list):
                    answer.clear()
            assert await seqs(store, "a") == [1]
            assert (await loaded(store, "a")).head.seq == 1
            assert len(await store.find(Query(workflow=FLOW))) == 1
            assert len((await store.read()).transitions) == 1

    async def test_a_mebibyte_comes_back(self) -> None:
        """Payload and context of the largest size that the engine writes."""
        async with self.opened() as store:
            big = json.dumps("x" * ((1 << 20) - 2))
            change = move("a", 0)
            assert change.head is not None
            lines = tuple(replace(line, payload=big, context=big) for line in change.lines)
            await done(store, replace(change, lines=lines, head=replace(change.head, context=big)))
            (line,) = await store.history(FLOW, "a")
            assert line.payload == line.context == (await loaded(store, "a")).head.context == big

    async def test_names_are_any_text(self) -> None:
        """Ids, keys, workflows and row names are kept letter for letter, 512 bytes included."""
        odd = [
            "o'hare",
            '"quoted"',
            "a/b\\c",
            "%_;--",
            "naïve",
            "nai\u0308ve",
            "日本",
            "🧵",
            " ",
            "a ",
            "x" * 512,
            "é" * 256,
        ]
        async with self.opened() as store:
            for name in odd:
                await done(store, move(name, 0, name, workflow=name, puts=[replace(queue(1), name=name)]))
            for name in odd:
                found = await loaded(store, name, name)
                assert (found.head.workflow, found.head.id) == (name, name)
                line = await store.recall(name, name, name)
                assert line is not None
                assert (line.workflow, line.id, line.key) == (name, name, name)
                (row,) = await store.claim({name: 1}, name, MINUTE, 9, (), NOON + MINUTE)
                assert (row.workflow, row.id, row.name, row.token) == (name, name, name, name)

    async def test_json_text_is_kept(self) -> None:
        """Payload, context and body come back as the text that was given."""
        texts = [
            '{"b":1,"a":2}',
            "[1.10, 1e400]",
            '"a\\/\\u00e9\U0001f9f5"',
            "null",
            " [ ] ",
            "12345678901234567890123",
        ]
        async with self.opened() as store:
            for n, text in enumerate(texts):
                change = move(str(n), 0, puts=[replace(queue(1), body=text)])
                assert change.head is not None
                lines = tuple(replace(line, payload=text, context=text) for line in change.lines)
                await done(store, replace(change, lines=lines, head=replace(change.head, context=text)))
                (line,) = await store.history(FLOW, str(n))
                found = await loaded(store, str(n))
                assert found.effects is not None
                assert line.payload == line.context == found.head.context == found.effects.body == text


class Finding(Suite):
    """Promises of `find`."""

    async def test_heads_of_one_workflow_in_order_of_id(self) -> None:
        """By code point, whatever the order in which they were started."""
        async with self.opened() as store:
            ids = ["b", "a", "Z", "é", "10", "9", "a-1", "ab", "🧵", "\uffef"]
            for id in ids:
                await started(store, id)
            await started(store, "other", workflow="other")
            heads = await store.find(Query(workflow=FLOW))
            assert [head.id for head in heads] == sorted(ids)
            assert heads[0] == (await loaded(store, "10")).head

    async def test_pages_go_on_after_an_id(self) -> None:
        """`after` and `limit` walk over all heads, each once, also those started meanwhile."""
        async with self.opened() as store:
            await store.append([commit(move(f"i-{n:02}", 0)) for n in range(25)])
            seen: list[str] = []
            while page := await store.find(Query(workflow=FLOW, after=seen[-1] if seen else None, limit=10)):
                seen += [head.id for head in page]
                await started(store, f"i-{len(seen) + 30}")
                if len(seen) > 60:
                    break
            assert seen[:25] == [f"i-{n:02}" for n in range(25)]
            assert seen == sorted(set(seen))

    async def test_filters_narrow(self) -> None:
        """Status, state and age; several filters must all fit, pages included."""
        async with self.opened() as store:
            for n, status in enumerate(["running", "paused", "failed", "running", "failed"]):
                await done(store, move(str(n), 0, status=status), now=NOON + n * MINUTE)
            await done(store, move("0", 1), now=NOON + 10 * MINUTE)

            async def found(**filters: Any) -> list[str]:
                return [head.id for head in await store.find(Query(workflow=FLOW, **filters))]

            assert await found(status=frozenset({"running"})) == ["0", "3"]
            assert await found(status=frozenset({"failed", "paused"})) == ["1", "2", "4"]
            assert await found(status=frozenset({"failed", "paused"}), limit=2) == ["1", "2"]
            assert await found(status=frozenset({"failed", "paused"}), after="1", limit=1) == ["2"]
            assert await found(state=frozenset({"s2"})) == ["0"]
            assert await found(state=frozenset({"s1", "never"})) == ["1", "2", "3", "4"]
            assert await found(changed_before=NOON + 3 * MINUTE) == ["1", "2"]
            assert await found(changed_before=NOON + 3 * MINUTE, status=frozenset({"failed"})) == ["2"]
            assert await found(state=frozenset({"s1"}), status=frozenset({"running"})) == ["3"]

    async def test_an_empty_set_matches_nothing(self) -> None:
        """None does not filter; an empty collection lets nothing through."""
        async with self.opened() as store:
            await started(store, "a")
            assert len(await store.find(Query(workflow=FLOW))) == 1
            assert list(await store.find(Query(workflow=FLOW, status=frozenset()))) == []
            assert list(await store.find(Query(workflow=FLOW, state=frozenset()))) == []

    async def test_labels_are_compared_as_text(self) -> None:
        """Every named pair must be there; commas, quotes, dots and brackets mean nothing."""
        odd = {"a,b": "c,d", 'qu"ote': "it's", "x.y[0]": "$.z", "naïve": "日本 🧵", "back\\slash": "\\n", "": ""}
        async with self.opened() as store:
            await done(store, move("all", 0, labels=json.dumps(odd)))
            for n, (name, value) in enumerate(odd.items()):
                await done(store, move(str(n), 0, labels=json.dumps({name: value, "more": "m"}, ensure_ascii=False)))
            await started(store, "none")
            for n, pair in enumerate(odd.items()):
                assert [head.id for head in await store.find(Query(workflow=FLOW, labels=(pair,)))] == [str(n), "all"]
            assert [h.id for h in await store.find(Query(workflow=FLOW, labels=tuple(odd.items())))] == ["all"]
            for pair in (("a,b", "c"), ("a", "c,d"), ("more", ""), ("", "m"), ("x", "y")):
                assert list(await store.find(Query(workflow=FLOW, labels=(pair,)))) == []


class Feeding(Suite):
    """Promises of `read`."""

    async def test_the_feed_holds_every_line_once(self) -> None:
        """All workflows, whole lines, each instance in its order."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k", None))
            await started(store, "b", workflow="other")
            await done(store, move("a", 2), move("c", 0))
            lines, _ = await feed(store)
            expected = [*await store.history(FLOW, "a"), *await store.history("other", "b")]
            expected += await store.history(FLOW, "c")
            assert sorted(lines, key=_name) == sorted(expected, key=_name)
            assert [line.seq for line in lines if line.id == "a"] == [1, 2, 3]

    async def test_the_feed_is_read_in_pages(self) -> None:
        """Pages of any size give the same lines in the same order, never more than asked for."""
        async with self.opened() as store:
            for id in "abc":
                await done(store, move(id, 0, None, None))
            whole, _ = await feed(store)
            for limit in (1, 2, 5, 6, 7):
                assert len((await store.read(None, limit)).transitions) == min(limit, 6)
                assert (await feed(store, limit=limit))[0] == whole

    async def test_a_cursor_goes_on_where_it_was_given(self) -> None:
        """At the end it waits for what comes; it may be used again."""
        async with self.opened() as store:
            lines, start = await feed(store)
            assert lines == []
            await started(store, "a")
            first, middle = await feed(store, start)
            await started(store, "b")
            second, end = await feed(store, middle)
            assert [line.id for line in (*first, *second)] == ["a", "b"]
            assert (await feed(store, end))[0] == []
            assert (await feed(store, middle))[0] == second
            assert (await feed(store, start))[0] == [*first, *second]

    async def test_a_strange_cursor_is_refused(self) -> None:
        """`StoreError`, never a wrong page: text of any kind, and a place that was never reached."""
        async with self.opened() as store:
            await started(store, "a")
            for cursor in ("", "x", "-1", "1; DROP", "9" * 30, "memory:-1", "sqlite:x", "None", "\u0661", ":", "a:b:c"):
                try:
                    page = await store.read(cursor)
                except StoreError as error:
                    assert error.committed is False
                else:
                    raise AssertionError(f"{cursor!r} gave {page}")

    async def test_a_tailing_reader_misses_nothing(self) -> None:
        """While many write, no line ever appears before the end of what was already read."""
        async with self.opened() as store:

            async def write(id: str) -> None:
                for seq in range(15):
                    assert await one(store, commit(move(id, seq)))
                    await asyncio.sleep(0)

            writers = asyncio.gather(*(write(f"i-{n}") for n in range(8)))
            tailed: list[Line] = []
            cursor: str | None = None
            while not writers.done():
                lines, cursor = await feed(store, cursor, limit=7)
                tailed += lines
                await asyncio.sleep(0.001)
            await writers
            tailed += (await feed(store, cursor))[0]
            assert tailed == (await feed(store))[0]
            for n in range(8):
                assert [line.seq for line in tailed if line.id == f"i-{n}"] == list(range(1, 16))
            assert len(tailed) == 120

    async def test_refused_commits_never_appear(self) -> None:
        """The feed holds what was committed, nothing else, without gaps for a reader."""
        async with self.opened() as store:
            await store.append([commit(move("a", 0)), commit(move("a", 5)), commit(move("b", 0), move("z", 3))])
            await started(store, "c")
            assert [line.id for line in (await feed(store))[0]] == ["a", "c"]


def _name(line: Line) -> tuple[str, str, int]:
    return line.workflow, line.id, line.seq
