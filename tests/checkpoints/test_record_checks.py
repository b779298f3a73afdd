import zipfile

import pytest
import torch

from swatool.checkpoints.files import LocalFile
from swatool.checkpoints.record_checks import RecordChecks, has_records
from swatool.checkpoints.zip_records import data_offset, read_directory
from swatool.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    torch.save({"a": torch.arange(1000.0), "b": torch.arange(7), "e": torch.zeros(0)}, tmp_path / "c.pt")
    return tmp_path / "c.pt"


def read(path, piece):
    file = LocalFile(path)
    try:
        checks = RecordChecks(file)
        for position in range(0, file.size, piece):
            data = file.read(position, min(piece, file.size - position))
            checks.take(position, memoryview(data))
        return checks
    finally:
        file.close()


@pytest.mark.parametrize("piece", [1, 7, 64, 1000, 4096, 1 << 20])
def test_every_record_is_compared_in_pieces_of_any_size(path, piece):
    with zipfile.ZipFile(path) as archive:
        expected = sum(one.CRC != 0 for one in archive.infolist())
    checks = read(path, piece)
    assert (checks.checked, checks.wanted) == (expected, 0)


@pytest.mark.parametrize("piece", [13, 1 << 20])
def test_each_byte_of_a_record_counts_and_no_other(path, piece):
    file = LocalFile(path)
    spans = {one.name: (data_offset(file, one), one.size) for one in read_directory(file).values()}
    file.close()
    whole = path.read_bytes()
    for name, (begin, size) in spans.items():
        for place in {begin, begin + size // 2, begin + size - 1} if size else ():
            changed = bytearray(whole)
            changed[place] ^= 0x10
            path.write_bytes(changed)
            with pytest.raises(CheckpointError, match=f"its record '{name}' does not match its checksum"):
                read(path, piece)
    changed = bytearray(whole)
    begin, size = spans["c/data/0"]
    changed[begin - 1] ^= 0x10  # padding
    path.write_bytes(changed)
    read(path, piece)


def test_records_without_a_checksum_are_passed_over(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(5)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    before = read(tmp_path / "x.pt", 64)
    assert before.wanted == 0


def test_an_empty_record_with_a_checksum_does_not_match(path):
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        empty = [one.filename for one in archive.infolist() if not one.file_size]
    for name in empty[:1]:
        central = data.rindex(b"PK\1\2", 0, data.rindex(name.encode()))
        path.write_bytes(data[: central + 16] + b"\1\0\0\0" + data[central + 20 :])
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            read(path, 100)


def test_what_is_no_zip_file(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "y").write_bytes(b"PK\3")
    for name in "xy":
        file = LocalFile(tmp_path / name)
        assert not has_records(file)
        file.close()
