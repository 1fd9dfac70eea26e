from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import frozen

import stores
import workflow
from stores import MemoryStore, PostgresStore
from workflow import testing
from workflow.diagram import mermaid

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = FENCE.findall(TEXT)
SNIPPETS = [body for language, body in BLOCKS if language == "python"]
OUTPUTS = [body for language, body in BLOCKS if language == "text"]
PROSE = FENCE.sub("", TEXT)
(SELECT,) = re.findall(r"`(SELECT [^`]+)`", PROSE)
FILES = re.findall(r"`(\w+\.py)`", PROSE)
LINKS = sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", PROSE)))
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has who saved the snippets under the names that the README gives them."""
    for name, body in zip(("order.py", "test_bill.py", "invoice.py"), SNIPPETS, strict=True):
        (tmp_path / name).write_text(body)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    """What Python says in that folder; nothing on stderr, where warnings and errors are told."""
    command = [sys.executable, "-W", "error", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_readme_knows_only_blocks_that_are_run():
    """Whatever is fenced is code that runs or its output, and the prose names the file of each snippet."""
    assert {language for language, _ in BLOCKS} == {"python", "text"}
    assert (len(SNIPPETS), len(OUTPUTS)) == (3, 1)
    assert list(dict.fromkeys(FILES)) == ["order.py", "test_bill.py", "invoice.py"]


def test_it_is_short():
    """One screen, plus what is needed."""
    assert len(TEXT.splitlines()) < 280


def test_the_example_says_what_the_readme_says(folder: Path):
    """As a script of its own, run twice in one folder."""
    assert run(folder, "order.py") == OUTPUTS[0]
    (again,) = re.findall(r"Run it again, and the file answers `(.*)`", PROSE)
    assert run(folder, "order.py") == again + "\n"


def test_the_second_snippet_is_a_test_that_passes(folder: Path):
    """Beside the first, by pytest alone, without a plugin for asyncio and without a setting."""
    out = run(folder, "-m", "pytest", "-q", "-s", "-W", "error", "-p", "no:asyncio", "-p", "no:cacheprovider")
    (printed,) = re.findall(r"this prints: (.*)", SNIPPETS[1])
    assert printed in out.splitlines()
    assert "1 passed" in out


def test_the_third_snippet_keeps_both_or_neither(folder: Path):
    """The row and the move; said again, the row goes with the move that is refused."""
    assert run(folder, "invoice.py") == "ask the warehouse, with the key order/o-2/2/enter/paid/Shop.reserve\n"
    with pytest.raises(AssertionError, match="IllegalTransition"):
        run(folder, "invoice.py")
    with closing(sqlite3.connect(folder / "orders.db")) as db:
        assert db.execute("SELECT id, total FROM invoice").fetchall() == [("o-2", 70)]


# --- what the prose says ----------------------------------------------------------------------------


@pytest.fixture
def order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The first snippet as a module."""
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("order")
    del sys.modules["order"]


@pytest.fixture
def bill(order: Any, folder: Path) -> Iterator[Any]:
    """The second one, beside it."""
    yield importlib.import_module("test_bill")
    del sys.modules["test_bill"]


def shop(*errors: Exception) -> Any:
    """A shop whose warehouse answers with these errors first."""
    answers = list(errors)

    class Unlucky:
        async def reserve(self, m: Any) -> None:
            if answers:
                raise answers.pop(0)

    return Unlucky()


async def test_the_diagram_shows_the_way(order: Any):
    """`mermaid` is called as the README says."""
    spec = order.draw(order.Shop())
    async with workflow.Manager(spec, MemoryStore()) as orders:
        await orders.start("o-1", order.Order(total=100))
        await orders.send("o-1", order.Event.PAY, 100)
        assert "✓ 2" in mermaid(spec, history=await orders.history("o-1"))


async def test_a_repeat_gets_the_same_transition_and_the_state_of_today(order: Any):
    """Nothing runs; other arguments under the key are a KeyConflict."""
    async with workflow.Manager(order.draw(order.Shop()), MemoryStore()) as orders:
        await orders.start("o-1", order.Order(total=100))
        first = await orders.send("o-1", order.Event.PAY, 100, key="evt")
        await orders.send("o-1", order.Event.SHIP)
        again = await orders.send("o-1", order.Event.PAY, 100, key="evt")
        assert (again.transition, again.state, again.duplicate) == (first.transition, order.State.SHIPPED, True)
        with pytest.raises(workflow.KeyConflict):
            await orders.send("o-1", order.Event.PAY, 101, key="evt")


async def test_a_refused_event_has_not_used_up_its_key(order: Any):
    """Delivered again when the state is another, it is accepted."""
    async with workflow.Manager(order.draw(order.Shop()), MemoryStore()) as orders:
        await orders.start("o-1", order.Order(total=100))
        with pytest.raises(workflow.IllegalTransition):
            await orders.send("o-1", order.Event.SHIP, key="evt")
        await orders.send("o-1", order.Event.PAY, 100)
        shipped = await orders.send("o-1", order.Event.SHIP, key="evt")
        assert (shipped.state, shipped.duplicate) == (order.State.SHIPPED, False)


async def test_events_are_accepted_while_a_hook_waits_for_its_next_attempt(order: Any, caplog: Any):
    """And `m.current` tells the late attempt that its entry is no longer the state."""
    seen: list[bool] = []

    class Late:
        async def reserve(self, m: Any) -> None:
            seen.append(m.current)
            if m.attempt == 1:
                raise ConnectionError

    clock = testing.FakeClock(NOON)
    async with workflow.Manager(order.draw(Late()), MemoryStore(), clock=clock) as orders:
        await orders.start("o-1", order.Order(total=100))
        with pytest.raises(workflow.HookFailed):
            await orders.send("o-1", order.Event.PAY, 100)
        assert (await orders.send("o-1", order.Event.SHIP)).state is order.State.SHIPPED
        await clock.advance(timedelta(seconds=2))
    assert seen == [True, False]
    assert not caplog.records


async def test_who_gave_up_is_failed_until_compensated(bill: Any, order: Any, caplog: Any):
    """The reason is kept, an error is logged, events are refused, `compensate` leads out."""
    async with workflow.Manager(bill.spec, MemoryStore()) as bills:
        with pytest.raises(workflow.HookFailed, match="over the limit"):
            await bills.send("b-2", order.Event.PAY, 5000, start=True)
        found = await bills.get("b-2")
        assert (found.status, found.reason) == (workflow.Status.FAILED, "charge: Permanent: over the limit")
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        with pytest.raises(workflow.NotRunning):
            await bills.send("b-2", order.Event.SHIP, "parcel-8")
        await bills.compensate("b-2", to=order.State.CREATED)
        assert (await bills.get("b-2")).status is workflow.Status.RUNNING


async def test_a_compensator_does_not_run_where_none_of_the_effects_had_begun(bill: Any, order: Any, capsys: Any):
    """They are dropped with the entry."""
    spec, state, event = bill.spec, order.State, order.Event
    behind = workflow.Spec(
        "behind",
        initial=state.CREATED,
        edges=[*spec.edges, workflow.Edge(state.SHIPPED, event.PAY, state.PAID)],
        context=bill.Bill,
        payloads={event.PAY: int, event.SHIP: str},
        on_enter={state.PAID: shop(OSError("down")).reserve, state.SHIPPED: order.Shop().reserve},
        compensators={state.PAID: bill.refund, state.SHIPPED: bill.refund},
    )
    async with workflow.Manager(behind, MemoryStore(), clock=testing.FakeClock(NOON)) as bills:
        with pytest.raises(workflow.HookFailed):
            await bills.send("b-1", event.PAY, 1, start=True)
        await bills.send("b-1", event.SHIP, "parcel")
        capsys.readouterr()
        await bills.compensate("b-1", to=state.CREATED)
    assert capsys.readouterr().out == "give back 1 of , paid by line 2\n"


async def test_what_binds_a_deploy(order: Any, caplog: Any):
    """`drifted` lists an owed name and a context that the new code does not know; what is held lets events in."""
    store, clock = MemoryStore(), testing.FakeClock(NOON)
    state, event = order.State, order.Event
    async with workflow.Manager(order.draw(shop(OSError("down"))), store, clock=clock) as orders:
        await orders.start("o-1", order.Order(total=100))
        with pytest.raises(workflow.HookFailed):
            await orders.send("o-1", event.PAY, 100)

    @frozen
    class Fuller:
        total: int
        currency: str

    def drawn(context: Any) -> Any:
        """The drawing of before but for its context; the hook has the name that is owed."""
        return workflow.Spec(
            "order",
            initial=state.CREATED,
            edges=[
                workflow.Edge(state.CREATED, event.PAY, state.PAID),
                workflow.Edge(state.PAID, event.SHIP, state.SHIPPED),
            ],
            final={state.SHIPPED},
            context=context,
            on_enter={state.PAID: shop().reserve},
        )

    assert await drawn(order.Order).drifted(store) == []
    (stuck,) = await drawn(Fuller).drifted(store)
    assert (stuck.id, "the context does not fit" in stuck.reason) == ("o-1", True)

    renamed = order.draw(order.Shop())  # whose name is not that of the hook above
    (stuck,) = await renamed.drifted(store)
    assert (stuck.id, stuck.state, "is not drawn" in stuck.reason) == ("o-1", "paid", True)
    async with workflow.Manager(renamed, store, clock=clock) as orders:
        await clock.advance(timedelta(seconds=2))
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert (await orders.send("o-1", event.SHIP)).state is state.SHIPPED
        await orders.compensate("o-1", to=state.CREATED)
        assert await renamed.drifted(store) == []


async def test_settled_waits_in_real_time(order: Any):
    """Under FakeClock too."""
    clock, loop = testing.FakeClock(NOON), asyncio.get_running_loop()
    async with workflow.Manager(order.draw(shop(OSError("down"))), MemoryStore(), clock=clock) as orders:
        await orders.start("o-1", order.Order(total=100))
        with pytest.raises(workflow.HookFailed):
            await orders.send("o-1", order.Event.PAY, 100)
        before = loop.time()
        with pytest.raises(workflow.Busy):
            await orders.settled("o-1", timeout=0.05)
        assert (loop.time() - before >= 0.05, clock.now()) == (True, NOON)


async def test_states_are_columns(order: Any, postgres: str, schema: str):
    """The query finds what is in that state."""
    async with PostgresStore(postgres, schema=schema) as store, workflow.Manager(order.draw(shop()), store) as orders:
        for id, total in ("o-1", 100), ("o-2", 200):
            await orders.send(id, order.Event.PAY, total, start=order.Order(total=total))
        await orders.start("o-3", order.Order(total=300))
        async with store.transaction() as tx:
            asked = SELECT.replace("enumflow", f'"{schema}"').encode()
            assert sorted(await (await tx.connection.execute(asked)).fetchall()) == [("o-1",), ("o-2",)]


# --- its words --------------------------------------------------------------------------------------


def test_every_name_in_the_prose_exists():
    """No function is spoken of that is not there."""
    code = [re.sub(r'"\w+"', "", quoted) for quoted in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PROSE)]
    code.remove(SELECT)
    words = {word for piece in code for word in re.findall(r"[A-Za-z_]\w*", piece)}
    things = (
        *(workflow.Manager, workflow.Outcome, workflow.Move, workflow.Status, workflow.Spec, workflow.Instance),
        *(workflow.Stuck, workflow.Transactional, testing.FakeClock),
    )
    assert hasattr(psycopg, "AsyncConnection")
    verbs = (
        *(PostgresStore, mermaid, workflow.Spec, workflow.Spec.on_enter),
        *(workflow.Manager, workflow.Manager.send, workflow.Manager.cancel),
    )
    known = {*dir(workflow), *dir(testing), *dir(stores), *(name for thing in things for name in dir(thing))}
    known |= {status.value for status in workflow.Status}
    known |= {argument for verb in verbs for argument in inspect.signature(verb).parameters}
    known |= {*re.findall(r"^ *(?:async )?(?:class|def) (\w+)", "".join(SNIPPETS), re.MULTILINE), "PAID"}
    plain = {
        "if",
        "def",
        "await",
        "True",
        "False",
        "status",
        "make",
        "bench",
        "python3",
        "pip",
        "install",
        "__qualname__",
    }
    places = {"enumflow", "workflow", "stores", "diagram", "mermaid", "m", "spec", "store"}
    places |= {"order", "test_bill", "invoice", "py", "psycopg", "AsyncConnection", "postgres"}
    places |= set(re.findall(r"\w+", "orders.db postgresql://host/database"))
    places |= {"python", "app", "module", "worker"}
    answer = {"paid", "again"}
    assert words <= known | plain | places | answer


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link: str):
    """Files that are linked are there, and so are headings."""
    file, _, heading = link.partition("#")
    headings = {h.lower().replace(",", "").replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}
    assert heading in headings if heading else (ROOT / file).is_file()


def test_the_make_targets_exist():
    """So are the two commands."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make (\w+)", TEXT, re.MULTILINE)) == {"demo", "test"} <= targets


def test_the_snippets_are_typed_as_promised():
    """Every function in them says its types, so that the checkers can say theirs."""
    for snippet in SNIPPETS:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.returns is not None, node.name
