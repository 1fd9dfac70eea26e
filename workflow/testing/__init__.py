"""For the tests of your own workflows, and of your own stores."""

from __future__ import annotations

from .clock import FakeClock
from .conformance import StoreConformance
from .faults import Faults
from .paths import paths
from .replay import replay

__all__ = ["FakeClock", "Faults", "StoreConformance", "paths", "replay"]
