"""CI: `def` hooks work in threads, a flaky step is tried again, one that is hopeless becomes an event.

python -m examples.ci
"""

import asyncio
import subprocess
import sys
from datetime import timedelta
from enum import StrEnum

from attrs import frozen

from stores import MemoryStore
from workflow import ANY, Edge, HookFailed, Manager, Move, Retry, Spec

State = StrEnum("State", ["QUEUED", "CLONING", "TESTING", "PASSED", "BROKEN", "CANCELLED"])
Event = StrEnum("Event", ["PICK", "TEST", "PASS", "BREAK", "CANCEL"])


@frozen
class Build:
    """What is tested; cloning it fails `flaky` times before it works."""

    code: str
    flaky: int = 0


BuildMove = Move[State, Event, Build]
BuildEdge = Edge[State, Event, Build]

ci = Spec[State, Event, Build](
    "ci",
    initial=State.QUEUED,
    final={State.PASSED, State.BROKEN, State.CANCELLED},
    context=Build,
    edges=[
        BuildEdge(State.QUEUED, Event.PICK, State.CLONING),
        BuildEdge(State.CLONING, Event.TEST, State.TESTING),
        BuildEdge(State.TESTING, Event.PASS, State.PASSED),
        BuildEdge({State.CLONING, State.TESTING}, Event.BREAK, State.BROKEN),
        BuildEdge(ANY, Event.CANCEL, State.CANCELLED),
    ],
)


@ci.on_enter(State.CLONING, retry=Retry(first=timedelta(milliseconds=20)))
def clone(m: BuildMove) -> Event | None:
    """What it raises is stored, and it is run again by its `Retry`; after a cancelling nobody waits for it."""
    if m.attempt <= min(m.context.flaky, 3):
        raise ConnectionError("the git server hung up")
    return None if not m.current else Event.BREAK if m.attempt > 3 else Event.TEST


@ci.on_enter(State.TESTING)
def test(m: BuildMove) -> Event:
    """Not `async`: it blocks a thread, never the loop."""
    done = subprocess.run([sys.executable, "-c", m.context.code], check=False, capture_output=True)  # noqa: S603  # it is CI
    return Event.BREAK if done.returncode else Event.PASS


async def main() -> None:
    """One that is good, one bad, one flaky, one hopeless, and one that nobody wants any more."""
    wrong, right = Build("assert 1 + 1 == 3"), Build("assert 1 + 1 == 2")
    async with Manager(ci, MemoryStore()) as builds:
        for id, build in (("good", right), ("bad", wrong), ("flaky", Build("", 2)), ("hopeless", Build("", 9))):
            await builds.start(id, build)
            try:
                await builds.send(id, Event.PICK)
            except HookFailed as failed:  # the move stands and the hook comes again: nothing to do but wait
                print(f"{id}: {failed.hook} failed at attempt {failed.attempt}: {failed.error}")
            print(f"{id}: {(await builds.settled(id)).state}")
        await builds.start("unwanted", right)
        print(f"unwanted: {(await builds.send('unwanted', Event.CANCEL)).state}")


if __name__ == "__main__":
    asyncio.run(main())
