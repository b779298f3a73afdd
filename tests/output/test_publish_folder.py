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
from faults.interrupting import interrupted_at_each_line

from swatool.errors import OutputError, UsageError
from swatool.output import occupant, open_files, publish_folder, renaming, unfinished
from swatool.output.layout import OutputFile, Piece, one_file, together
from swatool.output.publish import PendingFile
from swatool.output.publish_folder import PendingFolder, check_folder_target
from swatool.output.writing import check_output, writing

NAME = "out"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# What stands in the weights that swatool writes, and lets a folder of them be replaced.
SIGNED = b" {swatool}"
NEW = {SHARDS[0]: b"first" + SIGNED, SHARDS[1]: b"second" + SIGNED, "config.json": b"{}"}
OLD = {"model.safetensors": b"old" + SIGNED, "tokenizer.json": b"[]"}


@pytest.fixture(params=["renameat2", "plain"])
def way(request, monkeypatch):
    """Run the test with the system's renames with flags, and without."""
    if request.param == "plain":
        monkeypatch.setattr(renaming, "_renameat2", unsupported)
    return request.param


def unsupported(*_):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "parent"
    folder.mkdir()
    return folder / NAME


def layout_of(files):
    return together({name: one_file([Piece(0, data)], {}, len(data)) for name, data in files.items()})


def put(path, files, **options):
    layout = layout_of(files)
    with PendingFolder(path, layout.files, **options) as pending:
        for position, data in layout.fixed:
            pending.write(position, data)
        return pending.publish()


def make(path, files):
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def empty(path):
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


def contents(path):
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def check(path, *, overwrite=False, inputs=(), nbytes=1):
    check_folder_target(path, overwrite=overwrite, inputs=inputs, nbytes=nbytes)


def identity(path):
    return path.stat().st_dev, path.stat().st_ino


# --- what is published


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}///"])
def test_a_published_folder_is_whole_and_alone(target, spelling):
    seconds = put(spelling.format(target), NEW)
    assert contents(target) == NEW
    assert os.listdir(target.parent) == [NAME]
    assert seconds >= 0


@pytest.mark.parametrize("name", [NAME, f"{NAME}/"])
def test_a_bare_name_goes_to_the_working_folder(target, monkeypatch, name):
    monkeypatch.chdir(target.parent)
    check(name)
    put(name, NEW)
    assert contents(target) == NEW


def test_nothing_is_visible_before_it_is_published(target):
    layout = layout_of(NEW)
    with PendingFolder(target, layout.files) as pending:
        pending.write(layout.files[1].begin, NEW[SHARDS[1]])
        (hidden,) = os.listdir(target.parent)
        assert hidden.startswith(f".{NAME}.swatool-")
        sizes = {entry.name: entry.stat().st_size for entry in (target.parent / hidden).iterdir()}
        assert sizes == {name: len(data) for name, data in NEW.items()}
    assert os.listdir(target.parent) == []


def test_the_layout_decides_whether_it_is_a_file_or_a_folder(target):
    check_output(layout_of(NEW), target, overwrite=False, inputs=())
    with writing(layout_of(NEW), target, overwrite=False) as pending:
        pending.publish()
    assert contents(target) == NEW
    single = one_file([Piece(0, b"x")], {}, 1)
    with pytest.raises(UsageError, match="not a file"):
        check_output(single, target, overwrite=True, inputs=())
    with writing(single, target.parent / "file", overwrite=False) as pending:
        pending.publish()
    assert (target.parent / "file").read_bytes() == b"x"


def test_a_folder_of_a_single_file_is_a_folder(target):
    with writing(layout_of({"model.safetensors": b"x"}), target, overwrite=False) as pending:
        pending.publish()
    assert contents(target) == {"model.safetensors": b"x"}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("umask", "files", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_modes_are_what_the_umask_leaves(target, umask, files, folder):
    before = os.umask(umask)
    try:
        put(target, NEW)
    finally:
        os.umask(before)
    assert mode(target) == folder
    assert {mode(target / name) for name in NEW} == {files}


def test_threads_write_into_more_files_than_may_be_open(target, monkeypatch):
    monkeypatch.setattr(open_files, "MOST_OPEN", 3)
    part = 1000
    files = {f"model-{i:05d}-of-00020.safetensors": bytes([i]) * 8 * part for i in range(20)}
    layout = layout_of(files)
    before = len(os.listdir("/proc/self/fd"))
    most = []

    def fill(thread):
        for file, data in zip(layout.files, files.values(), strict=True):
            for piece in range(thread, 8, 4):
                pending.write(file.begin + piece * part, data[:part])
                most.append(len(os.listdir("/proc/self/fd")) - before)

    with PendingFolder(target, layout.files) as pending:
        threads = [threading.Thread(target=fill, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pending.publish()
    assert contents(target) == files
    assert max(most) <= 2 + 3 + 4 + 4  # folders, idle ones, those in use, and those that list
    assert len(os.listdir("/proc/self/fd")) == before


def test_short_writes_are_continued(target, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    put(target, NEW)
    assert contents(target) == NEW


@pytest.mark.parametrize("overwrite", [False, True])
def test_data_reaches_the_disk_before_the_name_and_the_name_before_the_old_goes(
    way, target, monkeypatch, overwrite
):
    if overwrite:
        make(target, OLD)
    log = []

    def record(call, name):
        real = getattr(call, name)

        def wrapped(*arguments, **options):
            kind = name
            if name == "fsync":
                kind += " folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else " file"
            result = real(*arguments, **options)
            log.append(kind)
            return result

        monkeypatch.setattr(call, name, wrapped)

    for name in ("pwrite", "fsync", "unlink", "rename"):
        record(os, name)
    record(renaming, "_renameat2")
    put(target, NEW, overwrite=overwrite)
    log = [call for call in log if call != "unlink" or overwrite]
    filled = ["pwrite"] * 3 + ["fsync file"] * 3 + ["fsync folder"]
    named = {
        (False, "renameat2"): ["_renameat2", "fsync folder"],
        (False, "plain"): ["rename", "fsync folder"],
        (True, "renameat2"): ["_renameat2", "fsync folder", "unlink", "unlink"],
        (True, "plain"): ["rename", "rename", "fsync folder", "unlink", "unlink"],
    }[overwrite, way]
    assert log == filled + named


def test_a_file_that_is_closed_early_is_synced_before(target, monkeypatch):
    monkeypatch.setattr(open_files, "MOST_OPEN", 1)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    put(target, NEW)
    assert {(target / name).stat().st_ino for name in NEW} <= set(synced)


# --- what is there already


@pytest.mark.usefixtures("way")
def test_an_old_folder_is_replaced_whole_and_hands_its_mode_on(target):
    make(target, OLD)
    target.chmod(0o750)
    check(target, overwrite=True)
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW
    assert mode(target) == 0o750
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.usefixtures("way")
def test_an_empty_folder_is_not_replaced_silently(target):
    target.mkdir()
    with pytest.raises(UsageError, match="exists: give --overwrite"):
        check(target)
    with pytest.raises(UsageError, match="somebody else"):
        put(target, NEW)
    assert contents(target) == {}
    check(target, overwrite=True)
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW


REPLACED = [
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *("config.json", "tokenizer.json", "vocab.txt", ".metadata", "__0_0.distcp", "__11_3.distcp"),
]
KEPT = [
    *("notes.txt", "modeling.py", "ckpt-100.safetensors", "step-5.pt", "pytorch_model.bin", "optimizer.pt"),
    *("model.safetensors.bak", "x.distcp", "adapter_model.safetensors", "trainer_state.json", "README.md"),
    *("amodel.safetensors", "config.json\n", "data.json", "model.fp16.safetensors", ".git"),
]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", REPLACED)
def test_what_swatool_writes_is_replaced(target, name):
    make(target, {"model.safetensors": SIGNED, name: b"old" + SIGNED})
    check(target, overwrite=True)
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": b"\x08\0\0\0\0\0\0\0{}      swatool"},
        {".metadata": b"torch.distributed", "__0_0.distcp": b"swatool"},
        {SHARDS[0]: SIGNED, SHARDS[1]: b"training"},
        {"config.json": b"swatool"},
        {"__0_0.distcp": b"swatool"},
    ],
)
def test_a_checkpoint_that_swatool_has_not_written_is_never_replaced(target, files):
    make(target, files)
    with pytest.raises(UsageError, match="which may be the only one"):
        check(target, overwrite=True)
    with pytest.raises(UsageError, match="which may be the only one"):
        put(target, NEW, overwrite=True)
    assert contents(target) == files


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", KEPT)
def test_a_folder_with_anything_else_in_it_is_never_replaced(target, name):
    make(target, OLD | {name: b"mine"})
    with pytest.raises(UsageError, match=r"holds .*, and only folders that hold nothing but what swatool"):
        check(target, overwrite=True)
    with pytest.raises(UsageError, match="holds"):
        put(target, NEW, overwrite=True)
    assert contents(target) == OLD | {name: b"mine"}
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ["deeper", "model.safetensors"])
def test_a_folder_with_a_folder_in_it_is_never_replaced(target, name):
    target.mkdir()
    (target / name).mkdir()
    (target / name / "file").write_bytes(b"mine")
    for act in (lambda: check(target, overwrite=True), lambda: put(target, NEW, overwrite=True)):
        with pytest.raises(UsageError, match="holds"):
            act()
    assert (target / name / "file").read_bytes() == b"mine"


@pytest.mark.usefixtures("way")
def test_links_in_the_old_folder_go_and_what_they_lead_to_stays(target, tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(b"blob" + SIGNED)
    target.mkdir()
    (target / "model.safetensors").symlink_to(blob)
    (target / "config.json").symlink_to("nowhere")
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW
    assert blob.read_bytes() == b"blob" + SIGNED


@pytest.mark.usefixtures("way")
def test_what_is_no_folder_is_refused(target, monkeypatch):
    monkeypatch.chdir(target.parent)  # socket names are short
    os.mkfifo("fifo")
    os.symlink(".", "link")
    os.symlink("nowhere", "dangling")
    (target.parent / "file").write_bytes(b"mine")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        before = sorted(os.listdir())
        for name in ("file", "fifo", "link", "link/", "dangling", "socket"):
            with pytest.raises(UsageError, match="is there and is not a folder"):
                check(name, overwrite=True)
            with pytest.raises(UsageError, match="is there and is not a folder"):
                put(name, NEW, overwrite=True)
            with pytest.raises(UsageError, match="somebody else"):
                put(name, NEW)
    assert sorted(os.listdir()) == before
    assert (target.parent / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("link", ["hard", "symbolic", "itself"])
def test_a_folder_that_holds_an_input_is_refused(target, tmp_path, overwrite, link):
    make(target, {"config.json": b"{}"})
    source = (target if link == "itself" else tmp_path) / "model.safetensors"
    source.write_bytes(b"input")
    if link == "hard":
        (target / "model.safetensors").hardlink_to(source)
    elif link == "symbolic":
        (target / "model.safetensors").symlink_to(source)
    with pytest.raises(UsageError, match=r"holds an input, 'model\.safetensors'"):
        check(f"{target}/", overwrite=overwrite, inputs={identity(source)})


@pytest.mark.parametrize("path", ["", "/", ".", "..", "./", "a/.."])
def test_a_path_without_a_name_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for act in (check, lambda path: PendingFolder(path, ())):
        with pytest.raises(UsageError, match="is no name for a new folder"):
            act(path)


def test_a_parent_that_is_missing_or_no_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write '.*gone/x': folder '.*gone': No such file"):
        check(tmp_path / "gone" / "x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="Not a directory"):
        check(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="File name too long"):
        check(tmp_path / ("x" * 256))


def test_a_parent_that_cannot_be_written_to_is_refused(target, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match="Read-only file system"):
        check(target)


def test_a_disk_without_room_is_refused_with_figures(target):
    with pytest.raises(OutputError, match=r"1,152,921,504,606,846,976 bytes are needed and [\d,]+ are free"):
        check(target, nbytes=2**60)
    assert os.listdir(target.parent) == []


# --- races


@pytest.mark.usefixtures("way")
def test_racing_threads_publish_exactly_once(target):
    def compete(files):
        layout = layout_of(files)
        with PendingFolder(target, layout.files) as pending:
            for position, data in layout.fixed:
                pending.write(position, data)
            barrier.wait()
            try:
                pending.publish()
                winners.append(files)
            except UsageError:
                losers.append(files)

    for _ in range(20):
        winners, losers, barrier = [], [], threading.Barrier(2)
        threads = [threading.Thread(target=compete, args=(files,)) for files in (NEW, OLD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == len(losers) == 1
        assert contents(target) == winners[0]
        assert os.listdir(target.parent) == [NAME]
        empty(target)


@pytest.mark.usefixtures("way")
def test_racing_threads_that_overwrite_leave_one_of_both_whole(target):
    other = {"model.safetensors": b"other" + SIGNED}

    def compete(files):
        barrier.wait()
        try:
            put(target, files, overwrite=True)
        except (UsageError, OutputError) as error:  # a thread's error would go unnoticed
            failed.append(error)

    failed = []
    for _ in range(20):
        make(target, OLD)
        barrier = threading.Barrier(3)
        threads = [threading.Thread(target=compete, args=(files,)) for files in (NEW, OLD, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert contents(target) in (NEW, OLD, other)
        assert os.listdir(target.parent) == [NAME]
        empty(target)


@pytest.mark.parametrize("kind", ["stranger", "file", "link"])
@pytest.mark.usefixtures("way")
def test_what_appears_between_the_look_and_the_rename_is_put_back(target, monkeypatch, kind):
    make(target, OLD)
    real = occupant.look

    def look(parent, name, path):
        found = real(parent, name, path)
        if name == NAME:  # somebody is as quick as can be
            if kind == "stranger":
                (target / "notes.txt").write_bytes(b"mine")
            else:
                target.rename(target.parent / "elsewhere")
                target.write_bytes(b"mine") if kind == "file" else target.symlink_to("elsewhere")
        return found

    monkeypatch.setattr(publish_folder, "look", look)
    with pytest.raises(UsageError):
        put(target, NEW, overwrite=True)
    if kind == "stranger":
        assert contents(target) == OLD | {"notes.txt": b"mine"}
    else:
        assert target.is_symlink() if kind == "link" else target.read_bytes() == b"mine"
        assert contents(target.parent / "elsewhere") == OLD
    assert len(os.listdir(target.parent)) == 1 + (kind != "stranger")


@pytest.mark.usefixtures("way")
def test_an_old_folder_that_vanishes_is_no_trouble(target, monkeypatch):
    make(target, OLD)
    real = occupant.look

    def look(parent, name, path):
        found = real(parent, name, path)
        if name == NAME:
            target.rename(target.parent / "elsewhere")
        return found

    monkeypatch.setattr(publish_folder, "look", look)
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW
    assert contents(target.parent / "elsewhere") == OLD


def test_a_name_that_is_taken_again_and_again_is_given_up(target, monkeypatch):
    def taken(*_):
        raise FileExistsError

    monkeypatch.setattr(publish_folder, "rename_to_free_name", taken)
    with pytest.raises(UsageError, match="by somebody else in the meantime: choose another"):
        put(target, NEW, overwrite=True)
    assert os.listdir(target.parent) == []


# --- failures while it is written


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, OutputError])
@pytest.mark.parametrize("old", [None, OLD])
def test_any_exception_leaves_nothing_but_the_old_folder(target, kind, old):
    if old:
        make(target, old)

    def give_up():
        with PendingFolder(target, layout_of(NEW).files, overwrite=True) as pending:
            pending.write(0, b"half")
            raise kind

    with pytest.raises(kind):
        give_up()
    assert os.listdir(target.parent) == ([NAME] if old else [])
    assert not old or contents(target) == old


CALLS = ["mkdir", "open", "posix_fallocate", "pwrite", "fsync", "fchmod", "rename", "_renameat2"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("failure", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_each_call_that_fails_leaves_nothing_but_the_old_folder(
    way, target, monkeypatch, call, failure, overwrite
):
    """Let the first, the second, ... use of a call fail, until it is used no more."""
    if way == "plain" and call == "_renameat2":
        pytest.skip("is not there")
    owner = renaming if call == "_renameat2" else os
    real = getattr(owner, call)
    for number in range(30):
        if overwrite:
            make(target, OLD)
        uses = []

        def fail(*arguments, number=number, uses=uses, **options):
            uses.append(arguments)
            if len(uses) == number + 1:
                raise failure
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(owner, call, fail)
            try:
                put(target, NEW, overwrite=overwrite)
                failed = False
            except (OutputError, KeyboardInterrupt):
                failed = True
        reached = len(uses) > number
        # The new name is there for good before the old folder is opened to be deleted.
        named = (call, number) == ("open", 12)
        expected = NEW if named or not reached else OLD if overwrite else None
        entries = os.listdir(target.parent)
        assert [name for name in entries if name == NAME] == ([NAME] if expected else [])
        assert not expected or contents(target) == expected
        if reached and not failed:  # what cannot be deleted stays, and is no reason to fail
            assert (call, named, len(entries)) == ("open", True, 2)
        else:
            assert (failed, len(entries)) == (reached, 1 if expected else 0)
        for left in target.parent.iterdir():
            empty(left)
        if not reached:
            used = {"fchmod": overwrite, "rename": way == "plain"}
            assert number > 0 or not used.get(call, True)
            return
    raise AssertionError("it went on for too long")


def test_descriptors_are_closed_after_success_and_failure(target, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    put(target, NEW)
    with pytest.raises(UsageError):
        put(target, NEW)
    monkeypatch.setattr(publish_folder, "reserve", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put(target, NEW, overwrite=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_shows_at_once_with_figures(target, monkeypatch, code):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"; 33 bytes are needed and [\d,]+ are free"):
        put(target, NEW)
    assert os.listdir(target.parent) == []


def test_room_that_the_unfinished_files_take_counts_as_free(target, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_bavail=0, f_frsize=4096))
    files = [OutputFile("a", 0, 1 << 20), OutputFile("b", 1 << 21, 1 << 20)]
    with PendingFolder(target, files) as pending, pytest.raises(OutputError) as caught:
        pending.write(0, b"x")
    free = int(str(caught.value).split()[-3].replace(",", ""))
    assert 2 << 20 <= free < 3 << 20


# --- processes that are killed


def run(script, *arguments):
    """Run another Python process that has the modules under test imported; return its exit status."""
    prelude = (
        "import os, signal, sys\nfrom swatool.output import renaming, unfinished, publish_folder\n"
        "from swatool.output.publish_folder import *\nfrom swatool.output.layout import *\n"
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=60).returncode


KILLED_AT = """
    path, way, call = sys.argv[1:]
    files = {
        "model-00001-of-00002.safetensors": b"first {swatool}",
        "model-00002-of-00002.safetensors": b"second {swatool}",
        "config.json": b"{}",
    }
    layout = together({name: one_file([Piece(0, data)], {}, len(data)) for name, data in files.items()})
    def unsupported(*_):
        raise OSError(22, "no")
    if way == "plain":
        renaming._renameat2 = unsupported
    owner = renaming if call == "_renameat2" else os
    for number in range(30):  # each in a process of its own
        sys.stdin.readline()
        process = os.fork()
        if process:
            _, status = os.waitpid(process, 0)
            print(os.WIFSIGNALED(status), flush=True)
            if not os.WIFSIGNALED(status):
                break
            continue
        real, uses = getattr(owner, call), []
        def wrapped(*arguments, **options):
            uses.append(call)
            if len(uses) == number + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        setattr(owner, call, wrapped)
        with PendingFolder(path, layout.files, overwrite=True) as pending:
            for position, data in layout.fixed:
                pending.write(position, data)
            pending.publish()
        os._exit(0)
"""


@pytest.mark.parametrize("way", ["renameat2", "plain"])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "rename", "unlink", "_renameat2"])
def test_a_process_killed_at_any_call_leaves_the_old_or_the_new_folder_and_the_next_run_cleans(
    target, way, call
):
    if way == "plain" and call == "_renameat2":
        pytest.skip("is not there")
    prelude = (
        "import os, signal, sys\nfrom swatool.output import renaming\n"
        "from swatool.output.publish_folder import PendingFolder\n"
        "from swatool.output.layout import Piece, one_file, together\n"
    )
    command = [sys.executable, "-c", prelude + textwrap.dedent(KILLED_AT), str(target), way, call]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        killed = 0
        while True:
            if target.exists():
                empty(target)
            make(target, OLD)
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if line != "True\n":
                break
            killed += 1
            check(target, overwrite=True)  # the next run, which cleans up before it looks
            assert contents(target) in (OLD, NEW)
            assert os.listdir(target.parent) == [NAME]
    assert line == "False\n"
    assert killed > 0 or (call == "rename" and way == "renameat2")


def test_a_killed_process_leaves_a_hidden_folder_that_the_next_run_removes(target):
    script = """
        with PendingFolder(sys.argv[1], [OutputFile("model.safetensors", 0, 1000)]) as pending:
            pending.write(0, bytes(500))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    for again in (put, lambda path, _: PendingFile(path, 0).__enter__().__exit__(None, None, None)):
        assert run(script, target) == -signal.SIGKILL
        (left,) = os.listdir(target.parent)
        assert left.startswith(f".{NAME}.swatool-")
        assert left.endswith(".tmp")
        again(target, NEW)
        assert [name for name in os.listdir(target.parent) if name.startswith(".")] == []
        if target.exists():
            assert contents(target) == NEW
            empty(target)


def test_hidden_folders_of_the_living_and_of_other_targets_stay(target):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    tail = "0123456789abcdef.tmp"
    stay = {
        f"{unfinished.hidden_prefix(NAME)}{os.getpid()}-{tail}",
        f"{unfinished.hidden_prefix('another')}{dead.pid}-{tail}",
        f"{unfinished.hidden_prefix(NAME)}{os.getpid()}-0123456789abcdef.old",
    }
    for name in (*stay, f"{unfinished.hidden_prefix(NAME)}{dead.pid}-{tail}"):
        make(target.parent / name, OLD)
    put(target, NEW)
    assert set(os.listdir(target.parent)) == {NAME, *stay}


def test_a_dead_hidden_folder_with_folders_in_it_keeps_those(target):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = target.parent / f"{unfinished.hidden_prefix(NAME)}{dead.pid}-0123456789abcdef.tmp"
    make(left, {})
    make(left / "deeper", {"file": b"mine"})
    put(target, NEW)
    assert (left / "deeper" / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("there", [False, True])
def test_an_old_folder_that_a_killed_run_moved_aside_is_put_back_or_removed(target, there):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    aside = target.parent / f"{unfinished.hidden_prefix(NAME)}{dead.pid}-0123456789abcdef.old"
    make(aside, OLD)
    if there:
        make(target, NEW)
    with pytest.raises(UsageError, match="exists"):
        check(target)
    assert contents(target) == (NEW if there else OLD)
    assert os.listdir(target.parent) == [NAME]


def test_an_old_folder_that_cannot_be_put_back_is_left_where_it_is(target, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    aside = target.parent / f"{unfinished.hidden_prefix(NAME)}{dead.pid}-0123456789abcdef.old"
    make(aside, OLD)
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            check(target, overwrite=True)
    assert contents(aside) == OLD
    put(target, NEW, overwrite=True)
    assert contents(target) == NEW
    assert os.listdir(target.parent) == [NAME]


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("way")
def test_what_is_withdrawn_gives_its_name_back(target, old, overwrite):
    if old and overwrite:
        make(target, old)
    layout = layout_of(NEW)
    with PendingFolder(target, layout.files, overwrite=overwrite) as pending:
        for position, data in layout.fixed:
            pending.write(position, data)
        pending.withdraw()  # of what has no name yet
        pending.publish()
        assert contents(target) == NEW
        pending.withdraw()
        pending.withdraw()
    assert os.listdir(target.parent) == ([NAME] if old and overwrite else [])
    assert not (old and overwrite) or contents(target) == old


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_withdrawn_vanishes_at_once(target, monkeypatch):
    seen = []
    unlink = os.unlink

    def look(*arguments, **options):
        seen.append(target.exists())
        unlink(*arguments, **options)

    layout = layout_of(NEW)
    with PendingFolder(target, layout.files) as pending:
        pending.publish()
        monkeypatch.setattr(os, "unlink", look)
        pending.withdraw()
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.usefixtures("way")
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_one_alone(target, overwrite):
    """And if it comes while a `with` block is entered or left, the command line has it cleaned up."""
    wrong = []
    if overwrite:
        make(target, OLD)
    for where in interrupted_at_each_line(lambda: put(target, NEW, overwrite=overwrite), "/swatool/output/"):
        unfinished.discard_unfinished()
        there = contents(target) if target.exists() else None
        expected = (OLD if overwrite else None, NEW) if where else (NEW,)
        if there not in expected or os.listdir(target.parent) != [NAME][: there is not None]:
            wrong.append((where, os.listdir(target.parent)))
        assert not unfinished.UNFINISHED
        for left in target.parent.iterdir():
            empty(left)
        if overwrite:
            make(target, OLD)
    assert not wrong
