"""Arrays out of a pickle: equal to numpy's own reading for honest files, and no way into memory for others."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from finesight.data.unpickling import load_arrays
from finesight.errors import DataError


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def dtype(name: str) -> bytes:
    state = b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"t"
    return b"cnumpy\ndtype\n(" + text(name) + b"\x89\x88tR" + state + b"b"


def array(content: bytes, count: int, name: str) -> bytes:
    made = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + raw(b"b") + b"tR"
    return made + b"(" + number(1) + b"(" + number(count) + b"t" + dtype(name) + b"\x89" + raw(content) + b"tb"


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"\x80\x02" + content + b".")
    with pytest.raises(DataError, match="Get it anew") as error:
        load_arrays(path, "Get it anew.")
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "<i8", ">f4", "b1"])
def test_honest_arrays_are_those_that_were_written(protocol: int, kind: str, tmp_path: Path) -> None:
    values = np.asfortranarray((np.arange(24) % 2).reshape(2, 3, 4).astype(kind))
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps({"train": values, b"labels": [1, 2], "name": ("a", None)}, protocol))
    found = load_arrays(path, "Get it anew.")
    np.testing.assert_array_equal(found["train"], values)
    assert found["train"].dtype == values.dtype
    assert found[b"labels"] == [1, 2]
    assert found["name"] == ["a", None]


def test_raw_bytes_never_become_pointers(tmp_path: Path) -> None:
    """With numpy's own classes the first of these is an array of addresses, and the second reads them and crashes."""
    addresses = array(b"\x41" * 8, 1, "O8")
    assert "type 'O8'" in refused(tmp_path, addresses)
    assert "type 'O8'" in refused(tmp_path, b"cnumpy\nndarray\n(" + addresses + b"tR")
    assert "other means than its bytes" in refused(tmp_path, b"cnumpy\nndarray\n(" + number(1) + b"tR")


def test_shape_and_bytes_must_agree(tmp_path: Path) -> None:
    assert "cannot have the shape [9]" in refused(tmp_path, array(b"\x01" * 8, 9, "u1"))
    assert "cannot have the shape" in refused(tmp_path, array(b"\x01" * 8, 2**31 - 1, "f8"))
    refused(tmp_path, array(b"\x01" * 8, -1, "u1"))


def test_types_cannot_be_changed_from_inside_a_file(tmp_path: Path) -> None:
    for name in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        refused(tmp_path, name + b"}" + text("value") + b"K\x01sb")
        refused(tmp_path, name + b"N}" + text("value") + b"K\x01s\x86b")
