"""enumflow: durable state machines out of enum classes, for asyncio services."""

from .cron import Schedule
from .errors import (
    AlreadyStarted,
    Busy,
    Conflict,
    Finished,
    GuardError,
    GuardRejected,
    HookFailed,
    IllegalTransition,
    InvalidContext,
    InvalidName,
    InvalidPayload,
    InvalidSpec,
    KeyConflict,
    LeaseLost,
    NotRunning,
    Reentrant,
    StoreError,
    StoreUnavailable,
    UnknownInstance,
    UnknownSchedule,
    UnknownState,
    WorkflowError,
)
from .manager import Manager
from .observer import LoggingObserver, Observer
from .record import Instance, Outcome, Query, Resumed, Status, Stuck, Transition
from .retry import Permanent, Retry
from .schedule import ScheduleState
from .spec import Spec
from .store import Store, Transaction, Transactional
from .timekeeper import Due
from .word import ANY, STAY, After, Deny, Edge, Move, Then
from .worker import Worker

__all__ = [
    "ANY",
    "STAY",
    "After",
    "AlreadyStarted",
    "Busy",
    "Conflict",
    "Deny",
    "Due",
    "Edge",
    "Finished",
    "GuardError",
    "GuardRejected",
    "HookFailed",
    "IllegalTransition",
    "Instance",
    "InvalidContext",
    "InvalidName",
    "InvalidPayload",
    "InvalidSpec",
    "KeyConflict",
    "LeaseLost",
    "LoggingObserver",
    "Manager",
    "Move",
    "NotRunning",
    "Observer",
    "Outcome",
    "Permanent",
    "Query",
    "Reentrant",
    "Resumed",
    "Retry",
    "Schedule",
    "ScheduleState",
    "Spec",
    "Status",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "Stuck",
    "Then",
    "Transaction",
    "Transactional",
    "Transition",
    "UnknownInstance",
    "UnknownSchedule",
    "UnknownState",
    "Worker",
    "WorkflowError",
]
