"""Correct uses of every public name. Neither pyright strict nor mypy strict may report anything here.

Only read by the checkers (see test_typing.py), never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import partial
from typing import Any, assert_type

from attrs import evolve, frozen

from stores import MemoryStore, PostgresStore, SQLiteStore
from workflow import (
    ANY,
    STAY,
    After,
    Deny,
    Due,
    Edge,
    GuardRejected,
    HookFailed,
    IllegalTransition,
    Instance,
    Manager,
    Move,
    Outcome,
    Permanent,
    Resumed,
    Retry,
    Schedule,
    ScheduleState,
    Spec,
    Status,
    Store,
    Then,
    Transaction,
    Transactional,
    Transition,
    WorkflowError,
)
from workflow.diagram import mermaid
from workflow.testing import FakeClock, Faults, StoreConformance, paths, replay


class OrderState(StrEnum):
    CREATED = "created"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


class OrderEvent(StrEnum):
    PAY = "pay"
    SHIP = "ship"
    CANCEL = "cancel"
    NOTE = "note"


@frozen
class Order:
    total: int
    received: int = 0


@frozen
class Payment:
    amount: int


OrderMove = Move[OrderState, OrderEvent, Order]
OrderEdge = Edge[OrderState, OrderEvent, Order]


# --- callbacks ------------------------------------------------------------------------------------


def covers_total(m: OrderMove) -> bool | Deny:
    return m.payload.amount >= m.context.total or Deny("payment does not cover the total")


def is_open(m: OrderMove) -> bool:
    return m.context.received == 0


def always_denied(m: OrderMove) -> Deny:
    return Deny(f"not {m.id}")


def both(m: OrderMove) -> bool | Deny:
    return is_open(m) and covers_total(m)


async def in_stock(m: OrderMove) -> bool | Deny:
    return m.seq > 0 or Deny("sold out")


async def is_known(m: OrderMove) -> bool:
    return m.source is not None


def add_payment(m: OrderMove) -> Order:
    return evolve(m.context, received=m.context.received + m.payload.amount)


def log(m: OrderMove) -> None:
    print(m.workflow, m.id, m.seq, m.source, m.event, m.target, m.key, m.attempt, m.at, m.undoes, m.current)


async def reserve(m: OrderMove) -> None:
    m.update(lambda order: evolve(order, received=0))


async def pack(m: OrderMove) -> OrderEvent:
    return OrderEvent.SHIP if m.current else OrderEvent.CANCEL


def pay_back(m: OrderMove) -> Then[OrderEvent]:
    return Then(OrderEvent.PAY, Payment(m.context.total))


async def perhaps(m: OrderMove) -> OrderEvent | Then[OrderEvent] | None:
    if m.attempt > 3:
        raise Permanent("the shop is closed")
    return None if m.current else Then(OrderEvent.CANCEL)


def notify(m: OrderMove, channel: str = "mail") -> None:
    print(channel, m.id)


class Printer:
    async def __call__(self, m: OrderMove) -> None:
        print(self, m.id)

    def label(self, m: OrderMove) -> None:
        print(self, m.id)


# --- drawings -------------------------------------------------------------------------------------

OPEN = frozenset({OrderState.CREATED, OrderState.PAID})


def until_shipped(m: OrderMove) -> timedelta | None:
    return timedelta(days=m.context.total) if m.context.total else None


def at_noon(m: OrderMove) -> datetime:
    return m.at.replace(hour=12)


with_alias = Spec[OrderState, OrderEvent, Order](
    "order",
    initial=OrderState.CREATED,
    final={OrderState.SHIPPED, OrderState.CANCELLED},
    context=Order,
    payloads={OrderEvent.PAY: Payment, OrderEvent.NOTE: dict[str, int], OrderEvent.SHIP: int | None},
    edges=[
        OrderEdge(OrderState.CREATED, OrderEvent.PAY, OrderState.PAID, guard=covers_total, assign=add_payment),
        OrderEdge(OrderState.CREATED, OrderEvent.PAY, STAY, guard=in_stock, name="later"),
        OrderEdge(OrderState.PAID, OrderEvent.SHIP, OrderState.SHIPPED, action=log),
        OrderEdge((s for s in OPEN), OrderEvent.NOTE, STAY, guard=both, action=Printer()),
        OrderEdge((OrderState.CREATED, OrderState.PAID), OrderEvent.NOTE, STAY, action=[log, reserve, perhaps]),
        OrderEdge({OrderState.PAID}, OrderEvent.PAY, STAY, guard=always_denied, action=(pack,)),
        OrderEdge(ANY, OrderEvent.CANCEL, OrderState.CANCELLED, guard=is_known, action=Printer().label),
    ],
    on_enter={OrderState.PAID: reserve, OrderState.SHIPPED: [log, pack, pay_back, perhaps]},
    on_exit={OrderState.PAID: (log, partial(notify, channel="pager"))},
    compensators={OrderState.PAID: log, OrderState.SHIPPED: [log, reserve]},
    retry=Retry(attempts=3, first=timedelta(seconds=2), factor=1.5, max=timedelta(minutes=1), jitter=0, on=OSError),
    timeouts={
        OrderState.CREATED: After(timedelta(hours=24), OrderEvent.CANCEL),
        OrderState.PAID: [After(until_shipped, OrderEvent.CANCEL), After(at_noon, OrderEvent.SHIP, name="noon")],
    },
    on_failure=OrderEvent.CANCEL,
    renames={"payed": OrderState.PAID},
    version=2,
    max_chain=10,
)

bare = Spec[OrderState, OrderEvent, Order](
    "order",
    initial=OrderState.CREATED,
    final=[OrderState.SHIPPED, OrderState.CANCELLED],
    context=Order,
    edges=[
        Edge(OrderState.CREATED, OrderEvent.PAY, OrderState.PAID, guard=covers_total, assign=add_payment),
        Edge(OrderState.PAID, OrderEvent.SHIP, OrderState.SHIPPED, action=[log, reserve]),
        Edge([OrderState.CREATED, OrderState.PAID], OrderEvent.NOTE, STAY, guard=in_stock),
        Edge(OPEN, OrderEvent.PAY, STAY, guard=is_open),
        Edge(ANY, OrderEvent.CANCEL, OrderState.CANCELLED, assign=lambda m: evolve(m.context, received=0)),
    ],
)


with_lambda = Spec[OrderState, OrderEvent, Order](
    "order",
    initial=OrderState.CREATED,
    final=[OrderState.SHIPPED, OrderState.CANCELLED],
    edges=bare.edges,
    context=Order,
    timeouts={OrderState.CREATED: After(lambda m: timedelta(seconds=m.context.total), OrderEvent.CANCEL)},
)


class Light(Enum):
    RED = 1
    GREEN = 2


class Tick(Enum):
    TICK = "tick"


LightEdge = Edge[Light, Tick]
LightMove = Move[Light, Tick]

light = Spec[Light, Tick](
    "light",
    initial=Light.RED,
    edges=(LightEdge(Light.RED, Tick.TICK, Light.GREEN), Edge(Light.GREEN, Tick.TICK, Light.RED)),
)


@light.on_enter(Light.GREEN)
def go(m: LightMove) -> Tick:
    assert_type(m.context, None)
    return Tick.TICK


counter = Spec[Light, Tick, dict[str, int]](
    "counter",
    initial=Light.RED,
    context=dict[str, int],
    edges=[Edge(Light.RED, Tick.TICK, Light.GREEN), Edge(Light, Tick.TICK, Light.RED)],
)

# --- decorators -----------------------------------------------------------------------------------


@with_alias.on_enter(OrderState.PAID)
async def reserve_stock(m: OrderMove) -> None:
    m.update(lambda order: evolve(order, received=m.context.total))


@with_alias.on_enter(OrderState.PAID, name="reserve", retry=Retry(attempts=2, on=(OSError, ValueError)))
async def reserve_more(m: OrderMove) -> OrderEvent | None:
    return None


@with_alias.on_exit(OrderState.CREATED, timeout=timedelta(seconds=5))
def leave(m: OrderMove) -> Then[OrderEvent] | None:
    return None


@with_alias.on_exit(OrderState.PAID)
@with_alias.on_enter(OrderState.PAID)
def in_and_out(m: OrderMove) -> OrderEvent:
    return OrderEvent.NOTE


@with_alias.compensator(OrderState.PAID)
async def refund(m: OrderMove) -> None:
    assert_type(m.undoes, int | None)


@with_alias.compensator(OrderState.SHIPPED, name="call back", retry=Retry(attempts=1), timeout=timedelta(minutes=1))
def call_back(m: OrderMove) -> None:
    assert_type(m.context, Order)


@with_alias.on_enter(OrderState.CANCELLED)
async def audit(m: Move[Any, Any, Any]) -> None:
    print(m.id)


with_alias.on_exit(OrderState.CREATED)(lambda m: print(m.context.total))
with_alias.on_enter(OrderState.CANCELLED, name="pager")(partial(notify, channel="pager"))
with_alias.compensator(OrderState.PAID)(Printer())


async def unit_test_of_hooks() -> None:
    m = OrderMove(
        workflow="order",
        id="o-1",
        seq=2,
        source=OrderState.CREATED,
        event=OrderEvent.PAY,
        target=OrderState.PAID,
        context=Order(100),
        payload=Payment(100),
        at=datetime(2030, 1, 1, tzinfo=UTC),
    )
    await audit(m)
    await reserve_stock(m)
    await refund(m)
    event = await reserve_more(m)
    assert event is None or event is OrderEvent.NOTE
    leave(m)
    in_and_out(m)
    call_back(m)


# --- together with rows of one's own --------------------------------------------------------------


async def together(
    orders: Manager[OrderState, OrderEvent, Order], store: Transactional, connection: object
) -> Outcome[OrderState, OrderEvent, Order]:
    async with store.transaction() as tx:
        assert_type(tx, Transaction)
        await orders.start("o-1", Order(total=100), within=tx)
        await tx.connection.execute("INSERT INTO mine VALUES (1)")
        await orders.send("o-1", OrderEvent.PAY, Payment(100), key="evt", within=tx)
    async with SQLiteStore("orders.db").transaction() as tx:
        await orders.send("o-1", OrderEvent.CANCEL, within=tx)
    return await orders.send("o-1", OrderEvent.CANCEL, timeout=5, start=True, within=connection)


own: Transactional = SQLiteStore("orders.db")
theirs: Transactional = PostgresStore("postgresql://db/orders", schema="orders", pool=4, pooler=True)
plain: Store = own

# --- schedules ------------------------------------------------------------------------------------


def nightly(tick: datetime) -> tuple[str, Order]:
    return f"nightly-{tick:%F}", Order(total=0)


def reminder(tick: datetime) -> tuple[str, OrderEvent, Payment]:
    return "o-1", OrderEvent.PAY, Payment(tick.day)


every_night = Schedule("nightly", "0 2 * * *", tz="Europe/Berlin", start=nightly, catch_up="all")
every_month = Schedule("monthly", "0 8 1 * *", send=reminder)


async def scheduled(store: Store) -> None:
    hourly = Schedule("hourly", "0 * * * *", start=lambda tick: (f"{tick:%F %H}", Order(tick.hour)))
    async with Manager(with_alias, store, schedules=[every_night, every_month, hourly]) as orders:
        assert_type(orders, Manager[OrderState, OrderEvent, Order])
        states = await orders.schedules()
        assert_type(states, list[ScheduleState])
        print([(state.name, state.cron, state.tz, state.next_at, state.last_at, state.error) for state in states])
        assert_type(await orders.pause_schedule("nightly", "holidays"), ScheduleState)
        assert (await orders.unpause_schedule("nightly")).paused is False
        assert_type(await orders.trigger("nightly"), datetime)


# --- the manager ----------------------------------------------------------------------------------


async def run(store: Store) -> None:
    async with Manager(with_alias, store, work=False, concurrency=8, lease=timedelta(seconds=5)) as orders:
        assert_type(orders, Manager[OrderState, OrderEvent, Order])
        started = await orders.start("o-1", Order(total=100), key="k", labels={"shop": "north"}, timeout=5)
        assert_type(started, Outcome[OrderState, OrderEvent, Order])
        done = await orders.send("o-1", OrderEvent.PAY, Payment(100), key="evt", timeout=timedelta(seconds=5))
        assert_type(done.transition, Transition[OrderState, OrderEvent, Order])
        assert_type(done.state, OrderState)
        assert not done.duplicate
        assert done.settled
        await orders.send("o-2", OrderEvent.PAY, start=Order(total=100))
        await orders.send("o-3", OrderEvent.PAY, start=True)
        if isinstance(store, Transactional):
            await together(orders, store, object())
        due = await orders.send_later("o-1", OrderEvent.CANCEL, after=timedelta(hours=1), key="reminder")
        assert_type(due, Due)
        await orders.send_later("o-1", OrderEvent.PAY, Payment(1), at=due.at)
        assert_type(await orders.cancel_later(due), bool)
        undone = await orders.compensate("o-1", OrderState.CREATED, key="undo", timeout=30.0)
        undone = await orders.compensate("o-1", to=OrderState.CREATED)
        assert_type(undone.transition.undoes, int | None)
        assert_type(await orders.state("o-1"), OrderState)
        instance = await orders.get("o-1")
        assert_type(instance, Instance[OrderState, Order])
        assert instance.status is Status.RUNNING
        print(instance.workflow, instance.id, instance.seq, instance.context.total, instance.labels["shop"])
        print(instance.started_at - instance.changed_at, instance.reason)
        history = await orders.history("o-1")
        assert_type(history, list[Transition[OrderState, OrderEvent, Order]])
        for line in history:
            print(line.seq, line.kind, line.source, line.event, line.target, line.status, line.key, line.payload)
            print(line.context, line.labels, line.at, line.by, line.undoes, line.reason)
        assert_type(await orders.accepted("o-1"), tuple[OrderEvent, ...])
        assert_type(await orders.settled("o-1", timeout=1), Instance[OrderState, Order])
        resumed = await orders.resume()
        assert_type(resumed, Resumed)
        print(resumed.effects + resumed.timers, resumed.failed)
        assert_type(replay(with_alias, history), Instance[OrderState, Order])
        print(mermaid(with_alias, history=history, counts={(OrderState.CREATED, OrderEvent.PAY): 3}))


async def without_context() -> None:
    async with Manager(light, MemoryStore()) as lights, Manager(bare, SQLiteStore(":memory:")) as orders:
        await lights.start("l-1")
        await lights.send("l-1", Tick.TICK)
        assert_type((await lights.get("l-1")).context, None)
        await orders.start("o-1", Order(1))


async def errors(orders: Manager[OrderState, OrderEvent, Order]) -> None:
    try:
        await orders.send("o-1", OrderEvent.PAY)
    except GuardRejected as e:
        print(e.reasons, e.available, e.state, e.event)
    except IllegalTransition as e:
        print(e.id)
    except HookFailed as e:
        print(e.outcome, e.hook, e.attempt, e.retry_at)
    except WorkflowError as e:
        assert_type(e.committed, bool | None)


# --- what people ask of a drawing, and tools for tests --------------------------------------------

assert_type(with_alias.states, tuple[OrderState, ...])
assert_type(with_alias.events, tuple[OrderEvent, ...])
assert_type(with_alias.accepted(OrderState.PAID), tuple[OrderEvent, ...])
ways: Sequence[Sequence[OrderEvent]] = paths(with_alias)
picture: str = mermaid(light)
clock = FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
faulty = Faults(MemoryStore())
faulty.fail("append", nth=2, when="after")


class TestMine(StoreConformance):
    async def make(self) -> Store:
        return MemoryStore()

    async def reopen(self, store: Store) -> Store:
        return store


def generic_helper(spec: Spec[Any, Any, Any]) -> str:
    return spec.name


generic_helper(with_alias)
generic_helper(light)
