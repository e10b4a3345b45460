import multiprocessing
import os
import stat
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from finesight.data import archives, images
from finesight.errors import DataError


def write(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return str(path)


def special(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = mode << 16
    return member


NOISE = np.random.default_rng(0).bytes(5000)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_what_was_written(tmp_path, method):
    members = [(f"cat/{number} ä.jpg", os.urandom(number * 100)) for number in range(20)]
    path = write(tmp_path / "a.zip", members, method)
    assert list(archives.index(path)) == [name for name, _ in members]
    for name, data in reversed(members):
        assert archives.read(path, name) == data


def test_a_long_extra_field_of_the_local_header_is_skipped(tmp_path):
    member = zipfile.ZipInfo("cat/1.jpg")
    member.extra = b"\xfe\xca" + (200).to_bytes(2, "little") + b"x" * 200
    path = write(tmp_path / "a.zip", [(member, NOISE), ("cat/2.jpg", b"two")])
    assert archives.read(path, "cat/1.jpg") == NOISE
    assert archives.read(path, "cat/2.jpg") == b"two"


def test_clutter_and_folders_are_left_out(tmp_path):
    names = ["__MACOSX/cat/._1.jpg", "cat/.DS_Store", "cat/Thumbs.db", ".hidden/1.jpg", "cat/", "cat/1.jpg"]
    assert list(archives.index(write(tmp_path / "a.zip", [(name, b"") for name in names]))) == ["cat/1.jpg"]


ATTACKS = {
    "absolute": (["/etc/passwd.jpg"], "'/etc/passwd.jpg' has an absolute path"),
    "drive": (["C:/cat/1.jpg"], "'C:/cat/1.jpg' has an absolute path"),
    "climbs": (["cat/../../1.jpg"], "'cat/../../1.jpg' climbs out"),
    "backslash": (["cat\\..\\1.jpg"], "has a backslash"),
    "link": ([special("cat/1.jpg", stat.S_IFLNK | 0o777)], "'cat/1.jpg' is a link"),
    "fifo": ([special("cat/1.jpg", stat.S_IFIFO | 0o644)], "'cat/1.jpg' is a special file"),
    "twice": (["cat/1.jpg", "cat/1.jpg"], "'cat/1.jpg' stands twice"),
    "twice in disguise": (["cat/1.jpg", "cat/./1.jpg"], "'cat/./1.jpg' stands twice"),
    "nested": (["cat/1.jpg", "more.tar.gz"], "'more.tar.gz' is itself an archive"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_dangerous_members_are_refused_before_anything_is_read(tmp_path, attack, monkeypatch):
    members, cause = ATTACKS[attack]
    path = write(tmp_path / "a.zip", [("dog/0.jpg", b"fine"), *((member, b"data") for member in members)])
    monkeypatch.setattr(archives, "_handle", lambda owner: pytest.fail("a member was read"))
    for call in (lambda: archives.index(path), lambda: archives.read(path, "dog/0.jpg")):
        with pytest.raises(DataError) as caught:
            call()
        (problem,) = caught.value.problems
        assert problem.startswith(f"{path}: member ")
        assert cause in problem
        assert "give the folder" in problem


def test_all_dangerous_members_are_reported_at_once(tmp_path):
    path = write(tmp_path / "a.zip", [(f"../{number}.jpg", b"") for number in range(30)])
    with pytest.raises(DataError) as caught:
        archives.index(path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 10 more such problems."


def test_a_member_that_explodes_is_refused(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", bytes(10_000_000)), ("cat/2.jpg", os.urandom(200_000))])
    with pytest.raises(DataError, match=r"'cat/1.jpg' unpacks to 10,000,000 bytes, more than 100 times"):
        archives.index(path)


def test_members_that_overlap_to_explode_together_are_refused(tmp_path):
    # Many directory entries for one body: each is modest, together they are not (Fifield 2019).
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.jpg", bytes(90_000) + NOISE)
        body = archive.filelist[0]
        for number in range(1, 2000):
            copy = zipfile.ZipInfo(f"cat/{number}.jpg")
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(copy, name, getattr(body, name))
            archive.filelist.append(copy)
    with pytest.raises(DataError, match=r"a.zip: unpacks to 190,000,000 bytes, more than 100 times its size"):
        archives.index(str(path))


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_ENTRIES", 10)
    path = write(tmp_path / "a.zip", [(f"cat/{number}.jpg", b"") for number in range(11)])
    with pytest.raises(DataError, match="11 entries, more than 10 are refused"):
        archives.index(path)


def flip(path, place, value):
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        file.write(value)


def test_encrypted_members_are_refused(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", NOISE)])
    directory = open(path, "rb").read().index(b"PK\x01\x02")
    flip(path, directory + 8, b"\x01\x00")
    with pytest.raises(DataError, match="'cat/1.jpg' is encrypted"):
        archives.index(path)


def test_unusual_compression_is_refused_with_its_number(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", NOISE)], zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="'cat/1.jpg' is compressed by method 14"):
        archives.index(path)


@pytest.mark.parametrize("fault", ["cut", "no zip", "bad directory", "empty"])
def test_damaged_archives_are_refused(tmp_path, fault):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", NOISE)])
    data = open(path, "rb").read()
    directory = data.index(b"PK\x01\x02")
    broken = {
        "cut": data[:-40],
        "no zip": b"no zip at all" * 100,
        "bad directory": data[:directory] + b"XXXX" + data[directory + 4 :],
        "empty": b"",
    }
    open(path, "wb").write(broken[fault])
    with pytest.raises(DataError, match=r"a\.zip: not a readable zip archive"):
        archives.index(path)


def test_a_flipped_byte_is_found_by_the_checksum(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", NOISE)], zipfile.ZIP_STORED)
    flip(path, 200, b"\xff" if NOISE[161] != 255 else b"\x00")
    with pytest.raises(images.BadImage, match=r"a\.zip: member 'cat/1\.jpg' is damaged \(its checksum is wrong\)"):
        images.read({"bytes": None, "path": images.zip_path(path, "cat/1.jpg")})


def test_a_member_that_lies_about_its_size_cannot_explode(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", bytes(1_000_000) + NOISE)])
    directory = open(path, "rb").read().index(b"PK\x01\x02")
    flip(path, directory + 24, (1000).to_bytes(4, "little"))
    with pytest.raises(DataError, match="1,001 bytes where 1,000 were promised"):
        archives.read(path, "cat/1.jpg")


def test_a_replaced_archive_is_read_anew(tmp_path):
    path = write(tmp_path / "a.zip", [("cat/1.jpg", b"old")])
    assert archives.read(path, "cat/1.jpg") == b"old"
    write(tmp_path / "b.zip", [("cat/0.jpg", b"first"), ("cat/1.jpg", b"new")])
    os.replace(tmp_path / "b.zip", path)
    assert archives.read(path, "cat/1.jpg") == b"new"


def test_a_missing_archive_or_member_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.zip: cannot be read: No such file"):
        archives.read(str(tmp_path / "none.zip"), "x")
    with pytest.raises(DataError, match="holds no member 'x'"):
        archives.read(write(tmp_path / "a.zip", [("cat/1.jpg", b"")]), "x")


def read_all(path):
    return [archives.read(path, name) for name in archives.index(path)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_do_not_disturb_each_other(tmp_path, method):
    path = write(tmp_path / "a.zip", [(f"cat/{number}.jpg", os.urandom(3000)) for number in range(300)])
    expected = read_all(path)  # the parent has the archive open before its children start
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(read_all, [path] * 4)
        assert read_all(path) == expected
        assert all(result == expected for result in results.get(60))


def test_threads_do_not_disturb_each_other(tmp_path):
    path = write(tmp_path / "a.zip", [(f"cat/{number}.jpg", os.urandom(3000)) for number in range(300)])
    expected = read_all(path)
    with ThreadPoolExecutor(8) as pool:
        assert all(result == expected for result in pool.map(read_all, [path] * 8))


def test_60000_small_members_are_read_in_seconds(real_data):
    path = str(real_data / "cifar10/cifar10_jpeg.zip")
    archives._index.cache_clear()
    start = time.perf_counter()
    names = list(archives.index(path))
    total = sum(len(archives.read(path, name)) for name in names)
    assert time.perf_counter() - start < 6  # 1.1 s when nothing else runs
    assert len(names) == 60_000
    with zipfile.ZipFile(path) as archive:
        assert total == sum(member.file_size for member in archive.infolist())
        for name in names[::5000]:
            assert archives.read(path, name) == archive.read(name)
