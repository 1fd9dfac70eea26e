"""Values to JSON text and back: encode, decode, equal, or refused.

What was stored must come back equal, so each value is decoded again and compared before anything
is written. The decoded copy is what callbacks see, now or after a crash alike.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Generic, TypeVar, cast

import msgspec
import msgspec.inspect

from .errors import InvalidName

T = TypeVar("T")

LIMIT = 1 << 20
"""Largest encoded payload or context, in bytes."""
NAME_LIMIT = 512
"""Largest id or key, in bytes of UTF-8: what every store can index."""
_BRIEF = 80
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_encoder = msgspec.json.Encoder(decimal_format="string", order="deterministic")


class Unstorable(ValueError):
    """Why a value cannot be stored; the callers turn it into their own error."""


class Codec(Generic[T]):
    """Encodes and decodes the values of one type. Raises TypeError if no decoder can be built."""

    __slots__ = ("_decoder", "type")

    def __init__(self, type: Any) -> None:
        self.type = type
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type)
        strange = _foreign(msgspec.inspect.type_info(type), set())
        if strange is not None:
            raise TypeError(f"{_name(strange)} is no type that JSON can be decoded to")

    def decode(self, text: str) -> T:
        """The value that this text stands for. Raises `msgspec.DecodeError`."""
        return self._decoder.decode(text)

    def encode(self, value: T) -> tuple[str, T]:
        """The JSON text of `value` and the copy that will be read back. Raises `Unstorable`."""
        try:
            raw = _encoded(value)
            copy = self._decoder.decode(raw)
            same = bool(copy == value)
        except Exception as e:  # a value's own encoding and comparison may raise anything
            raise Unstorable(f"{_brief(value)} cannot be stored as {_name(self.type)}: {e}") from e
        if not same:
            hint = "; declare its type" if self.type is Any else ""
            raise Unstorable(f"{_brief(value)} comes back from JSON as {_brief(copy)}, not equal{hint}")
        if len(raw) > LIMIT:
            raise Unstorable(f"{len(raw):,} bytes of JSON are more than the {LIMIT:,} that a line may hold")
        if b"\\u0000" in raw and _NUL.search(raw):
            raise Unstorable(f"{_brief(value)} holds a NUL character, which databases do not store")
        return raw.decode(), copy


def pack(value: object) -> str:
    """JSON text of a value of the engine's own."""
    return _encoder.encode(value).decode()


def digest(text: str, salt: str) -> str:
    """What is kept of a text that was erased: enough to know it again. No JSON text looks like it."""
    return f"blake2b:{hashlib.blake2b(f'{salt}:{text}'.encode(), digest_size=16).hexdigest()}"


def alike(stored: str | None, text: str | None, salt: str) -> bool:
    """Is `stored` this text, or what was kept of it?"""
    return stored == text or (stored is not None and text is not None and stored == digest(text, salt))


def clean(text: str) -> str:
    """What every database stores as text."""
    return text.replace("\0", "\\0").encode(errors="replace").decode()


def said(error: BaseException) -> str:
    """What an error says of itself, as every database stores it."""
    try:
        return clean(str(error))
    except Exception as e:  # noqa: BLE001  # whatever its author did wrong, the error must be told
        return f"it has no text, str() of it raised {type(e).__name__}"


def _encoded(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except TypeError:  # it may only be that a dict has keys that are no `str`, which the sorting encoder cannot do
        plain = msgspec.to_builtins(value, str_keys=True, order="deterministic")
        return _encoder.encode(plain)


def checked(what: str, name: object) -> str:
    """`name` if every store can hold it as an id or key. Raises `InvalidName`."""
    if not isinstance(name, str):
        raise InvalidName(f"{what} must be a str, not {name!r}")
    if name.isascii() and 0 < len(name) <= NAME_LIMIT and "\0" not in name:
        return name  # nearly all are so plain
    try:
        size = len(name.encode())
    except UnicodeEncodeError as e:
        raise InvalidName(f"{what} {name!r} is no valid Unicode text") from e
    if not 0 < size <= NAME_LIMIT:
        raise InvalidName(f"{what} must have 1 to {NAME_LIMIT} bytes of UTF-8, not {size}")
    if "\0" in name:
        raise InvalidName(f"{what} {name!r} holds a NUL character, which databases do not store")
    return name


def _foreign(node: object, seen: set[int]) -> Any:
    """The first class below `node` that msgspec can neither encode nor decode, or None."""
    if isinstance(node, msgspec.inspect.CustomType):
        return None if node.cls is object else node.cls
    if isinstance(node, tuple):
        children = cast("tuple[object, ...]", node)
    elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(node) not in seen:
        seen.add(id(node))
        children = tuple(getattr(node, name) for name in node.__struct_fields__)
    else:
        return None
    return next((found for found in (_foreign(c, seen) for c in children) if found is not None), None)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 3] + "..."


def _name(type: Any) -> str:
    return getattr(type, "__name__", None) or str(type)
