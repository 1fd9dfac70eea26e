"""What a caller hands in, in its encoded form; refused here if it could not be had back equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .codec import Codec, Unstorable
from .errors import InvalidContext, InvalidPayload
from .spec import C, E, S, Spec

_labels: Codec[dict[str, str]] = Codec(dict[str, str])


def context(spec: Spec[S, E, C], value: C | None) -> str:
    """A context, by default `Spec.context()`. Raises InvalidContext."""
    if value is None and spec.context is not None:
        try:
            value = spec.context()
        except TypeError as e:
            raise InvalidContext(f"start() without a context needs {spec.context!r} to have defaults: {e}") from e
    try:
        return spec.context_codec.encode(value)[0]  # type: ignore[arg-type]  # None where C is None
    except Unstorable as e:
        raise InvalidContext(str(e)) from e


def payload(spec: Spec[S, E, C], event: str, value: Any) -> tuple[str | None, Any]:
    """A payload, and the copy that hooks will see. Raises InvalidPayload."""
    try:
        text, copy = spec.payload_codec(event).encode(value)
    except Unstorable as e:
        raise InvalidPayload(f"the payload of {event!r}: {e}") from e
    return (None if text == "null" else text), copy


def labels(value: Mapping[str, str]) -> str:
    """Labels. Raises InvalidContext."""
    try:
        return _labels.encode(dict(value))[0]
    except Unstorable as e:
        raise InvalidContext(f"labels: {e}") from e
