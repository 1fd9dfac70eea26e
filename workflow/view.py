"""Plain rows as people read them: enum members and decoded values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from .codec import Codec
from .errors import InvalidContext, UnknownState
from .record import Head, Instance, Line, Status, Transition
from .spec import C, E, S, Spec

T = TypeVar("T")

_labels: Codec[dict[str, str]] = Codec(dict[str, str])
_plain: Codec[Any] = Codec(Any)
_STATUSES = {status.value: status for status in Status}


def instance(spec: Spec[S, E, C], head: Head) -> Instance[S, C]:
    """The head as an `Instance`. Raises UnknownState, and InvalidContext where code and data drifted."""
    return Instance(
        workflow=head.workflow,
        id=head.id,
        state=state(spec, head),
        seq=head.seq,
        status=Status(head.status),
        context=context(spec, head),
        labels=labels(head.labels),
        started_at=head.started_at,
        changed_at=head.changed_at,
        reason=head.reason,
    )


def state(spec: Spec[S, E, C], head: Head) -> S:
    """The state of the head. Raises UnknownState."""
    try:
        return spec.state_of(head.state)
    except KeyError:
        raise UnknownState(head.workflow, head.id, head.state) from None


def here(spec: Spec[S, E, C], head: Head) -> S:
    """The state of the head; one that the spec no longer knows is given bare."""
    return _known(spec.state_of, head.state)


def context(spec: Spec[S, E, C], head: Head) -> C:
    """The context of the head, None where it was erased. Raises InvalidContext if this spec's type cannot hold it."""
    if head.status == Status.ERASED:
        return cast("C", None)
    try:
        return spec.context_codec.decode(head.context)
    except msgspec.DecodeError as e:
        raise InvalidContext(f"the stored context of {head.workflow} {head.id!r} does not fit the spec: {e}") from e


def labels(text: str) -> Mapping[str, str]:
    """Labels from their JSON."""
    return _labels.decode(text)


def transition(spec: Spec[S, E, C], line: Line, context: str) -> Transition[S, E, C]:
    """The line as a `Transition`; `context` is the text in force after it.

    Never raises: what the spec no longer knows is given bare.
    """
    try:
        source = None if line.source is None else spec.state_of(line.source)
        event = None if line.event is None else spec.event_of(line.event)
        target = spec.state_of(line.target)
    except KeyError:
        source = None if line.source is None else _known(spec.state_of, line.source)
        event = None if line.event is None else _known(spec.event_of, line.event)
        target = _known(spec.state_of, line.target)
    return Transition(  # by place: names would cost as much again
        line.workflow,
        line.id,
        line.seq,
        line.kind,
        source,
        event,
        target,
        _STATUSES[line.status],
        line.key,
        None if line.payload is None else _value(spec.payload_codec(line.event), line.payload),
        None if context == "null" and spec.context is None else _value(spec.context_codec, context),  # type: ignore[arg-type]
        None if line.labels is None else labels(line.labels),
        line.at,
        line.by,
        line.undoes,
        line.reason,
        line.below,
    )


def transitions(spec: Spec[S, E, C], lines: Iterable[Line]) -> list[Transition[S, E, C]]:
    """A whole history, the context carried forward."""
    text = "null"
    seen: list[Transition[S, E, C]] = []
    for line in lines:
        text = text if line.context is None else line.context
        seen.append(transition(spec, line, text))
    return seen


def _known(member: Callable[[str], T], text: str) -> T:
    try:
        return member(text)
    except KeyError:
        return cast("T", text)


def _value(codec: Codec[T], text: str) -> T:
    try:
        return codec.decode(text)
    except msgspec.DecodeError:
        return cast("T", _plain.decode(text))
