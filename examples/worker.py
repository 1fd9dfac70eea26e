"""Two processes on one file: a service that only sends, a worker that does the rest. `python -m examples.worker`

The worker is `python -m workflow work examples.worker:worker`. Start as many as you like, on PostgreSQL on any machine;
what one leaves undone when it stops or dies, another does.
"""

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from stores import SQLiteStore
from workflow import After, Edge, Manager, Move, Retry, Spec, Worker

State = StrEnum("State", ["UPLOADED", "ENCODED", "REFUSED", "DELETED"])
Event = StrEnum("Event", ["ENCODE", "REFUSE", "EXPIRE"])
VideoMove = Move[State, Event]
VideoEdge = Edge[State, Event]

video = Spec[State, Event](
    "video",
    initial=State.UPLOADED,
    final={State.DELETED, State.REFUSED},
    edges=[
        VideoEdge(State.UPLOADED, Event.ENCODE, State.ENCODED),
        VideoEdge(State.UPLOADED, Event.REFUSE, State.REFUSED),
        VideoEdge(State.ENCODED, Event.EXPIRE, State.DELETED),
    ],
    timeouts={State.ENCODED: After(timedelta(seconds=0.5), Event.EXPIRE)},
)


@video.on_enter(State.UPLOADED, retry=Retry(first=timedelta(seconds=0.1)))
async def encode(m: VideoMove) -> Event:
    """Work that a service should not do between two requests."""
    print(f"process {os.getpid()} encodes {m.id}, attempt {m.attempt}", flush=True)
    if m.id == "holiday" and m.attempt < 3:
        raise MemoryError("too many videos")
    return Event.REFUSE if m.id == "nonsense" else Event.ENCODE


def worker() -> Worker:
    """What the command line names: a Worker, or a function that makes one."""
    return Worker(Manager(video, SQLiteStore(os.environ["VIDEOS"])), drain=timedelta(seconds=10))


async def service(ids: list[str]) -> None:
    """Answers as soon as a move is durable: `work=False` looks for nothing that is due, `inline=False` runs no hook."""
    async with Manager(video, SQLiteStore(os.environ["VIDEOS"]), work=False, inline=False) as videos:
        for id in ids:
            begun = await videos.start(id)
            print(f"process {os.getpid()} has taken {id}:", "done" if begun.settled else "to be done")
        print(f"process {os.getpid()} waits", flush=True)
        while missing := [id for id in ids if (await videos.get(id)).status != "finished"]:
            await videos.settled(missing[0])
            await asyncio.sleep(0.05)
        for id in ids:
            print(id, *(line.target for line in await videos.history(id)))


def main() -> None:
    """The service, with one worker beside it, which hears SIGTERM at the end."""
    with TemporaryDirectory() as folder:
        os.environ["VIDEOS"] = str(Path(folder) / "videos.db")
        command = [sys.executable, "-m", "workflow", "work", f"{Path(__file__).stem}:worker"]
        with subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL) as process:  # noqa: S603  # this very file
            try:
                asyncio.run(service(["cat", "holiday", "nonsense"]))
            finally:
                process.terminate()
        print("the worker ended with", process.returncode)


if __name__ == "__main__":
    main()
