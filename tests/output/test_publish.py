import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import types

import pytest
import safetensors.torch
import torch
from faults.interrupting import interrupted_at_each_line

from swatool.errors import OutputError, UsageError
from swatool.output import publish, renaming, unfinished
from swatool.output.layout import OutputTensor
from swatool.output.publish import PendingFile, check_target
from swatool.output.safetensors_file import lay_out
from swatool.output.writing import publish_all
from swatool.tensors import DTYPES

NAME = "out.safetensors"


@pytest.fixture(params=["unnamed", "named"])
def way(request, monkeypatch):
    """Run the test with both kinds of temporary file; the systems of one cannot exchange names, either."""
    if request.param == "named":
        monkeypatch.setattr(publish, "UNNAMED", 0)
        monkeypatch.setattr(renaming, "_renameat2", unsupported)
    elif not publish.UNNAMED:
        pytest.skip("this system has no files without a name")
    return request.param


def unsupported(*_):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / NAME


def put(path, content, **options):
    with PendingFile(path, len(content), **options) as pending:
        pending.write(0, content)
        return pending.publish()


def check(path, *, overwrite=False, inputs=(), nbytes=1):
    check_target(path, overwrite=overwrite, inputs=inputs, nbytes=nbytes)


def identity(path):
    return path.stat().st_dev, path.stat().st_ino


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def run(script, *arguments, **options):
    """Start another Python process that has the modules under test imported."""
    prelude = "import os, sys\nfrom swatool.output import publish\nfrom swatool.output.publish import *\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- what is published


@pytest.mark.usefixtures("way")
def test_a_published_file_is_whole_and_alone(target):
    seconds = put(target, b"content")
    assert target.read_bytes() == b"content"
    assert os.listdir(target.parent) == [NAME]
    assert seconds >= 0


@pytest.mark.usefixtures("way")
def test_the_reference_library_opens_what_was_published(target):
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7)}
    layout = lay_out(
        [OutputTensor("b", DTYPES["float32"], (2, 3)), OutputTensor("a", DTYPES["int64"], ())], {}
    )
    with PendingFile(target, layout.size) as pending:
        pending.write(0, layout.fixed[0].data)
        for name, tensor in state.items():
            pending.write(layout.offsets[name], bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
        pending.publish()
    loaded = safetensors.torch.load_file(target)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_nothing_is_visible_before_it_is_published(way, target):
    with PendingFile(target, 4) as pending:
        pending.write(0, b"full")
        assert not target.exists()
        visible = [name for name in os.listdir(target.parent) if not name.startswith(".")]
        assert visible == []
        assert len(os.listdir(target.parent)) == (way == "named")


@pytest.mark.usefixtures("way")
def test_bytes_that_were_not_written_are_zero_and_the_length_is_the_planned_one(target):
    with PendingFile(target, 10) as pending:
        pending.write(4, b"ab")
        pending.write(6, b"")
        pending.publish()
    assert target.read_bytes() == b"\0\0\0\0ab\0\0\0\0"


def test_short_writes_of_wide_elements_are_continued(target, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    data = memoryview(bytearray(range(16))).cast("I")
    with PendingFile(target, 16) as pending:
        pending.write(0, data)
        pending.publish()
    assert target.read_bytes() == bytes(range(16))


@pytest.mark.usefixtures("way")
def test_short_writes_are_continued(target, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    put(target, b"0123456789")
    assert target.read_bytes() == b"0123456789"


def test_threads_write_side_by_side(target):
    part = 100_000
    with PendingFile(target, 8 * part) as pending:
        threads = [
            threading.Thread(target=pending.write, args=(index * part, bytes([index]) * part))
            for index in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pending.publish()
    assert target.read_bytes() == b"".join(bytes([index]) * part for index in range(8))


@pytest.mark.usefixtures("way")
def test_a_bare_name_goes_to_the_working_folder(target, monkeypatch):
    monkeypatch.chdir(target.parent)
    check(NAME)
    put(NAME, b"x")
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
@pytest.mark.usefixtures("way")
def test_the_longest_name_leaves_room_for_the_hidden_one(target, name):
    path = target.parent / name
    put(path, b"x")
    put(path, b"y", overwrite=True)
    assert os.listdir(target.parent) == [name]


# --- permissions and replacement


@pytest.mark.parametrize(("umask", "expected"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("way")
def test_a_new_file_has_the_mode_that_the_umask_leaves(target, umask, expected, overwrite):
    before = os.umask(umask)
    try:
        put(target, b"x", overwrite=overwrite)
    finally:
        os.umask(before)
    assert mode(target) == expected


@pytest.mark.usefixtures("way")
def test_a_replaced_file_hands_its_mode_on(target):
    target.write_bytes(b"old")
    target.chmod(0o751)
    put(target, b"new", overwrite=True)
    assert target.read_bytes() == b"new"
    assert mode(target) == 0o751
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.usefixtures("way")
def test_a_reader_of_the_replaced_file_keeps_the_old_bytes(target):
    target.write_bytes(b"old")
    with target.open("rb") as opened:
        put(target, b"new", overwrite=True)
        assert opened.read() == b"old"


@pytest.mark.usefixtures("way")
def test_a_symbolic_link_is_replaced_and_its_target_left_alone(target, tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(b"blob")
    target.symlink_to(blob)
    check(target, overwrite=True)
    before = os.umask(0o027)
    try:
        put(target, b"new", overwrite=True)
    finally:
        os.umask(before)
    assert not target.is_symlink()
    assert target.read_bytes() == b"new"
    assert mode(target) == 0o640
    assert blob.read_bytes() == b"blob"


@pytest.mark.usefixtures("way")
def test_of_two_writers_exactly_one_wins(target):
    with PendingFile(target, 5) as first, PendingFile(target, 6) as second:
        first.write(0, b"first")
        second.write(0, b"second")
        second.publish()
        with pytest.raises(UsageError, match="somebody else"):
            first.publish()
    assert target.read_bytes() == b"second"
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.usefixtures("way")
def test_of_two_writers_with_overwrite_the_last_wins(target):
    with PendingFile(target, 5, overwrite=True) as first, PendingFile(target, 6, overwrite=True) as second:
        first.write(0, b"first")
        second.write(0, b"second")
        second.publish()
        first.publish()
    assert target.read_bytes() == b"first"
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.usefixtures("way")
def test_racing_threads_publish_exactly_once(target):
    def compete(content):
        with PendingFile(target, len(content)) as pending:
            pending.write(0, content)
            barrier.wait()
            try:
                pending.publish()
                winners.append(content)
            except UsageError:
                losers.append(content)

    for _ in range(20):
        winners, losers, barrier = [], [], threading.Barrier(2)
        threads = [threading.Thread(target=compete, args=(bytes([i]) * 1000,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == len(losers) == 1
        assert target.read_bytes() == winners[0]
        target.unlink()
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_withdrawn_gives_its_name_back(way, target, old, overwrite):
    if old and overwrite:
        target.write_bytes(old)
    with PendingFile(target, 3, overwrite=overwrite) as pending:
        pending.write(0, b"new")
        pending.withdraw()  # of what has no name yet
        pending.publish()
        pending.withdraw()
        pending.withdraw()
    if not (old and overwrite):
        assert os.listdir(target.parent) == []
    else:  # a system that cannot exchange names has no old file any more
        assert os.listdir(target.parent) == [NAME]
        assert target.read_bytes() == (old if way == "unnamed" else b"new")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("way")
def test_what_somebody_else_has_published_since_is_not_withdrawn(target, overwrite):
    with PendingFile(target, 3, overwrite=overwrite) as pending:
        pending.publish()
        put(target, b"other", overwrite=True)
        pending.withdraw()
    assert target.read_bytes() == b"other"
    assert os.listdir(target.parent) == [NAME]


def test_of_several_outputs_none_is_replaced_if_one_fails(target):
    if not publish.UNNAMED:
        pytest.skip("this system cannot exchange names")
    paths = [target.parent / name for name in "abc"]
    for path in paths[1:]:
        path.write_bytes(b"old")
    with contextlib.ExitStack() as stack:
        pending = [stack.enter_context(PendingFile(path, 3, overwrite=True)) for path in paths]
        pending.append(stack.enter_context(PendingFile(paths[-1], 3)))
        with pytest.raises(UsageError, match="somebody else"):
            publish_all(pending)
    assert sorted(os.listdir(target.parent)) == ["b", "c"]
    assert {path.read_bytes() for path in paths[1:]} == {b"old"}


# --- what is refused beforehand


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("spelling", ["same", "hard link", "symbolic link", "relative", "linked folder"])
def test_an_input_is_refused_however_it_is_spelled(target, tmp_path, monkeypatch, spelling, overwrite):
    source = target.parent / "input.pt"
    source.write_bytes(b"input")
    path = source
    if spelling == "hard link":
        target.hardlink_to(source)
        path = target
    elif spelling == "symbolic link":
        target.symlink_to(source)
        path = target
    elif spelling == "relative":
        monkeypatch.chdir(tmp_path)
        path = "folder/../folder/input.pt"
    elif spelling == "linked folder":
        (tmp_path / "other").symlink_to(target.parent)
        path = tmp_path / "other" / "input.pt"
    with pytest.raises(UsageError, match="is one of the inputs"):
        check(path, overwrite=overwrite, inputs={identity(source)})


def test_a_file_that_is_there_is_refused_without_overwrite(target):
    target.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists: give --overwrite"):
        check(target)
    check(target, overwrite=True)
    assert target.read_bytes() == b"old"


def test_a_dangling_link_counts_as_there(target):
    target.symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists"):
        check(target)
    check(target, overwrite=True)


def test_what_is_not_a_file_is_refused(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # socket names are short
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in (target.parent, tmp_path / "fifo", "socket", "/dev/null"):
            with pytest.raises(UsageError, match="not a file"):
                check(path, overwrite=True)


@pytest.mark.parametrize("path", ["", "new/", ".."])
def test_a_path_without_a_file_name_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        check(path)
    with pytest.raises(UsageError, match="names a folder"):
        PendingFile(path, 1)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write '.*gone/x': folder '.*gone': No such file"):
        check(tmp_path / "gone" / "x")


def test_a_folder_that_is_a_file_and_a_name_that_is_too_long_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="Not a directory"):
        check(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="File name too long"):
        check(tmp_path / ("x" * 256))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
@pytest.mark.usefixtures("way")
def test_a_folder_that_cannot_be_written_to_is_refused(target, monkeypatch, code):
    real = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_RDWR:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=os.strerror(code)):
        check(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission_is_refused(target):
    target.parent.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        check(target)


def test_a_disk_without_room_is_refused_with_figures(target):
    with pytest.raises(OutputError, match=r"1,152,921,504,606,846,976 bytes are needed and [\d,]+ are free"):
        check(target, nbytes=2**60)


def test_a_file_system_that_does_not_tell_its_room_is_trusted(target, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=512))
    check(target, nbytes=10)


@pytest.mark.usefixtures("way")
def test_checking_leaves_nothing_behind(target):
    check(target)
    assert os.listdir(target.parent) == []


# --- failures while it is written


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, OutputError])
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.usefixtures("way")
def test_any_exception_leaves_nothing_but_the_old_file(target, kind, old):
    if old:
        target.write_bytes(old)

    def give_up():
        with PendingFile(target, 4, overwrite=True) as pending:
            pending.write(0, b"half")
            raise kind

    with pytest.raises(kind):
        give_up()
    assert os.listdir(target.parent) == ([NAME] if old else [])
    assert not old or target.read_bytes() == old


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "call", ["posix_fallocate", "pwrite", "fsync", "link", "replace", "fchmod", "_renameat2"]
)
@pytest.mark.parametrize("failure", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_failing_call_leaves_nothing_but_the_old_file(way, target, monkeypatch, call, failure, overwrite):
    if overwrite:
        target.write_bytes(b"old")
    uses = []

    def fail(*_, **__):
        uses.append(call)
        raise failure

    monkeypatch.setattr(renaming if call == "_renameat2" else os, call, fail)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    unused = {"replace": way == "unnamed", "link": overwrite and way == "named"}
    if unused.get(call) or (call in ("replace", "fchmod", "_renameat2") and not overwrite):
        put(target, b"new", overwrite=overwrite)
        assert not uses
        return
    with pytest.raises(expected, match="cannot write .*: Input" if expected is OutputError else None):
        put(target, b"new", overwrite=overwrite)
    assert uses == [call]  # in particular, fsync is not tried again
    assert os.listdir(target.parent) == ([NAME] if overwrite else [])
    assert not overwrite or target.read_bytes() == b"old"


@pytest.mark.usefixtures("way")
def test_descriptors_are_closed_after_success_and_failure(target, monkeypatch):
    before = os.listdir(publish.OPEN_FILES)
    put(target, b"x")
    with pytest.raises(UsageError):
        put(target, b"x")
    monkeypatch.setattr(publish, "reserve", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), PendingFile(target, 1):
        pass
    assert len(os.listdir(publish.OPEN_FILES)) == len(before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.usefixtures("way")
def test_a_full_disk_shows_at_once_with_figures(target, monkeypatch, code):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"; 1,000 bytes are needed and [\d,]+ are free"):
        PendingFile(target, 1000).__enter__()
    assert os.listdir(target.parent) == []


def test_room_that_the_unfinished_file_takes_counts_as_free(target, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=0, f_frsize=4096))
    with PendingFile(target, 1 << 20) as pending, pytest.raises(OutputError) as caught:
        pending.write(0, b"x")
    free = int(str(caught.value).split()[-3].replace(",", ""))
    assert 1 << 20 <= free < 2 << 20


@pytest.mark.parametrize("answer", ["absent", errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.usefixtures("way")
def test_without_fallocate_the_file_gets_its_length(target, monkeypatch, answer):
    def refuse(*_):
        raise OSError(answer, os.strerror(answer))

    if answer == "absent":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    with PendingFile(target, 10) as pending:
        pending.publish()
    assert target.read_bytes() == bytes(10)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT])
def test_a_file_system_without_unnamed_files_gets_a_named_one(target, monkeypatch, code):
    real = os.open

    def refuse(path, flags, *arguments, **options):
        if publish.UNNAMED and flags & publish.UNNAMED == publish.UNNAMED:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with PendingFile(target, 1) as pending:
        (hidden,) = os.listdir(target.parent)
        assert hidden.startswith(f".{NAME}.swatool-")
        pending.publish()
    assert os.listdir(target.parent) == [NAME]


def test_without_proc_a_named_file_is_used(target, monkeypatch):
    monkeypatch.setattr(publish, "OPEN_FILES", "/nowhere")
    put(target, b"x")
    assert target.read_bytes() == b"x"


def test_a_file_system_without_hard_links_is_told_apart(target, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(publish, "UNNAMED", 0)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError, match=r"no hard links.*--overwrite"):
        put(target, b"x")
    assert os.listdir(target.parent) == []
    put(target, b"x", overwrite=True)
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize("overwrite", [False, True])
def test_data_reaches_the_disk_before_the_name_and_the_name_before_the_end(
    way, target, monkeypatch, overwrite
):
    log = []

    def record(call, real):
        def wrapped(*arguments, **options):
            kind = call
            if call == "fsync":
                kind += " folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else " data"
            log.append(kind)
            return real(*arguments, **options)

        return wrapped

    for call in ("pwrite", "fchmod", "fsync", "link", "replace", "unlink"):
        monkeypatch.setattr(os, call, record(call, getattr(os, call)))
    if way == "unnamed":
        monkeypatch.setattr(renaming, "_renameat2", record("exchange", renaming._renameat2))
    if overwrite:
        target.write_bytes(b"old")
    put(target, b"x", overwrite=overwrite)
    named = {
        (False, "unnamed"): ["link"],
        (False, "named"): ["link", "unlink"],
        (True, "unnamed"): ["link", "exchange"],
        (True, "named"): ["replace"],
    }[overwrite, way]
    mode_first = ["fchmod"] if overwrite else []
    old_last = ["unlink"] if overwrite and way == "unnamed" else []
    assert log == ["pwrite", *mode_first, "fsync data", *named, "fsync folder", *old_last]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("code", "tolerated"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_only_a_folder_that_cannot_be_synced_at_all_is_tolerated(
    way, target, monkeypatch, code, tolerated, overwrite
):
    if overwrite:
        target.write_bytes(b"old")
    real = os.fsync

    def fail_on_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    if tolerated:
        put(target, b"x", overwrite=overwrite)
        assert target.read_bytes() == b"x"
        return
    with pytest.raises(OutputError, match="Input/output error"):
        put(target, b"x", overwrite=overwrite)
    if not overwrite:
        assert os.listdir(target.parent) == []
    else:  # a system that cannot exchange names has no old file any more
        assert os.listdir(target.parent) == [NAME]
        assert target.read_bytes() == (b"old" if way == "unnamed" else b"x")


@pytest.mark.parametrize("reserve", ["posix_fallocate", "ftruncate", "pwrite"])
def test_a_limit_on_file_sizes_is_an_output_error(way, target, reserve):
    script = """
        import resource
        from swatool.errors import OutputError
        path, way, reserve = sys.argv[1:]
        if way == "named":
            publish.UNNAMED = 0
        if reserve == "ftruncate":
            del os.posix_fallocate
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with PendingFile(path, 0 if reserve == "pwrite" else 2000) as pending:
                pending.write(0, bytes(2000))
                pending.publish()
        except OutputError as error:
            sys.exit(str(error))
    """
    process = run(script, target, way, reserve)
    _, message = process.communicate(timeout=60)
    assert "File too large" in message
    assert "Traceback" not in message
    assert os.listdir(target.parent) == []


def kill_while_writing(target, way):
    script = """
        import time
        path, way = sys.argv[1:]
        if way == "named":
            publish.UNNAMED = 0
        with PendingFile(path, 1000) as pending:
            pending.write(0, bytes(500))
            print("writing", flush=True)
            time.sleep(60)
    """
    with run(script, target, way) as process:
        assert process.stdout.readline() == "writing\n"
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_a_killed_process_leaves_nothing_or_a_hidden_file_that_the_next_removes(way, target):
    kill_while_writing(target, way)
    left = os.listdir(target.parent)
    assert not target.exists()
    assert len(left) == (way == "named")
    assert all(name.startswith(f".{NAME}.swatool-") and name.endswith(".tmp") for name in left)
    put(target, b"x")
    assert os.listdir(target.parent) == [NAME]


def test_a_process_of_somebody_else_is_alive(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", refuse)
    assert unfinished._is_alive(12345)


def test_temporaries_of_the_living_of_other_machines_and_of_other_targets_stay(target, monkeypatch):
    monkeypatch.setattr(publish, "UNNAMED", 0)
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "uname", lambda: types.SimpleNamespace(nodename="elsewhere"))
        foreign = unfinished.hidden_prefix(NAME)
    prefix = unfinished.hidden_prefix(NAME)
    tail = "0123456789abcdef.tmp"
    stay = {
        f"{prefix}{os.getpid()}-{tail}",
        f"{prefix}1-{tail}",
        f"{foreign}{dead.pid}-{tail}",
        f"{unfinished.hidden_prefix('another')}{dead.pid}-{tail}",
        f"{prefix}{dead.pid}-{tail}.bak",
    }
    for name in (*stay, f"{prefix}{dead.pid}-{tail}"):
        (target.parent / name).touch()
    put(target, b"x")
    assert set(os.listdir(target.parent)) == {NAME, *stay}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("way")
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_one_alone(target, overwrite):
    """And if it comes while a `with` block is entered or left, the command line has it cleaned up."""
    wrong = []
    if overwrite:
        target.write_bytes(b"old")
    for where in interrupted_at_each_line(
        lambda: put(target, b"new", overwrite=overwrite), "/swatool/output/"
    ):
        unfinished.discard_unfinished()
        there = target.read_bytes() if target.exists() else None
        expected = (b"old" if overwrite else None, b"new") if where else (b"new",)
        if there not in expected or os.listdir(target.parent) != [NAME][: there is not None]:
            wrong.append((where, os.listdir(target.parent)))
        assert not unfinished.UNFINISHED
        for left in target.parent.iterdir():
            left.unlink()
        if overwrite:
            target.write_bytes(b"old")
    assert not wrong
