"""Encoding: data of an event as text, by the default JSON encoder or by an application's `encode`."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from uuid import UUID

from ..errors import InvalidEventError

#: An application's encoder, such as `orjson.dumps`. It returns text, or bytes that are UTF-8.
Encode = Callable[[object], str | bytes]
#: What to do about data that the default encoder cannot encode.
HINT = "; LivePush(encode=...) and Publisher(encode=...) take a function that encodes it"
# The likely mistake, by the name of a type.
_MISTAKES = {
    "set": " (it has no order: make it a list)",
    "frozenset": " (it has no order: make it a list)",
    "bytes": " (encode it as base64)",
    "coroutine": " (is an `await` missing?)",
}


def _jsonable(value: object) -> object:
    """Return a value that `json` cannot encode as one that it can. Raises TypeError for an unknown type."""
    match value:
        case date() | time():
            # A datetime is a date.
            return value.isoformat()
        case UUID():
            return str(value)
        case Decimal():
            # A string keeps every digit. JSON has no NaN and no infinity.
            if not value.is_finite():
                raise ValueError(f"Out of range Decimal values are not JSON compliant: {value}")
            return str(value)
        case Enum():
            return value.value
        case type():
            pass
        case _ if is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in fields(value)}
        case _:
            # Without Pydantic in memory, no value is one of its models.
            pydantic = sys.modules.get("pydantic")
            if pydantic is not None and isinstance(value, pydantic.BaseModel):
                # As FastAPI writes a response: with the aliases.
                return value.model_dump(mode="json", by_alias=True)
    name = type(value).__name__
    raise TypeError(f"JSON has no form for a value of type {name}{_MISTAKES.get(name, '')}")


#: The default encoder. Its `default` is not called for what JSON has, so plain data costs nothing more.
_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_jsonable
).encode


def to_json(data: object) -> str:
    """Return data as JSON.

    Beside the types of `json`, these are encoded: date, time and datetime (ISO 8601), UUID, Decimal (as a
    string), Enum (its value), dataclasses, and models of Pydantic (with their aliases). Raises
    InvalidEventError for any other type, and for NaN and infinities.
    """
    try:
        return _encode(data)
    except Exception as error:
        # A model or a dataclass may run code of the application, which may raise anything.
        hint = HINT if isinstance(error, TypeError) else ""
        raise InvalidEventError(
            f"data of type {type(data).__name__} is neither text, UTF-8 bytes nor JSON: {error}{hint}"
        ) from error


def encoded(data: object, encode: Encode) -> object:
    """Return data as `encode` encodes it, unless it is text or bytes already.

    Raises InvalidEventError if `encode` raises, or returns neither text nor bytes.
    """
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        return data
    try:
        text: object = encode(data)
    except Exception as error:
        raise InvalidEventError(
            f"encode cannot encode data of type {type(data).__name__}: {error}"
        ) from error
    if not isinstance(text, (str, bytes)):
        raise InvalidEventError(
            f"encode returned {type(text).__name__} for data of type {type(data).__name__}: it returns str or"
            " bytes, and is not asynchronous"
        )
    return text
