"""A local file as a source: refused without waiting, read exactly or not at all, watched for changes."""

import errno
import os
import random
import socket
import subprocess
import sys
import time

import pytest

from swatool.checkpoints import files
from swatool.checkpoints.files import MAX_PIECES, LocalFile, LocalFolder, last_name
from swatool.errors import CheckpointError, OutputError

DATA = random.Random(1).randbytes(10_240)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(DATA)
    # Time stamps go in ticks of some milliseconds: what is done to the file later must fall into another one.
    time.sleep(0.02)
    opened = LocalFile(path)
    yield opened
    opened.close()


def refusal(path):
    """Open in another process, so that waiting for ever would be a failure and not a hang."""
    code = (
        "import sys\n"
        "from swatool.checkpoints.files import LocalFile\n"
        "from swatool.errors import CheckpointError\n"
        "try:\n    LocalFile(sys.argv[1])\n"
        "except CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=10)
    assert not done.stderr
    assert repr(os.fspath(path)) in done.stdout
    return done.stdout


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    assert "not a regular file" in refusal(tmp_path / "x.pt")


def test_a_folder_is_refused(tmp_path):
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused(device):
    refusal(device)


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.pt")
        refusal(tmp_path / "x.pt")


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_a_path_that_cannot_exist_is_refused(path):
    with pytest.raises(CheckpointError, match="cannot open"):
        LocalFile(path)


def test_a_dangling_link_is_refused_and_one_to_a_file_is_followed(tmp_path, file):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="dangling"):
        LocalFile(tmp_path / "dangling")
    (tmp_path / "link").symlink_to(file.path)
    linked = LocalFile(tmp_path / "link")
    assert linked.key == file.key
    assert linked.read(0, 4) == DATA[:4]
    linked.close()


def test_a_refused_file_is_not_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CheckpointError):
            LocalFile(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_known_of_a_file(file):
    status = os.stat(file.path)
    assert file.size == len(DATA)
    assert file.key == (status.st_dev, status.st_ino)
    assert file.mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 0), (0, 1), (7, 300), (0, len(DATA)), (len(DATA), 0)])
def test_a_range_is_read_exactly(file, offset, nbytes):
    assert file.read(offset, nbytes) == DATA[offset : offset + nbytes]


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, len(DATA) + 1), (len(DATA) - 3, 4), (len(DATA), 1), (len(DATA) + 500, 1), (2**62, 1)],
)
def test_reading_past_the_end_is_refused(file, offset, nbytes):
    with pytest.raises(CheckpointError, match=r"x\.pt' ends at byte .* truncated"):
        file.read(offset, nbytes)


def test_reading_past_the_end_into_several_buffers_is_refused(file):
    with pytest.raises(CheckpointError, match=f"ends at byte {len(DATA)}"):
        file.read_into([bytearray(100), bytearray(len(DATA)), bytearray(3)], 0)


def test_a_system_error_names_the_file(file, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(CheckpointError, match=r"x\.pt' at byte 12 failed: Input/output error"):
        file.read(12, 4)


def read_in_pieces(file, lengths, offset):
    """Read into buffers of these lengths, of which every second is a view into a larger one."""
    larger = [bytearray(b"?" * (length + 2)) for length in lengths]
    buffers = [
        memoryview(one)[1:-1] if index % 2 else bytearray(len(one) - 2) for index, one in enumerate(larger)
    ]
    file.read_into(buffers, offset)
    assert all(one[0] == one[-1] == ord("?") for one in larger[1::2])
    assert [len(buffer) for buffer in buffers] == lengths
    return b"".join(buffers)


LENGTHS = [[], [0], [5], [1, 0, 2, 0, 0, 7, 100], [0, 0, 3], [3, 0]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_several_buffers_are_filled_one_after_the_other(file, lengths):
    assert read_in_pieces(file, lengths, 11) == DATA[11 : 11 + sum(lengths)]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 99])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_short_read_is_gone_on_with(file, monkeypatch, most, lengths):
    honest = os.preadv

    def short(descriptor, buffers, offset):
        got = honest(descriptor, [bytearray(min(most, sum(map(len, buffers))))], offset)
        data = os.pread(descriptor, got, offset)
        for buffer in buffers:
            part, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(part)] = part
        return got

    monkeypatch.setattr(os, "preadv", short)
    assert read_in_pieces(file, lengths, 11) == DATA[11 : 11 + sum(lengths)]
    with pytest.raises(CheckpointError, match=f"ends at byte {len(DATA)}"):
        file.read(len(DATA) - 5, 6)


@pytest.mark.parametrize("count", [MAX_PIECES - 1, MAX_PIECES, MAX_PIECES + 1, 3 * MAX_PIECES + 5])
def test_more_buffers_than_one_call_takes(file, count):
    lengths = [index % 4 for index in range(count)]
    assert read_in_pieces(file, lengths, 3) == DATA[3 : 3 + sum(lengths)]


def append(path):
    with open(path, "ab") as file:
        file.write(b"x")


def rewrite_in_place(path):
    with open(path, "r+b") as file:
        file.write(b"other")


def rewrite_in_place_and_put_the_time_back(path):
    status = os.stat(path)
    rewrite_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_rename(path):
    other = f"{path}.new"
    with open(other, "wb") as file:
        file.write(DATA)
    os.rename(other, path)


def truncate(path):
    os.truncate(path, 100)


CHANGES = [append, rewrite_in_place, rewrite_in_place_and_put_the_time_back, replace_by_rename, truncate]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_noticed(file, change):
    file.check_unchanged()
    change(file.path)
    with pytest.raises(CheckpointError, match=r"x\.pt' changed while it was read"):
        file.check_unchanged()


def test_a_file_that_cannot_be_looked_at_any_more_is_an_error(file):
    os.close(file._descriptor)
    with pytest.raises(CheckpointError, match=r"cannot look at .*x\.pt': Bad file descriptor"):
        file.check_unchanged()
    file._descriptor = -1


@pytest.mark.parametrize("what", ["open", "listdir"])
@pytest.mark.parametrize("room", [True, False])
def test_too_many_open_files(tmp_path, monkeypatch, what, room):
    """The process lets itself have more, if it may; else the error says what is to be done."""
    (tmp_path / "x.pt").write_bytes(DATA)
    honest, raised = getattr(os, what), []

    def full(*arguments):
        if not raised:
            raise OSError(errno.EMFILE, "Too many open files")
        return honest(*arguments)

    monkeypatch.setattr(os, what, full)
    monkeypatch.setattr(files, "_raise_limit", lambda: raised.append(1) or True if room else False)
    use = (lambda: LocalFile(tmp_path / "x.pt")) if what == "open" else (lambda: LocalFolder(tmp_path, None))
    if room:
        assert use().path.startswith(str(tmp_path))
    else:
        with pytest.raises(OutputError, match="too many files are open; raise ulimit -n"):
            use()


def test_a_file_that_was_read_is_unchanged(file):
    file.read(0, file.size)
    time.sleep(0.02)
    file.check_unchanged()


def test_a_truncated_file_is_an_error_and_no_signal(file):
    truncate(file.path)
    assert file.read(0, 100) == DATA[:100]
    with pytest.raises(CheckpointError, match="ends at byte 100"):
        file.read(0, 101)


def test_closing_twice_is_harmless(file):
    before = len(os.listdir("/proc/self/fd"))
    file.close()
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("run/a.pt", "a.pt"),
        ("run/", "run"),
        ("./run/.", "run"),
        (".", "inner"),
        ("./", "inner"),
        ("..", "outer"),
        ("../.", "outer"),
        ("x/..", "inner"),
        ("..a", "..a"),
        ("/", ""),
    ],
)
def test_the_name_of_a_path(tmp_path, monkeypatch, path, name):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    assert last_name(path) == name
