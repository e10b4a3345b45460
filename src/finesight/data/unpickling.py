"""Published files that exist as pickles only, read through a reader that knows nothing but arrays.

A pickle can run any code when it is read. This is the one place that reads data from one, and its reader
knows no name but those of numpy arrays and bytes.
"""

import gzip
import io
import math
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np

from finesight.errors import DataError

# The largest such file that is published here, MNIST-M, has 165 MB.
MOST_BYTES = 1 << 29
_GZIP = b"\x1f\x8b"
_PLAIN = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}


def load_arrays(path: Path, remedy: str) -> Any:
    """What a pickle, plain or packed by gzip, holds: lists, dicts, text, numbers and numpy arrays.

    Text written by Python 2 comes as bytes. `remedy` ("Get the official x.tar.gz.") ends every message.
    Raises `DataError` for a file that names anything else, without looking it up; for a damaged one; and
    for one that unpacks to more than `MOST_BYTES`.
    """
    try:
        with open(path, "rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UnpicklingError(f"refused: it unpacks to more than {MOST_BYTES:,} bytes")
        return _filled(_ArraysOnly(io.BytesIO(data), encoding="bytes").load())
    except UnpicklingError as error:
        raise DataError(f"{path}: {error}. {remedy}") from None
    except Exception as error:  # a damaged file can raise nearly anything here
        raise DataError(f"{path}: damaged ({error}). {remedy}") from None


# The file builds these and not what numpy has: numpy trusts the state it is given, which can point anywhere.


class _Dtype:
    """A number type by its name and byte order."""

    def __init__(self, name: Any, _align: Any = False, _copy: Any = False) -> None:
        text = _text(name)
        if text not in _PLAIN:
            raise UnpicklingError(f"refused: it holds values of type {text!r}, and only plain numbers are read")
        self.value = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "=") or state[3:5] != (None, None):
            raise UnpicklingError("refused: an array type that is not a plain number")
        self.value = np.dtype(order.replace("|", "=") + self.value.str[1:])


class _Array:
    """An array: its bytes are checked against its shape and copied."""

    value: Any = None

    def __init__(self, _kind: Any, _shape: Any, _type: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if type(dtype) is not _Dtype or type(raw) is not bytes or any(type(n) is not int or n < 0 for n in shape):
            raise UnpicklingError("refused: an array that is not plain numbers")
        values = np.frombuffer(raw, dtype.value)
        if math.prod(shape) != len(values):
            raise UnpicklingError(f"an array of {len(values):,} values cannot have the shape {list(shape)}")
        self.value = values.reshape(shape, order="F" if fortran else "C").copy()


class _Kind:
    """Stands for `numpy.ndarray`, which a file names but never needs to call."""

    def __init__(self, *_given: Any) -> None:
        raise UnpicklingError("refused: it makes an array by other means than its bytes")

    def __setstate__(self, _state: Any) -> None:
        raise UnpicklingError("refused: it changes a type")


class _Encoded(_Kind):
    """How Python 3 writes bytes for Python 2: `_codecs.encode(text, "latin1")`."""

    def __new__(cls, text: str, _codec: Any) -> bytes:  # type: ignore[misc]
        return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Encoded,
}


class _ArraysOnly(Unpickler):
    """Reads lists, dicts, text, bytes and numpy arrays; any other name in the file is refused unread."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UnpicklingError(f"refused: it names {module}.{name}, which no file of plain arrays contains")


def _filled(content: Any) -> Any:
    """The content with real arrays in the place of the stand-ins."""
    if isinstance(content, _Array):
        if content.value is None:
            raise UnpicklingError("an array without content")
        return content.value
    if isinstance(content, dict):
        return {key: _filled(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_filled(value) for value in content]
    if content is None or isinstance(content, str | bytes | int | float):
        return content
    raise UnpicklingError(f"refused: it holds a {type(content).__name__}, which is no plain content")


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)
