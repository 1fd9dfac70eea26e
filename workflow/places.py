"""Places for work: how much one process takes on at once, and which of several workflows may take more.

Work that has begun keeps its place until it ends, so each workflow keeps a few places free of the
others, and whoever has the fewest comes first when all want more.
"""

from __future__ import annotations

from collections.abc import Callable

_KEPT = 4
"""One in so many places is kept for workflows that have nothing to do at the moment."""


class Guest:
    """One workflow's share of the places."""

    __slots__ = ("_places", "_ring", "hungry", "served", "used")

    def __init__(self, places: Places, ring: Callable[[], None]) -> None:
        self._places = places
        self._ring = ring
        self.used = 0
        self.hungry = False
        """More is due than it has places for, as far as it knows."""
        self.served = 0
        """When it last took one; who waits longer comes first."""

    def take(self) -> int:
        """There is work: take what may be had, at once, and say how many that is. What turns out not to
        be needed is to be given back."""
        self.hungry = True
        offered = self._places.offered(self)
        if offered:
            self.used += offered
            self.served = self._places.tick()
        return offered

    def give_back(self, count: int = 1) -> None:
        """Work has ended, or was not there."""
        if count:
            self.used -= count
            self._places.stir(self)

    def sate(self) -> None:
        """No more is due at the moment."""
        if self.hungry:
            self.hungry = False
            self._places.stir(self)

    def pressed(self) -> bool:
        """Does work wait for a place that this one could give?"""
        return self._places.full and self._places.wanted

    def leave(self) -> None:
        """For good."""
        self._places.leave(self)

    def wake(self) -> None:
        """There may be a place now."""
        self._ring()


class Places:
    """So many places, and who shares them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._guests: list[Guest] = []
        self._ticks = 0

    def join(self, ring: Callable[[], None]) -> Guest:
        """A new guest; `ring` is called when it wanted more and may now have some."""
        guest = Guest(self, ring)
        self._guests.append(guest)
        return guest

    def leave(self, guest: Guest) -> None:
        """It takes no more, and what it has does not count any longer."""
        if guest in self._guests:
            self._guests.remove(guest)
            guest.hungry = False
            self.stir(guest)

    @property
    def full(self) -> bool:
        """Is every place taken?"""
        return sum(guest.used for guest in self._guests) >= self.size

    @property
    def wanted(self) -> bool:
        """Does anybody want more?"""
        return any(guest.hungry for guest in self._guests)

    def tick(self) -> int:
        """A number greater than all before."""
        self._ticks += 1
        return self._ticks

    def offered(self, guest: Guest) -> int:
        """How many more this guest may take now."""
        kept = 0
        if len(self._guests) <= self.size:
            kept = max(1, self.size // (_KEPT * len(self._guests)))
        free = self.size - sum(each.used for each in self._guests)
        wanting = [guest]
        for other in self._guests:
            if other is guest:
                continue
            if other.hungry:
                wanting.append(other)
            else:
                free -= max(0, kept - other.used)
        return max(0, free) if len(wanting) == 1 else _share(free, guest, wanting)

    def stir(self, but: Guest) -> None:
        """Places became free: wake others who wanted more and may have some."""
        for guest in self._guests:
            if guest is not but and guest.hungry and self.offered(guest):
                guest.wake()


def _share(free: int, guest: Guest, wanting: list[Guest]) -> int:
    """What `guest` gets if one place after the other goes to whoever has the fewest."""
    has = {id(each): each.used for each in wanting}
    for _ in range(free):
        least = min(wanting, key=lambda each: (has[id(each)], each.served))
        has[id(least)] += 1
    return has[id(guest)] - guest.used
