"""Orders behind HTTP: a webhook that may be delivered twice, errors as answers. `python -m examples.service`"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum

import uvicorn
from msgspec import DecodeError, Struct, json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import workflow as wf
from stores import SQLiteStore

State = StrEnum("State", ["CREATED", "PAID"])
Event = StrEnum("Event", ["PAY"])
ANSWERS: dict[int, tuple[type[Exception], ...]] = {
    202: (wf.HookFailed,),  # the move stands, its hook is tried again
    404: (wf.UnknownInstance,),
    409: (wf.IllegalTransition, wf.KeyConflict, wf.AlreadyStarted, wf.NotRunning),
    422: (wf.InvalidPayload, wf.InvalidContext, DecodeError),
    503: (wf.Busy, wf.Conflict, wf.StoreUnavailable),  # the provider delivers it again
}


class Notice(Struct, frozen=True):
    """What the payment provider posts, with the same `id` at each delivery."""

    id: str
    order: str
    amount: int


pay = wf.Edge[State, Event, int](State.CREATED, Event.PAY, State.PAID, guard=lambda m: m.payload >= m.context)
spec = wf.Spec("order", initial=State.CREATED, final={State.PAID}, context=int, payloads={Event.PAY: int}, edges=[pay])


@spec.on_enter(State.PAID)
async def receipt(m: wf.Move[State, Event, int]) -> None:
    """Here a mail goes out, with `m.key` as its idempotency key."""
    print(f"{m.id} paid {m.payload}, {m.key}")


def service(path: str) -> Starlette:
    """The application; its Manager is open while it runs."""
    orders = wf.Manager(spec, SQLiteStore(path))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with orders:
            yield

    async def create(request: Request) -> JSONResponse:  # the body is the total, which is all we keep of an order
        done = await orders.start(request.path_params["id"], json.decode(await request.body(), type=int))
        return JSONResponse({"state": done.state}, 201)

    async def show(request: Request) -> JSONResponse:
        order = await orders.get(request.path_params["id"])
        return JSONResponse({"state": order.state, "total": order.context})

    async def paid(request: Request) -> JSONResponse:
        notice = json.decode(await request.body(), type=Notice)
        done = await orders.send(notice.order, Event.PAY, notice.amount, key=notice.id)
        return JSONResponse({"state": done.state, "duplicate": done.duplicate})

    async def answer(_: Request, error: Exception) -> JSONResponse:
        status = next(status for status, kinds in ANSWERS.items() if isinstance(error, kinds))
        return JSONResponse({"error": str(error)}, status)

    post = Route("/orders/{id}", create, methods=["POST"])
    routes = [post, Route("/orders/{id}", show), Route("/webhooks/payment", paid, methods=["POST"])]
    handlers = {kind: answer for kinds in ANSWERS.values() for kind in kinds}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(service("service.db"))
