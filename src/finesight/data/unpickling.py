"""Published files that exist as pickles only, read through a reader that knows nothing but arrays.

A pickle can run any code when it is read. This is the one place that reads data from one, and its reader
knows no name but those of numpy arrays and bytes.
"""

import gzip
import io
from pathlib import Path
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np

from finesight.errors import DataError

# The largest such file that is published here, MNIST-M, has 165 MB.
MOST_BYTES = 1 << 29
_GZIP = b"\x1f\x8b"
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    # How Python 3 writes bytes for Python 2.
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


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
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except UnpicklingError as error:
        raise DataError(f"{path}: {error}. {remedy}") from None
    except Exception as error:  # a damaged file can raise nearly anything here
        raise DataError(f"{path}: damaged ({error}). {remedy}") from None


class _ArraysOnly(Unpickler):
    """Reads lists, dicts, text, bytes and numpy arrays; any other name in the file is refused unread."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UnpicklingError(f"refused: it names {module}.{name}, which no file of plain arrays contains")
