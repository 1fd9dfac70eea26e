"""The tests that every store passes; public, so that authors of other stores can run them too.

    class TestMine(StoreConformance):
        async def make(self) -> Store:
            return MyStore(...)

needs nothing but a runner that awaits methods named `test_*` (pytest with pytest-asyncio does).
"""

from __future__ import annotations

from .append import Appending, Grouping, Stamping
from .due import Claiming, Owing, Waking
from .lease import Leasing, Renewing
from .life import Opening, Sharing, Waiting
from .read import Feeding, Finding, Loading
from .repeat import Keys, Repeating
from .timer import Naming, Timing
from .together import Transacting
from .whole import Erasing, Gathering


class StoreConformance(
    Appending,
    Stamping,
    Grouping,
    Keys,
    Repeating,
    Leasing,
    Renewing,
    Naming,
    Timing,
    Owing,
    Claiming,
    Waking,
    Loading,
    Gathering,
    Erasing,
    Finding,
    Feeding,
    Opening,
    Waiting,
    Sharing,
    Transacting,
):
    """One test for each promise in the docstrings of `workflow.store.Store`.

    `make()` returns a new, empty store that is not opened. `reopen(store)` returns another store
    object on the same data, not opened; the first may be closed or still open. `lacks` names what
    a store cannot do, whose tests then pass without a look: "reopen" (data outlives the object),
    "processes" (several objects on the same data at once), "transaction" (moves within the user's
    own transaction). Each test makes a store of its own; the durability of what was answered is
    not tested here, but by killing processes.
    """


__all__ = ["StoreConformance"]
