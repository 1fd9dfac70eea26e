"""Who waits for whom."""

from __future__ import annotations

import asyncio
import contextvars

from workflow import circle

ONE, TWO, THREE = ((1, "flow", id) for id in "ijk")


def test_outside_of_hooks_nothing_closes():
    """Who is no hook waits for whom he likes."""
    assert not circle.closes(ONE)
    with circle.waiting(ONE):
        assert not circle._frames


def test_a_hook_and_its_own_instance():
    """The smallest circle; another store, workflow or id is another instance."""
    with circle.hook(ONE):
        assert circle.closes(ONE)
        assert not circle.closes(TWO)
        assert not circle.closes((2, "flow", "i"))
        assert not circle.closes((1, "other", "i"))
    assert not circle.closes(ONE)


def test_two_and_three():
    """Where i waits for j waits for k, k's hook may not wait for any of them."""
    one, two = contextvars.copy_context(), contextvars.copy_context()
    frames = []

    def enter(node, target):
        for manager in (circle.hook(node), circle.waiting(target)):
            manager.__enter__()
            frames.append(manager)

    one.run(enter, ONE, TWO)
    two.run(enter, TWO, THREE)
    with circle.hook(THREE):
        assert circle.closes(ONE)
        assert circle.closes(TWO)
        assert circle.closes(THREE)
    two.run(frames.pop().__exit__, None, None, None)
    with circle.hook(THREE):
        assert not circle.closes(ONE)
    one.run(frames[1].__exit__, None, None, None)
    two.run(frames[2].__exit__, None, None, None)
    one.run(frames[0].__exit__, None, None, None)


def closes_from_j():
    """May a hook of j wait for i?"""
    with circle.hook(TWO):
        return circle.closes(ONE)


def test_two_hooks_of_one_instance():
    """One that lost its lease may still run beside its successor: whoever ends, the other's waits still count."""
    old, new = contextvars.copy_context(), contextvars.copy_context()
    first, second, wait = circle.hook(ONE), circle.hook(ONE), circle.waiting(TWO)
    old.run(first.__enter__)
    new.run(second.__enter__)
    new.run(wait.__enter__)
    assert closes_from_j()
    old.run(first.__exit__, None, None, None)
    assert closes_from_j()
    new.run(wait.__exit__, None, None, None)
    assert not closes_from_j()
    new.run(second.__exit__, None, None, None)


def test_several_waits_of_one_hook():
    """A hook that waits for one instance twice waits until both have ended."""
    two = contextvars.copy_context()
    with circle.hook(ONE):
        with circle.waiting(TWO):
            with circle.waiting(TWO):
                pass
            assert two.run(closes_from_j)
        assert not two.run(closes_from_j)


async def test_a_task_that_outlives_the_hook():
    """When the hook has ended its tasks are their own masters."""
    ended, answer = asyncio.Event(), []

    async def later():
        answer.append(circle.closes(ONE))
        await ended.wait()
        answer.append(circle.closes(ONE))
        with circle.waiting(TWO):
            assert not closes_from_j()

    with circle.hook(ONE):
        task = asyncio.create_task(later())
        await asyncio.sleep(0)
    ended.set()
    await task
    assert answer == [True, False]
