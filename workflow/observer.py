"""Facts for whoever watches: what was put on record, what hooks did, what went wrong.

Facts are told on the event loop, after the commit that made them true and outside of every lock. An
observer that raises is logged once for each kind of fact, and harms nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from .record import Commit, Kind

_log = logging.getLogger("enumflow")


class Recorded(Struct, frozen=True):
    """A line of history is durable. Bare words, as they are stored."""

    workflow: str
    id: str
    seq: int
    kind: str
    source: str | None
    event: str | None
    target: str
    status: str
    key: str | None
    at: datetime


class Ran(Struct, frozen=True):
    """What became of an effect, or of a due row (then `hook` is the row's name)."""

    workflow: str
    id: str
    seq: int
    """The line that owes it."""
    hook: str
    effect: str
    """Its name in full, as the line owes it: point, state and hook."""
    attempt: int
    duration: float | None = None
    """Seconds for which the hook ran."""
    error: str | None = None
    cause: BaseException | None = None
    """What the hook raised, where that is known."""
    retry_at: datetime | None = None


class Repeated(Struct, frozen=True):
    """A call came with a key that was seen before: nothing ran, it got the first one's answer."""

    workflow: str
    id: str
    key: str | None
    seq: int
    """The line that bears the key."""


class Refused(Struct, frozen=True):
    """A call was refused and nothing written; or (`seq`) a refusal is on record."""

    workflow: str
    id: str
    event: str | None
    key: str | None
    error: str
    cause: BaseException | None = None
    seq: int | None = None


class Trouble(Struct, frozen=True):
    """The store did not do what it was asked."""

    workflow: str
    what: str
    """What it was asked for."""
    error: str
    cause: BaseException
    pause: float | None = None
    """Seconds until it is asked again; None: the caller has got the error, or (`abandoned`) nobody asks again."""
    abandoned: bool = False
    """The work is left until its lease runs out."""


class Observer:
    """Inherit it and override what you want to hear of; all other facts, also those of later versions, pass by.

    The methods are plain functions and must not block: they are called on the event loop.
    A move made inside a transaction of yours (`within=`) is not told of: only its end makes it true.
    """

    def transition_committed(self, fact: Recorded) -> None:
        """A line of history is durable."""

    def effect_started(self, fact: Ran) -> None:
        """A hook is about to be called."""

    def effect_ended(self, fact: Ran) -> None:
        """A hook did its work, and that is on record."""

    def effect_failed(self, fact: Ran) -> None:
        """An attempt failed; `effect_retried` or `effect_gave_up` follows."""

    def effect_retried(self, fact: Ran) -> None:
        """What failed will be tried again at `retry_at`."""

    def effect_gave_up(self, fact: Ran) -> None:
        """Nobody tries again by himself."""

    def lease_lost(self, fact: Ran) -> None:
        """Another process took an effect over; what this one did of it is dropped."""

    def duplicate(self, fact: Repeated) -> None:
        """A call was a repeat."""

    def refused(self, fact: Refused) -> None:
        """An event or another call was refused."""

    def store_unavailable(self, fact: Trouble) -> None:
        """The store did not answer, or refused."""


FACTS: Final = tuple(name for name in vars(Observer) if inspect.isfunction(vars(Observer)[name]) and name[0] != "_")
"""The names of all methods of an observer."""


class LoggingObserver(Observer):
    """What a Manager has by default: facts as records of the logger "enumflow".

    Their fields are attributes of the record (`extra`), and `fact` names the method. What goes its
    way is told at DEBUG, an attempt that will be repeated at INFO, trouble with the store and a lost
    lease at WARNING, what does not go on by itself at ERROR.
    """

    def __init__(self, logger: logging.Logger = _log) -> None:
        self.logger = logger

    def transition_committed(self, fact: Recorded) -> None:
        """At DEBUG."""
        self._write("transition_committed", logging.DEBUG, fact, "line %d of %s %s: %s", fact.seq, fact.kind)

    def effect_started(self, fact: Ran) -> None:
        """At DEBUG."""
        self._write("effect_started", logging.DEBUG, fact, "%s of %s %s begins, attempt %d", fact.hook, fact.attempt)

    def effect_ended(self, fact: Ran) -> None:
        """At DEBUG."""
        self._write("effect_ended", logging.DEBUG, fact, "%s of %s %s is done (%s s)", fact.hook, fact.duration)

    def effect_failed(self, fact: Ran) -> None:
        """At DEBUG: what follows from it is told louder."""
        self._write("effect_failed", logging.DEBUG, fact, "%s of %s %s failed: %s", fact.hook, fact.error)

    def effect_retried(self, fact: Ran) -> None:
        """At INFO."""
        told = f"at attempt {fact.attempt}, tried again at {fact.retry_at}: {fact.error}"
        self._write("effect_retried", logging.INFO, fact, "%s of %s %s failed %s", fact.hook, told)

    def effect_gave_up(self, fact: Ran) -> None:
        """At ERROR, with the traceback."""
        message = "%s of %s %s is given up: %s"
        self._write("effect_gave_up", logging.ERROR, fact, message, fact.hook, fact.error)

    def lease_lost(self, fact: Ran) -> None:
        """At WARNING."""
        message = "%s of %s %s was taken over by another process at attempt %d; what it did here is dropped"
        self._write("lease_lost", logging.WARNING, fact, message, fact.hook, fact.attempt)

    def duplicate(self, fact: Repeated) -> None:
        """At DEBUG."""
        self._write("duplicate", logging.DEBUG, fact, "a repeat of line %d of %s %s, key %s", fact.seq, fact.key)

    def refused(self, fact: Refused) -> None:
        """At DEBUG: the caller knows, or it is on record."""
        self._write("refused", logging.DEBUG, fact, "refused %s for %s %s: %s", fact.event, fact.error)

    def store_unavailable(self, fact: Trouble) -> None:
        """At WARNING if it is asked again, at ERROR if nobody does, at DEBUG if a caller has got the error."""
        extra = _fields("store_unavailable", fact)
        if fact.abandoned:
            message = "%s: %s failed, the lease is left to run out: %s"
            self.logger.error(message, fact.workflow, fact.what, fact.error, extra=extra, exc_info=fact.cause)
        elif fact.pause is None:
            self.logger.debug("%s: %s failed: %s", fact.workflow, fact.what, fact.error, extra=extra)
        else:
            message = "%s: %s failed, trying again in %.1f s: %s"
            self.logger.warning(message, fact.workflow, fact.what, fact.pause, fact.error, extra=extra)

    def _write(
        self,
        name: str,
        level: int,
        fact: Recorded | Ran | Repeated | Refused,
        message: str,
        what: object,
        more: object,
    ) -> None:
        if self.logger.isEnabledFor(level):
            raised = fact.cause if isinstance(fact, Ran) and level >= logging.ERROR else None
            extra = _fields(name, fact)
            self.logger.log(level, message, what, fact.workflow, fact.id, more, extra=extra, exc_info=raised)


def _fields(name: str, fact: Struct) -> dict[str, Any]:
    return {"fact": name} | {field: value for field, value in msgspec.structs.asdict(fact).items() if field != "cause"}


class Watch:
    """One observer as the engine tells it: only of what it listens to, and none of its errors come back."""

    __slots__ = ("_complained", "_effects", "_heed", "_lines", "_logger", "_observer")

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = LoggingObserver() if observer is None else observer
        if not any(hasattr(self._observer, name) for name in FACTS):
            raise TypeError(f"{observer!r} is no observer: it has none of the methods of workflow.Observer")
        self._logger = self._observer.logger if isinstance(self._observer, LoggingObserver) else _log
        self._heed = {name: _heeded(self._observer, name) for name in FACTS}
        """Whether it listens; None: when its logger is at DEBUG."""
        self._complained: set[str] = set()
        self._lines = self._any("transition_committed", "refused")
        self._effects = self._any("effect_started", "effect_ended")

    def hears(self, name: str) -> bool:
        """Is the fact to be made at all?"""
        heed = self._heed[name]
        return self._logger.isEnabledFor(logging.DEBUG) if heed is None else heed

    def hears_lines(self) -> bool:
        """Are lines worth looking at?"""
        return self._logger.isEnabledFor(logging.DEBUG) if self._lines is None else self._lines

    def hears_effects(self) -> bool:
        """Are effects that go their way?"""
        return self._logger.isEnabledFor(logging.DEBUG) if self._effects is None else self._effects

    def _any(self, *names: str) -> bool | None:
        heeds = {self._heed[name] for name in names}
        return True if True in heeds else None if None in heeds else False

    def tell(self, name: str, fact: Recorded | Ran | Repeated | Refused | Trouble) -> None:
        """Tell the observer, if it listens."""
        if not self.hears(name):
            return
        try:
            getattr(self._observer, name)(fact)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001  # whoever watches must not disturb
            if name not in self._complained:
                self._complained.add(name)
                _log.exception("%s of the observer raised; no more is said of its further errors", name)

    def committed(self, commit: Commit, at: datetime) -> None:
        """Tell of the lines of a commit that is durable."""
        for change in commit.changes:
            for line in change.lines:
                fact = Recorded(
                    line.workflow,
                    line.id,
                    line.seq,
                    line.kind,
                    line.source,
                    line.event,
                    line.target,
                    line.status,
                    line.key,
                    at,
                )
                self.tell("transition_committed", fact)
                if line.kind == Kind.REFUSED:
                    reason = line.reason or ""
                    self.tell("refused", Refused(line.workflow, line.id, line.event, line.key, reason, None, line.seq))


_DEBUGGED: Final = frozenset(
    {
        "transition_committed",
        "effect_started",
        "effect_ended",
        "effect_failed",
        "duplicate",
        "refused",
    }
)


def _heeded(observer: object, name: str) -> bool | None:
    """Does it listen to this fact? None: when debugging. Raises TypeError."""
    method = getattr(observer, name, None)
    if method is None:
        return False
    if not callable(method) or inspect.iscoroutinefunction(method):
        raise TypeError(f"{type(observer).__name__}.{name} must be a plain method; facts are told without waiting")
    function = getattr(method, "__func__", method)
    if function is vars(Observer)[name]:
        return False
    if name in _DEBUGGED and function is vars(LoggingObserver)[name]:
        return None
    return True
