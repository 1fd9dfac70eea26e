"""A warm process that has imported everything; each line it reads makes a child that plays, to its end or its death.

It has no thread and no loop of its own, so a fork is a whole process. `python -m tests.crash.zygote`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from tests.crash.play import Scene, perform

PATIENCE = 30
"""Seconds after which a child that hangs is ended."""


def _child(folder: Path, kill: int | None) -> None:
    signal.alarm(PATIENCE)
    scene = Scene(folder, kill)
    asyncio.run(perform(scene))
    (folder / "trace").write_text(json.dumps(scene.trace))


def main() -> None:
    """Folder and boundary in; how the child ended out."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _child(Path(order["folder"]), order["kill"])
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201  # this is the protocol


if __name__ == "__main__":
    main()
