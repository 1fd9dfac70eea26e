"""DBOS: a durable workflow for each order, its events durable messages, its hook a step.

All messages are sent as soon as the order is started, none waits for the one before, and on SQLite
the listener looks every 10 ms instead of every second: so that no pause is taken for a cost.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic_ns
from typing import Any

from .. import whole
from ..case import MANY, Stage
from ..database import database
from ..pace import Pace, Sample, drive
from .installed import needed


async def on_sqlite(stage: Stage, pace: Pace) -> Sample:
    """The case on a file."""
    return await _orders(f"sqlite:///{stage.folder}/dbos-{monotonic_ns()}.db", pace)


async def on_postgres(stage: Stage, pace: Pace) -> Sample:
    """The case on a database of its own."""
    url = stage.url()
    needed("dbos")
    async with database(url) as own:
        return await _orders(own, pace)


async def _orders(url: str, pace: Pace) -> Sample:
    package = needed("dbos")
    dbos = package.DBOS
    dbos(
        config={
            "name": "orders",
            "system_database_url": url,
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": 0.01,
        }
    )
    order = _workflow(dbos)
    dbos.launch()
    try:

        async def fulfil(task: int, n: int) -> None:
            id = f"order {task}-{n}"
            with package.SetWorkflowID(id):
                handle = await dbos.start_workflow_async(order, id, 100)
            await dbos.send_async(id, {"amount": 100}, "pay")
            await dbos.send_async(id, None, "pack")
            await dbos.send_async(id, None, "ship")
            whole.same("an order", [await handle.get_result()], [100])

        ran = await drive([partial(fulfil, task) for task in range(MANY)], pace)
        done = await dbos.list_workflows_async(status="SUCCESS", limit=1_000_000, load_input=False, load_output=False)
        wanted = {f"order {task}-{n}" for task, count in enumerate(ran.counts) for n in range(count)}
        whole.same("orders", sorted(status.workflow_id for status in done), sorted(wanted))
    finally:
        await asyncio.to_thread(dbos.destroy, destroy_registry=True)
    return ran.sample


def _workflow(dbos: Any) -> Any:
    @dbos.step()  # type: ignore[untyped-decorator]
    async def reserve(id: str, amount: int) -> None:
        pass

    @dbos.workflow()  # type: ignore[untyped-decorator]
    async def order(id: str, total: int) -> int:
        payment = await dbos.recv_async("pay")
        await reserve(id, payment["amount"])
        await dbos.recv_async("pack")
        await dbos.recv_async("ship")
        return total

    return order
