"""When a failed effect comes due again."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from attrs import field, frozen, validators

_SHORTEST = timedelta(milliseconds=1)
_pause = [validators.instance_of(timedelta), validators.ge(timedelta(0))]


class Permanent(Exception):
    """Raise it in a hook when trying again cannot help: the effect is given up at once."""


def _kinds(_: object, __: object, on: object) -> None:
    for kind in cast("tuple[object, ...]", on if isinstance(on, tuple) else (on,)):
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"on must be an exception class or a tuple of such, not {on!r}")


@frozen
class Retry:
    """How often and how late a failing effect is tried again; the default lasts about eight hours.

    Attempt n is followed by a pause of `first * factor**(n-1)`, at most `max`, spread by
    ± `jitter` (a share of the pause). An exception that is no instance of `on` is permanent.
    """

    attempts: int = field(default=20, validator=[validators.instance_of(int), validators.ge(1)])
    first: timedelta = field(default=timedelta(seconds=1), validator=_pause)
    factor: float = field(default=2.0, validator=validators.ge(1.0))
    max: timedelta = field(default=timedelta(hours=1), validator=_pause)
    jitter: float = field(default=0.1, validator=[validators.ge(0.0), validators.le(1.0)])
    on: type[Exception] | tuple[type[Exception], ...] = field(default=Exception, validator=_kinds)

    def pause(self, attempt: int, dice: float) -> timedelta:
        """The pause after the failed `attempt` (from 1); `dice` in [0, 1) spreads it.

        Never zero: what failed at an instant must not be due at that same instant again.
        """
        limit = self.max.total_seconds()
        seconds = self.first.total_seconds()
        for _ in range(attempt - 1):
            seconds *= self.factor
            if seconds >= limit:
                break
        seconds = min(seconds, limit) * (1 + self.jitter * (2 * dice - 1))
        return max(timedelta(seconds=seconds), _SHORTEST)

    def again(self, error: BaseException, attempt: int) -> bool:
        """May the effect that raised `error` at `attempt` be tried once more?"""
        return attempt < self.attempts and isinstance(error, self.on) and not isinstance(error, Permanent)
