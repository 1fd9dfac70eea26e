"""PostgreSQL fails under load, again and again: every call gets an answer, and afterwards everything agrees."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.flows import S
from tests.server import Server
from tests.storm import Storm, terminated
from workflow import Manager, StoreUnavailable


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that may be stopped: it runs again when a test is over."""
    with Server(fsync=False) as server:
        yield server


@pytest.fixture
def storm(server: Server) -> Storm:
    """On a database of its own."""
    name = f"app_{uuid4().hex}"
    return Storm(server.create_role(name), name)


async def test_backends_that_are_terminated_in_mid_commit(storm):
    """Each connection is ended many times while 64 callers commit."""
    ended = 0

    async def trouble() -> None:
        nonlocal ended
        for _ in range(60):
            await asyncio.sleep(random.random() * 0.1)
            ended += await asyncio.to_thread(terminated, storm.url, 0.5)

    async with asyncio.timeout(22), storm.manager() as manager:
        await storm.begin(manager)
        await storm.rage(manager, trouble)
    await storm.agree()
    assert ended > 60
    assert len(storm.heard) > 60


async def test_a_server_that_crashes_under_load(storm, server):
    """Stopped `immediate` and started again while callers commit and `resume` works off what was left behind."""
    resumed = 0

    async def resuming(manager: Manager[Any, Any, Any]) -> None:
        nonlocal resumed
        while True:
            resumed += (await manager.resume()).effects
            await asyncio.sleep(0.01)

    async def trouble() -> None:
        for _ in range(4):
            await asyncio.sleep(0.5 + random.random() / 2)
            await asyncio.to_thread(server.stop, "immediate")
            await asyncio.sleep(random.random() * 0.3)
            await asyncio.to_thread(server.start)
        await asyncio.sleep(0.5)

    async with asyncio.timeout(22):
        async with storm.manager(work=False) as manager:
            await storm.begin(manager)
            await storm.leave(manager, 400)
        async with storm.manager() as manager:
            task = asyncio.create_task(resuming(manager))
            await storm.rage(manager, trouble, tasks=16)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    await storm.agree()
    assert resumed
    assert len(storm.heard) > 100


async def test_reads_go_on_soon_after_a_longer_break(storm, server):
    """Who asks while the server is away hears of it in time, and is served when it is back."""
    async with asyncio.timeout(22), storm.manager(work=False) as manager:
        await storm.begin(manager)
        await asyncio.to_thread(server.stop, "immediate")
        try:
            asking = [asyncio.ensure_future(manager.state(id)) for id in storm.ids]
            await asyncio.sleep(5)
        finally:
            await asyncio.to_thread(server.start)
        for state in await asyncio.gather(*asking, return_exceptions=True):
            assert state is S.A or isinstance(state, StoreUnavailable)
        assert await manager.state(storm.ids[0]) is S.A
