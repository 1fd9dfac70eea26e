"""Mistakes that both checkers must report, each at its own line and by the rules that its comment names.

A line without such a comment must not be reported. Only read by the checkers (see test_typing.py), never run.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from attrs import frozen

from stores import MemoryStore
from workflow import ANY, STAY, After, Deny, Edge, Manager, Move, Retry, Schedule, Spec, Then, Transactional
from workflow.diagram import mermaid
from workflow.testing import paths, replay


class OrderState(StrEnum):
    CREATED = "created"
    PAID = "paid"


class OrderEvent(StrEnum):
    PAY = "pay"
    NOTE = "note"


class OtherState(StrEnum):
    CREATED = "created"


class OtherEvent(StrEnum):
    PAY = "pay"


@frozen
class Order:
    total: int


@frozen
class Other:
    total: int


OrderMove = Move[OrderState, OrderEvent, Order]
OrderEdge = Edge[OrderState, OrderEvent, Order]
OtherMove = Move[OtherState, OtherEvent, Other]

CREATED, PAID, PAY, NOTE = OrderState.CREATED, OrderState.PAID, OrderEvent.PAY, OrderEvent.NOTE


# --- callbacks that do not fit --------------------------------------------------------------------


def says_why(m: OrderMove) -> str:
    return m.id


def of_other_move(m: OtherMove) -> bool:
    return m.current


def makes_other_context(m: OrderMove) -> Other:
    return Other(m.context.total)


async def assigns_later(m: OrderMove) -> Order:
    return m.context


def starts_other(tick: datetime) -> tuple[str, Other]:
    return f"{tick:%F}", Other(1)


def sends_other(tick: datetime) -> tuple[str, OtherEvent, None]:
    return f"{tick:%F}", OtherEvent.PAY, None


async def starts_later(tick: datetime) -> tuple[str, Order]:
    return f"{tick:%F}", Order(1)


def returns_number(m: OrderMove) -> int:
    return m.seq


def returns_other_event(m: OrderMove) -> OtherEvent:
    return OtherEvent.PAY


async def returns_other_event_later(m: OrderMove) -> OtherEvent:
    return OtherEvent.PAY


def returns_event(m: OrderMove) -> OrderEvent:
    return OrderEvent.NOTE


def takes_two(m: OrderMove, extra: int) -> None: ...


def fits(m: OrderMove) -> None: ...


def is_open(m: OrderMove) -> bool:
    return m.current


# --- edges: with the alias the report stands at the edge's own line -------------------------------

edges = [
    OrderEdge(OtherState.CREATED, PAY, PAID),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge("created", PAY, PAID),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge([CREATED, OtherState.CREATED], PAY, PAID),  # WRONG pyright=reportArgumentType mypy=list-item
    OrderEdge(CREATED, OtherEvent.PAY, PAID),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, OtherState.CREATED),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(STAY, PAY, PAID),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, ANY),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(PAY, CREATED, PAID),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY),  # WRONG pyright=reportCallIssue mypy=call-arg
    OrderEdge(CREATED, PAY, PAID, is_open),  # WRONG pyright=reportCallIssue mypy=call-arg
    OrderEdge(CREATED, PAY, PAID, gaurd=is_open),  # WRONG pyright=reportCallIssue mypy=call-arg
    OrderEdge(CREATED, PAY, PAID, name=1),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, guard=says_why),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, guard=of_other_move),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, guard=takes_two),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, guard=True),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, assign=makes_other_context),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, assign=assigns_later),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, action=returns_number),  # WRONG pyright=reportArgumentType mypy=arg-type
    OrderEdge(CREATED, PAY, PAID, action=[fits, returns_other_event]),  # WRONG pyright=reportArgumentType mypy=list-item
    OrderEdge(CREATED, PAY, PAID, assign=lambda m: m.context.sum),  # WRONG pyright=reportAttributeAccessIssue mypy=attr-defined
]

# --- drawings -------------------------------------------------------------------------------------

order = Spec[OrderState, OrderEvent, Order](
    "order",
    initial=OtherState.CREATED,  # WRONG pyright=reportArgumentType mypy=arg-type
    edges=[OrderEdge(CREATED, PAY, PAID)],
    final={OtherState.CREATED},  # WRONG pyright=reportArgumentType mypy=arg-type
    context=Other,  # WRONG pyright=reportArgumentType mypy=arg-type
    on_enter={OtherState.CREATED: fits},  # WRONG pyright=reportArgumentType mypy=dict-item
    on_exit={CREATED: returns_other_event_later},  # WRONG pyright=reportArgumentType mypy=dict-item
    compensators={PAID: returns_event},  # WRONG pyright=reportArgumentType mypy=dict-item
    payloads={OtherEvent.PAY: int},  # WRONG pyright=reportArgumentType mypy=dict-item
    timeouts={CREATED: After(timedelta(1), OtherEvent.PAY)},  # WRONG pyright=reportArgumentType mypy=arg-type
    on_failure=OtherEvent.PAY,  # WRONG pyright=reportArgumentType mypy=arg-type
    retry=3,  # WRONG pyright=reportArgumentType mypy=arg-type
    renames={"old": OtherState.CREATED},  # WRONG pyright=reportArgumentType mypy=dict-item
    version="1",  # WRONG pyright=reportArgumentType mypy=arg-type
)

bare = Spec[OrderState, OrderEvent, Order](
    "order",
    initial=CREATED,
    edges=[Edge(CREATED, OtherEvent.PAY, PAID)],  # WRONG pyright=reportArgumentType mypy=arg-type
)

without_edges = Spec[OrderState, OrderEvent, Order]("order", initial=CREATED)  # WRONG pyright=reportCallIssue mypy=call-arg


@order.on_enter(OtherState.CREATED)  # WRONG pyright=reportArgumentType mypy=arg-type
def at_other_state(m: OrderMove) -> None: ...


@order.on_enter(PAID)  # WRONG pyright=reportCallIssue,reportArgumentType mypy=arg-type
def with_other_move(m: OtherMove) -> None: ...


@order.on_exit(PAID)  # WRONG pyright=reportCallIssue,reportArgumentType mypy=arg-type
async def with_other_event(m: OrderMove) -> OtherEvent:
    return OtherEvent.PAY


@order.on_enter(PAID)  # WRONG pyright=reportCallIssue,reportArgumentType mypy=arg-type
def then_other_event(m: OrderMove) -> Then[OtherEvent]:
    return Then(OtherEvent.PAY)


@order.compensator(PAID)  # WRONG pyright=reportCallIssue,reportArgumentType mypy=arg-type
async def undo_with_event(m: OrderMove) -> OrderEvent:
    return OrderEvent.NOTE


@order.on_enter(PAID, retries=3)  # WRONG pyright=reportCallIssue mypy=call-arg
def misspelt_retry(m: OrderMove) -> None: ...


@order.on_enter(PAID, timeout=5)  # WRONG pyright=reportArgumentType mypy=arg-type
def timeout_in_seconds(m: OrderMove) -> None: ...


Deny()  # WRONG pyright=reportCallIssue mypy=call-arg
Deny(404)  # WRONG pyright=reportArgumentType mypy=arg-type
Retry(first=1)  # WRONG pyright=reportArgumentType mypy=arg-type
Retry("5")  # WRONG pyright=reportArgumentType mypy=arg-type
Retry(on=timedelta)  # WRONG pyright=reportArgumentType mypy=arg-type


def uses_the_move(m: OrderMove) -> None:
    m.context.total = 3  # WRONG pyright=reportAttributeAccessIssue mypy=misc
    m.seq = 3  # WRONG pyright=reportAttributeAccessIssue mypy=misc
    m.update(lambda order: Other(order.total))  # WRONG pyright=reportArgumentType mypy=arg-type,return-value
    print(m.workflow_id)  # WRONG pyright=reportAttributeAccessIssue mypy=attr-defined
    state: OtherState = m.target  # WRONG pyright=reportAssignmentType mypy=assignment
    print(state, m.source.value)  # WRONG pyright=reportOptionalMemberAccess mypy=union-attr


# --- the manager ----------------------------------------------------------------------------------


async def run(orders: Manager[OrderState, OrderEvent, Order]) -> None:
    Manager(bare, "orders.db")  # WRONG pyright=reportArgumentType mypy=arg-type
    Manager(bare, MemoryStore(), lease=30)  # WRONG pyright=reportArgumentType mypy=arg-type
    Manager(bare, MemoryStore(), schedules=[Schedule("n", "0 2 * * *", start=starts_other)])  # WRONG pyright=reportArgumentType mypy=misc
    Manager(bare, MemoryStore(), schedules=[Schedule("n", "0 2 * * *", send=sends_other)])  # WRONG pyright=reportArgumentType mypy=misc
    Manager(bare, MemoryStore(), schedules=[Schedule("n", "0 2 * * *", start=starts_later)])  # WRONG pyright=reportArgumentType mypy=arg-type
    Schedule("n", "0 2 * * *", start=starts_other, catch_up="two")  # WRONG pyright=reportArgumentType mypy=arg-type
    Schedule("n", "0 2 * * *", "UTC", start=starts_other)  # WRONG pyright=reportCallIssue mypy=call-arg
    await orders.start("o-1", Other(1))  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.start(1, Order(1))  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.start("o-1", Order(1), labels=["north"])  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.send("o-1", OtherEvent.PAY)  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.send("o-1", "pay")  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.send("o-1", PAY, None, "key")  # WRONG pyright=reportCallIssue mypy=call-arg
    await orders.send("o-1", PAY, start=Other(1))  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.send("o-1", PAY, start=False)  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.send("o-1", PAY, timeout="30")  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.compensate("o-1", to=OtherState.CREATED)  # WRONG pyright=reportArgumentType mypy=arg-type
    await orders.compensate("o-1", to=CREATED, within=object())  # WRONG pyright=reportCallIssue mypy=call-arg
    memory: Transactional = MemoryStore()  # WRONG pyright=reportAssignmentType mypy=assignment
    async with memory.transaction() as tx:
        print(tx.commit)  # WRONG pyright=reportAttributeAccessIssue mypy=attr-defined
    await orders.compensate("o-1")  # WRONG pyright=reportCallIssue mypy=call-arg
    orders.send("o-1", PAY)  # WRONG pyright=reportUnusedCoroutine mypy=unused-coroutine
    for line in orders.history("o-1"):  # WRONG pyright=reportGeneralTypeIssues mypy=attr-defined
        print(line)
    event: OrderEvent = await orders.state("o-1")  # WRONG pyright=reportAssignmentType mypy=assignment
    instance = await orders.get("o-1")
    print(event, instance.context.sum)  # WRONG pyright=reportAttributeAccessIssue mypy=attr-defined
    done = await orders.send("o-1", NOTE)
    print(done.transition.state)  # WRONG pyright=reportAttributeAccessIssue mypy=attr-defined
    replay(bare, done.transition)  # WRONG pyright=reportArgumentType mypy=arg-type
    replay(bare, await orders.get("o-1"))  # WRONG pyright=reportArgumentType mypy=arg-type
    mermaid(bare, await orders.history("o-1"))  # WRONG pyright=reportCallIssue mypy=call-arg
    print(paths(bare, orders))  # WRONG pyright=reportCallIssue mypy=call-arg
