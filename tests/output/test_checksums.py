import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swatool.output.checksums import SUMS, checksum_line, parse_checksums, sums_of, with_sums
from swatool.output.layout import Piece, one_file, together

DIGEST = "0123456789abcdef" * 4
ODD = ["plain.pt", "with space", "back\\slash", "new\nline", "re\rturn", "ünï", "\udcff", " *x", "\\n"]


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1))
def test_a_line_is_read_as_it_was_written(name):
    line = checksum_line(DIGEST, name)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse_checksums(line) == {name: DIGEST}


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_none(text):
    found = parse_checksums(text)
    assert found is None or all(len(digest) == 64 for digest in found.values())


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no coreutils")
@pytest.mark.parametrize("name", ODD)
def test_sha256sum_writes_and_checks_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    written = subprocess.run(["sha256sum", "--", name], cwd=tmp_path, check=True, capture_output=True).stdout
    parsed = parse_checksums(written)
    assert list(parsed) == [name]
    line = checksum_line(parsed[name], name)
    if "\r" not in name:  # which older releases do not escape
        assert line == written
    (tmp_path / "sums").write_bytes(line)
    subprocess.run(["sha256sum", "--strict", "-c", "sums"], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"x",
        DIGEST.encode() + b"  x",
        DIGEST.encode() + b" x\n",
        DIGEST.encode() + b"  \n",
        DIGEST[1:].encode() + b"  x\n",
        b"g" + DIGEST[1:].encode() + b"  x\n",
        b"\\" + DIGEST.encode() + b"  x\\y\n",
        b"\\" + DIGEST.encode() + b"  x\\\n",
        DIGEST.encode() + b"  x\0\n",
        DIGEST.encode() + b"  x\n\n",
        DIGEST.encode() + b"  x\n" + DIGEST[::-1].encode() + b"  x\n",
    ],
)
def test_what_is_no_list_of_checksums(text):
    assert parse_checksums(text) is None


def test_binary_mode_capitals_and_repeated_lines_are_accepted():
    text = DIGEST.upper().encode() + b" *x\n" + DIGEST.encode() + b"  x\n"
    assert parse_checksums(text) == {"x": DIGEST}


def test_lines_that_end_as_those_of_windows_are_accepted():
    assert parse_checksums(DIGEST.encode() + b"  x\r\n" + DIGEST.encode() + b"  y\n") == {
        "x": DIGEST,
        "y": DIGEST,
    }
    assert parse_checksums(checksum_line(DIGEST, "x\r")) == {"x\r": DIGEST}


def test_a_folder_has_room_for_the_checksums_of_all_other_files():
    files = {"b\\": one_file([Piece(0, b"x")], {}, 1), "a": one_file([], {"t": 0}, 4)}
    layout = with_sums(together(files))
    *others, last = layout.files
    assert [file.name for file in others] == ["b\\", "a"]
    assert last.name == SUMS
    text = sums_of({"b\\": DIGEST, "a": DIGEST})
    assert last.nbytes == len(text)
    assert parse_checksums(text) == {"a": DIGEST, "b\\": DIGEST}
    assert last.begin > others[-1].begin + others[-1].nbytes
    alone = one_file([], {}, 4)
    assert with_sums(alone) is alone
