"""Pickles that may hold nothing but numbers, text, lists, dictionaries and arrays of numbers.

Python's own unpickler is not used. Even where it may look up nothing but numpy, a pickle can hand numpy the state of
an array of objects, whose elements are then addresses that the pickle chose; it can set attributes of what it looked
up; and a few bytes can make it allocate any amount of memory. Here every operation is one of a table, arrays are made
by us, and whatever else a pickle asks for ends it.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any

from locallearn.data.pickle_reader import Reader
from locallearn.errors import DataError


def load_pickle(data: bytes, where: str) -> Any:
    """Read a pickle that holds arrays of numbers and plain values only; text of Python 2 is taken as latin-1.

    Args:
        data: the pickle.
        where: the file that it came from, for messages.

    Raises:
        DataError: it holds anything else, or is damaged.
    """
    try:
        return _read(Reader(data))
    except (pickle.UnpicklingError, LookupError, ValueError, TypeError, MemoryError, struct.error) as error:
        reason = " ".join(str(error)[:200].split()) or type(error).__name__
        raise DataError(f"{where} is not a pickle of plain arrays, and was refused: {reason}") from None


def _read(reader: Reader) -> Any:
    while (code := reader.take(1)) != pickle.STOP:
        if code not in _OPERATIONS:
            raise pickle.UnpicklingError(f"it asks for operation {code!r}")
        _OPERATIONS[code](reader)
    return reader.pop()


def _string(reader: Reader) -> str:
    """Text of Python 2 as it is printed."""
    line = reader.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise pickle.UnpicklingError("text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


def _whole(text: bytes) -> int | bool:
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text)


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _pushing(value: Callable[[Reader], Any]) -> Callable[[Reader], None]:
    return lambda reader: reader.push(value(reader))


def _tuple_of(count: int) -> Callable[[Reader], None]:
    return _pushing(lambda reader: tuple(reader.pop() for _ in range(count))[::-1])


def _dict(reader: Reader) -> None:
    values = reader.since_mark()
    reader.push({})
    reader.set_items(values)


def _set_item(reader: Reader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.set_items([key, value])


_OPERATIONS: dict[bytes, Callable[[Reader], Any]] = {
    pickle.PROTO: lambda r: r.take(1),
    pickle.FRAME: lambda r: r.take(8),
    pickle.MARK: lambda r: r.mark(),
    pickle.POP: lambda r: r.pop(),
    pickle.POP_MARK: lambda r: r.since_mark(),
    # plain values
    pickle.NONE: _pushing(lambda _: None),
    pickle.NEWTRUE: _pushing(lambda _: True),
    pickle.NEWFALSE: _pushing(lambda _: False),
    pickle.INT: _pushing(lambda r: _whole(r.line())),
    pickle.LONG: _pushing(lambda r: int(r.line().removesuffix(b"L"))),
    pickle.BININT: _pushing(lambda r: r.number("<i")),
    pickle.BININT1: _pushing(lambda r: r.number("B")),
    pickle.BININT2: _pushing(lambda r: r.number("<H")),
    pickle.LONG1: _pushing(lambda r: _signed(r.counted("B"))),
    pickle.LONG4: _pushing(lambda r: _signed(r.counted("<i"))),
    pickle.FLOAT: _pushing(lambda r: float(r.line())),
    pickle.BINFLOAT: _pushing(lambda r: r.number(">d")),
    pickle.STRING: _pushing(_string),
    pickle.BINSTRING: _pushing(lambda r: r.counted("<i").decode("latin1")),
    pickle.SHORT_BINSTRING: _pushing(lambda r: r.counted("B").decode("latin1")),
    pickle.UNICODE: _pushing(lambda r: r.line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: _pushing(lambda r: _text(r.counted("<I"))),
    pickle.SHORT_BINUNICODE: _pushing(lambda r: _text(r.counted("B"))),
    pickle.BINUNICODE8: _pushing(lambda r: _text(r.counted("<Q"))),
    pickle.BINBYTES: _pushing(lambda r: r.counted("<I")),
    pickle.SHORT_BINBYTES: _pushing(lambda r: r.counted("B")),
    pickle.BINBYTES8: _pushing(lambda r: r.counted("<Q")),
    pickle.BYTEARRAY8: _pushing(lambda r: bytearray(r.counted("<Q"))),
    # lists, tuples and dictionaries
    pickle.EMPTY_LIST: _pushing(lambda _: []),
    pickle.EMPTY_TUPLE: _pushing(lambda _: ()),
    pickle.EMPTY_DICT: _pushing(lambda _: {}),
    pickle.LIST: _pushing(lambda r: r.since_mark()),
    pickle.TUPLE: _pushing(lambda r: tuple(r.since_mark())),
    pickle.TUPLE1: _tuple_of(1),
    pickle.TUPLE2: _tuple_of(2),
    pickle.TUPLE3: _tuple_of(3),
    pickle.DICT: _dict,
    pickle.APPEND: lambda r: r.append([r.pop()]),
    pickle.APPENDS: lambda r: r.append(r.since_mark()),
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: lambda r: r.set_items(r.since_mark()),
    # what was read before
    pickle.PUT: lambda r: r.note(int(r.line())),
    pickle.BINPUT: lambda r: r.note(r.number("B")),
    pickle.LONG_BINPUT: lambda r: r.note(r.number("<I")),
    pickle.MEMOIZE: lambda r: r.note(len(r.memo)),
    pickle.GET: _pushing(lambda r: r.memo[int(r.line())]),
    pickle.BINGET: _pushing(lambda r: r.memo[r.number("B")]),
    pickle.LONG_BINGET: _pushing(lambda r: r.memo[r.number("<I")]),
    # arrays
    pickle.GLOBAL: lambda r: r.look_up(r.line().decode(), r.line().decode()),
    pickle.STACK_GLOBAL: lambda r: r.look_up(*(r.pop(), r.pop())[::-1]),
    pickle.REDUCE: lambda r: r.call(),
    pickle.BUILD: lambda r: r.fill(),
}
