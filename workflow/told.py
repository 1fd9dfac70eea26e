"""What the observer hears of effects and of due rows, once their fate is durable."""

from __future__ import annotations

from datetime import datetime

from .call import Call, Did, Failed, Report
from .codec import said
from .observer import Ran, Trouble, Watch
from .owed import Fault, Held, Step
from .record import Change, Due, Head


def settled(watch: Watch, held: Held, call: Call, report: Report, step: Step, at: datetime) -> None:
    """A step of the queue was committed: what became of the effect at its place."""
    if isinstance(report, Did):
        ended(watch, held.head, call)
    put = step.put
    retry_at = None if put is None or put.held else at + put.wait
    if isinstance(report, Failed):
        error = said(report.error) if step.fault is None else str(step.fault)
        again = None if report.pause is None else retry_at
        fact = _ran(held.head, call, report.culprit, error=error, cause=report.error, retry_at=again)
        watch.tell("effect_failed", fact)
        watch.tell("effect_gave_up" if report.pause is None else "effect_retried", fact)
    elif step.fault is not None:  # a piece this code does not know, or a returned event that was not taken
        fact = _ran(held.head, call, step.culprit, error=str(step.fault), retry_at=retry_at)
        watch.tell("effect_gave_up" if retry_at is None else "effect_retried", fact)


def ended(watch: Watch, head: Head, call: Call) -> None:
    """The effect was done, and that is on record."""
    if call.watched:
        watch.tell("effect_ended", _ran(head, call, call.hook))


def lost(watch: Watch, head: Head, call: Call) -> None:
    """Another owner has the queue."""
    watch.tell("lease_lost", _ran(head, call, call.hook))


def unfired(watch: Watch, due: Due, change: Change, fault: Fault, at: datetime) -> None:
    """Nobody could tell what a due row comes to."""
    put = next((put for put in change.puts if put.name == due.name), None)
    retry_at = None if put is None or put.held else at + put.wait
    fact = Ran(due.workflow, due.id, due.seq, due.name, due.name, due.attempt, error=str(fault), retry_at=retry_at)
    watch.tell("effect_gave_up" if retry_at is None else "effect_retried", fact)


def abandoned(watch: Watch, workflow: str, what: str, error: Exception) -> None:
    """The store refuses again and again; the lease is left to run out."""
    watch.tell("store_unavailable", Trouble(workflow, what, said(error), error, abandoned=True))


def _ran(
    head: Head,
    call: Call,
    hook: str,
    *,
    error: str | None = None,
    cause: BaseException | None = None,
    retry_at: datetime | None = None,
) -> Ran:
    return Ran(head.workflow, head.id, call.seq, hook, call.effect, call.attempt, call.seconds, error, cause, retry_at)
