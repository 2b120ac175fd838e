"""What a pickle of plain values and arrays may do, each operation checked; see ``locallearn.data.pickles``."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

_ARRAY, _EMPTY_ARRAY, _BUFFER, _DTYPE, _LATIN1 = (object() for _ in range(5))
"""What a pickle may look up: marks, which it can neither call nor change."""

_NAMES = {
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
    # numpy has moved these functions between its versions
    "numpy.core.multiarray _reconstruct": _EMPTY_ARRAY,
    "numpy._core.multiarray _reconstruct": _EMPTY_ARRAY,
    "numpy.core.numeric _frombuffer": _BUFFER,
    "numpy._core.numeric _frombuffer": _BUFFER,
    # Python 3 writes the bytes of an array this way in pickles that Python 2 can read
    "_codecs encode": _LATIN1,
}

_NUMBERS = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))

_ORDERS = {"<": "<", ">": ">", "|": "=", "=": "="}


class _Numbers:
    """A type of numbers: its code, and the order of its bytes, which a pickle tells afterwards."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class Reader:
    """Carries out the operations of one pickle.

    Args:
        data: the pickle. Nothing that is made of it takes more memory than a small multiple of its size.

    Every method raises ``pickle.UnpicklingError`` where the pickle asks for something else.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self._unfilled: dict[int, np.ndarray] = {}
        self._left = 2 * len(data)  # bytes that may be copied: a pickle can name what it holds again and again

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self._data[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise pickle.UnpicklingError("it is cut off")
        self._at += count
        return taken

    def line(self) -> bytes:
        """The next line, without its end."""
        end = self._data.find(b"\n", self._at)
        return self.take(end + 1 - self._at)[:-1]

    def number(self, layout: str) -> Any:
        """A number in one of ``struct``'s layouts."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def counted(self, layout: str) -> bytes:
        """Bytes after the number of them."""
        return self.take(self.number(layout))

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the value on top."""
        if not self._stack or (self._marks and self._marks[-1] >= len(self._stack)):
            raise pickle.UnpicklingError("there is nothing to take")
        return self._stack.pop()

    def mark(self) -> None:
        """Begin a list of values."""
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        if not self._marks:
            raise pickle.UnpicklingError("there is no mark")
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def _top(self, kind: type) -> Any:
        value = self.pop()
        if type(value) is not kind:
            raise pickle.UnpicklingError(f"expected a {kind.__name__}, found a {type(value).__name__}")
        self.push(value)
        return value

    def note(self, place: int) -> None:
        """Remember the value on top."""
        value = self.pop()
        self.push(value)
        self.memo[place] = value

    def append(self, values: list[Any]) -> None:
        """Append to the list on top."""
        self._top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Put keys and values in turn into the dictionary on top."""
        into = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # text alone: tuples can be nested too deeply to be looked up, and numbers chosen to collide
            if type(key) not in (str, bytes):
                raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
            into[key] = value

    def look_up(self, module: Any, name: Any) -> None:
        """Push what a module has under a name."""
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("it looks up something without a name")
        if f"{module} {name}" not in _NAMES:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        self.push(_NAMES[f"{module} {name}"])

    def call(self) -> None:
        """Call the function below the arguments on top."""
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) is not object or function not in _CALLS:
            raise pickle.UnpicklingError("it calls something that is no function")
        self.push(_CALLS[function](self, *arguments))

    def fill(self) -> None:
        """Give the array, or the type of numbers, below it the state on top."""
        state, target = self.pop(), self.pop()
        self.push(target)
        if type(state) is not tuple:
            raise pickle.UnpicklingError(f"it changes a {type(target).__name__}")
        if type(target) is _Numbers:
            self._order(target, *state)
        elif id(target) in self._unfilled:
            self._fill(target, *state)
        else:
            raise pickle.UnpicklingError(f"it changes a {type(target).__name__}")

    def _order(self, numbers: _Numbers, version: Any, order: Any, *others: Any) -> None:
        """Whatever else a state can hold is about records, objects and dates."""
        if type(order) is not str or order not in _ORDERS or any(other is not None for other in others[:3]):
            raise pickle.UnpicklingError("an array of records, expected numbers")
        numbers.order = _ORDERS[order]

    def _fill(self, array: np.ndarray, version: Any, shape: Any, numbers: Any, fortran: Any, data: Any) -> None:
        if type(data) is str:
            data = self._encoded(data)
        if type(data) is not bytes:
            raise pickle.UnpicklingError("an array of something else than bytes")
        whole = self._from_buffer(data, numbers, shape, "F" if fortran is True else "C")
        self._copies(len(data))
        del self._unfilled[id(array)]
        state = (1, shape, whole.dtype, fortran is True, data)
        array.__setstate__(state)  # pyright: ignore[reportArgumentType] (numpy's own pickles hold a bool)

    def _copies(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it repeats more than it holds")

    def _encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("it encodes something else than latin-1 text")
        self._copies(len(text))
        return text.encode("latin1")

    def _numbers(self, code: Any, align: Any = False, copy: Any = True) -> _Numbers:
        if type(code) is not str or code not in _NUMBERS:
            raise pickle.UnpicklingError("an array of something else than numbers")
        return _Numbers(code)

    def _empty(self, kind: Any, shape: Any, code: Any) -> np.ndarray:
        if kind is not _ARRAY:
            raise pickle.UnpicklingError("an array of another class")
        array = np.empty(0, np.uint8)
        self._unfilled[id(array)] = array
        return array

    def _from_buffer(self, data: Any, numbers: Any, shape: Any, order: Any) -> np.ndarray:
        """An array on bytes, which must be as many as its shape needs."""
        if type(data) not in (bytes, bytearray) or type(numbers) is not _Numbers:
            raise pickle.UnpicklingError("an array of something else than bytes")
        if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise pickle.UnpicklingError("an array without a shape")
        array = np.ndarray(shape, numbers.dtype(), data, order="F" if order == "F" else "C")
        if array.nbytes != len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array of {array.nbytes}")
        return array


_CALLS: dict[object, Callable[..., Any]] = {
    _EMPTY_ARRAY: Reader._empty,
    _BUFFER: Reader._from_buffer,
    _DTYPE: Reader._numbers,
    _LATIN1: Reader._encoded,
}
