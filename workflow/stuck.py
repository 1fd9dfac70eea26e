"""Why an instance does not go on by itself."""

from __future__ import annotations

from datetime import datetime

from .kernel import AnySpec
from .owed import error_of
from .record import QUEUE, Due, Head, Kind, Loaded, Status, Stuck
from .store import Store


async def ailing(spec: AnySpec, store: Store, loaded: Loaded, late: datetime, since: datetime | None) -> Stuck | None:
    """The case, if there is one: work due before `late` is overdue, and a state entered before `since` lasts
    too long."""
    head, whys = loaded.head, list[str]()
    if head.status == Status.FAILED:
        whys.append(head.reason or "failed")
    if not spec.knows(head.state):
        whys.append(f"state {head.state!r} is not drawn")
    if head.status in (Status.RUNNING, Status.FINISHED):
        whys += [why for row in loaded.rows if (why := _waiting(spec, row, late)) is not None]
    if since is not None and head.status != Status.FINISHED:
        entered = await _entered(store, head, since)
        if entered is not None:
            paused = f", {head.status}" if head.status != Status.RUNNING else ""
            whys.append(f"in {head.state!r} since {entered.isoformat(' ', 'seconds')}{paused}")
    if not whys:
        return None
    return Stuck(head.workflow, head.id, head.state, Status(head.status), "; ".join(whys), head.changed_at)


def _waiting(spec: AnySpec, row: Due, late: datetime) -> str | None:
    """Why nobody will do this row, or should have done it long ago."""
    error = error_of(row)
    if row.held:
        return f"{row.name} set aside" + ("" if error is None else f": {error}")
    if row.at >= late:
        return None
    why = f"{row.name} overdue since {row.at.isoformat(' ', 'seconds')}"
    if row.version > spec.version:
        return f"{why}: written by version {row.version} of the spec, this is {spec.version}"
    if row.name == QUEUE and row.token is not None:
        return f"{why}: its owner is gone and nobody has taken it over"
    return why if error is None else f"{why}: {error}"


async def _entered(store: Store, head: Head, since: datetime) -> datetime | None:
    """When it came into its state, if that was before `since`."""
    entered = None
    for line in await store.history(head.workflow, head.id, head.top - 1):
        if line.below is not None or line.kind == Kind.COMPENSATE:
            entered = line.at
    return entered if entered is not None and entered < since else None
