"""A file and its checksum, whatever happens between the steps of publishing them."""

import errno
import hashlib
import os
import shutil
import subprocess

import pytest

from swatool.errors import OutputError, UsageError
from swatool.output import checksummed, renaming
from swatool.output.checksummed import check_checksum_target
from swatool.output.checksums import checksum_line, parse_checksums, with_sums
from swatool.output.layout import Piece, one_file, together
from swatool.output.old_checksum import remove_checksum
from swatool.output.unfinished import hidden_name
from swatool.output.writing import check_output, publish_all, writing

OLD, NEW = b"old content", b"new content"


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up by whoever catches errors."""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.pt"


@pytest.fixture
def beside(out):
    return out.with_name("out.pt.sha256")


def put(out, content, **options):
    layout = one_file([Piece(0, content)], {}, len(content))
    with writing(layout, out, **{"overwrite": False, "checksum": True, **options}) as pending:
        pending.publish()
        return pending


def line(content, name="out.pt"):
    return checksum_line(hashlib.sha256(content).hexdigest(), name)


def is_never_wrong(out, beside):
    if beside.exists():
        assert parse_checksums(beside.read_bytes()) == {
            out.name: hashlib.sha256(out.read_bytes()).hexdigest()
        }


def test_a_file_and_its_checksum(out, beside):
    pending = put(out, NEW)
    assert pending.digests == {"out.pt": hashlib.sha256(NEW).hexdigest()}
    assert beside.read_bytes() == line(NEW)
    assert sorted(os.listdir(out.parent)) == ["out.pt", "out.pt.sha256"]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", beside.name], cwd=out.parent, check=True, capture_output=True)


def test_without_being_wanted_there_is_none(out, beside):
    assert put(out, NEW, checksum=False).digests == {}
    assert not beside.exists()


@pytest.mark.parametrize("checksum", [False, True])
def test_the_checksum_of_what_is_replaced_goes(out, beside, checksum):
    put(out, OLD)
    put(out, NEW, overwrite=True, checksum=checksum)
    assert out.read_bytes() == NEW
    assert (beside.read_bytes() == line(NEW)) if checksum else not beside.exists()


FOREIGN = [
    b"",
    b"hello",
    line(OLD, "other"),
    line(OLD) + b"\n",
    line(OLD).upper(),
    line(OLD)[:-1],
    line(OLD) * 2,
]


@pytest.mark.parametrize("content", FOREIGN)
def test_what_is_not_ours_is_not_touched(out, beside, content):
    out.write_bytes(OLD)
    beside.write_bytes(content)
    put(out, NEW, overwrite=True, checksum=False)
    assert (out.read_bytes(), beside.read_bytes()) == (NEW, content)
    with pytest.raises(UsageError, match=r"is not the checksum of 'out\.pt' as"):
        check_checksum_target(str(out), overwrite=True, wanted=True)
    with pytest.raises(UsageError, match=r"is not the checksum of 'out\.pt' as"):
        put(out, OLD, overwrite=True)
    assert (out.read_bytes(), beside.read_bytes()) == (NEW, content)
    assert not remove_checksum(str(out))


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "unreadable"])
def test_what_is_no_file_is_not_touched(out, beside, kind, monkeypatch):
    if kind == "folder":
        beside.mkdir()
    elif kind == "fifo":
        os.mkfifo(beside)
    elif kind == "link":
        (out.parent / "x").write_bytes(line(OLD))
        beside.symlink_to("x")
    else:
        beside.write_bytes(line(OLD))
        really = os.open

        def refuse(path, *rest, **more):
            if str(path) == str(beside):
                raise PermissionError(errno.EACCES, "Permission denied")
            return really(path, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
    put(out, NEW, overwrite=True, checksum=False)
    with pytest.raises(UsageError, match="move it away"):
        put(out, NEW, overwrite=True)
    assert os.path.lexists(beside)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_checksum_without_its_file_is_not_left_beside_another(out, beside, checksum):
    beside.write_bytes(line(OLD))
    layout = one_file([], {}, 1)
    with pytest.raises(UsageError, match="a checksum, exists: give --overwrite"):
        check_output(layout, out, overwrite=False, inputs=(), checksum=checksum)
    with pytest.raises(UsageError, match="a checksum, exists: give --overwrite"):
        put(out, NEW, checksum=checksum)
    assert os.listdir(out.parent) == [beside.name]
    check_output(layout, out, overwrite=True, inputs=(), checksum=checksum)
    put(out, NEW, overwrite=True, checksum=checksum)
    is_never_wrong(out, beside)


def test_a_name_that_leaves_no_room_for_the_suffix(tmp_path):
    out = tmp_path / ("x" * 250)
    put(out, NEW, checksum=False)
    with pytest.raises(OutputError, match="name too long"):
        check_output(one_file([], {}, 1), out, overwrite=True, inputs=(), checksum=True)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("call", ["unlink", "link", "replace", "fsync", "preadv", "open"])
@pytest.mark.parametrize("turn", range(12))
@pytest.mark.parametrize("failure", [Killed, OSError(errno.EIO, "Input/output error")])
def test_whatever_fails_between_the_steps_no_checksum_is_wrong(
    out, beside, monkeypatch, old, call, turn, failure
):
    if old:
        put(out, OLD)
    really = getattr(os, call)
    left = [turn]

    def fail(*rest, **more):
        left[0] -= 1
        if left[0] == -1 or (left[0] < 0 and failure is Killed):
            raise failure
        return really(*rest, **more)

    monkeypatch.setattr(os, call, fail)
    try:
        put(out, NEW, overwrite=old)
    except (Killed, OutputError, UsageError, OSError):
        pass
    finally:
        monkeypatch.undo()
    assert not out.exists() or out.read_bytes() in (OLD, NEW)
    is_never_wrong(out, beside) if out.exists() else None
    if not old and not out.exists():
        assert not beside.exists() or failure is Killed


@pytest.mark.parametrize("old", [False, True])
def test_a_kill_after_each_step(out, beside, monkeypatch, old):
    """The steps in their order: the old checksum goes, the file comes, its checksum comes."""
    steps = []
    real = checksummed.PendingFile.publish

    def publish(self):
        steps.append((self._path, beside.exists(), out.read_bytes() if out.exists() else None))
        return real(self)

    if old:
        put(out, OLD)
    monkeypatch.setattr(checksummed.PendingFile, "publish", publish)
    put(out, NEW, overwrite=old)
    assert steps == [(str(out), False, OLD if old else None), (str(beside), False, NEW)]


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("call", ["fsync", "renameat2", "link"])
@pytest.mark.parametrize("turn", range(6))
def test_where_publishing_fails_the_old_file_keeps_its_checksum(
    out, beside, monkeypatch, checksum, call, turn
):
    put(out, OLD)
    module, name = (renaming, "_renameat2") if call == "renameat2" else (os, call)
    really, left = getattr(module, name), [turn]

    def fail(*rest, **more):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, "Input/output error")
        return really(*rest, **more)

    monkeypatch.setattr(module, name, fail)
    try:
        put(out, NEW, overwrite=True, checksum=checksum)
        content, names = NEW, [out.name, beside.name][: 1 + checksum]
    except OutputError:
        content, names = OLD, [out.name, beside.name]
    monkeypatch.undo()
    assert out.read_bytes() == content
    assert sorted(os.listdir(out.parent)) == names
    is_never_wrong(out, beside)


def test_of_several_outputs_the_first_keeps_its_checksum_where_the_second_fails(tmp_path):
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    put(first, OLD)
    layout = one_file([Piece(0, NEW)], {}, len(NEW))
    with (
        writing(layout, first, overwrite=True, checksum=True) as one,
        writing(layout, second, overwrite=False, checksum=True) as other,
    ):
        second.write_bytes(OLD)
        with pytest.raises(UsageError):
            publish_all([one, other])
    assert first.read_bytes() == second.read_bytes() == OLD
    assert (tmp_path / "a.pt.sha256").read_bytes() == line(OLD, "a.pt")
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.pt.sha256", "b.pt"]


@pytest.mark.parametrize("checksum", [False, True])
def test_the_next_run_removes_a_checksum_that_a_killed_one_had_moved_aside(out, beside, checksum):
    put(out, OLD)
    dead = beside.with_name(hidden_name(beside.name, "old").replace(f"-{os.getpid()}-", "-999999999-"))
    beside.rename(dead)
    put(out, NEW, overwrite=True, checksum=checksum)
    assert sorted(os.listdir(out.parent)) == [out.name, beside.name][: 1 + checksum]


def test_a_checksum_that_cannot_be_moved_aside_leaves_everything(out, beside, monkeypatch):
    put(out, OLD)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*out\.pt\.sha256': Permission denied"):
        put(out, NEW, overwrite=True, checksum=False)
    assert out.read_bytes() == OLD
    is_never_wrong(out, beside)
    assert sorted(os.listdir(out.parent)) == [out.name, beside.name]


def test_of_several_outputs_all_or_none_with_their_checksums(tmp_path):
    layouts = [one_file([Piece(0, NEW)], {}, len(NEW)) for _ in range(2)]
    (tmp_path / "b").mkdir()
    with (
        writing(layouts[0], tmp_path / "a", overwrite=False, checksum=True) as first,
        writing(layouts[1], tmp_path / "b", overwrite=False, checksum=True) as second,
        pytest.raises(UsageError),
    ):
        publish_all([first, second])
    assert os.listdir(tmp_path) == ["b"]


def test_a_checksum_that_cannot_be_published_takes_the_file_with_it(out, beside, monkeypatch):
    real = checksummed.PendingFile.publish

    def publish(self):
        if self._path == str(beside):
            raise OutputError("no room")
        return real(self)

    monkeypatch.setattr(checksummed.PendingFile, "publish", publish)
    with pytest.raises(OutputError, match="no room"):
        put(out, NEW)
    assert os.listdir(out.parent) == []


def folder_layout():
    files = {
        "model.safetensors": one_file([Piece(0, b"{swatool}")], {"t": 9}, 12),
        "config.json": one_file([Piece(0, b"{}")], {}, 2),
    }
    return with_sums(together(files))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_folder_has_its_checksums_in_it(tmp_path, threads):
    layout = folder_layout()
    with writing(layout, tmp_path / "out", overwrite=False, threads=threads) as pending:
        pending.write(9, b"abc")
        pending.publish()
    found = parse_checksums((tmp_path / "out" / "SHA256SUMS").read_bytes())
    assert found == pending.digests
    for name in ("model.safetensors", "config.json"):
        assert found[name] == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()
    check_output(
        layout, tmp_path / "out", overwrite=True, inputs=()
    )  # it is one of ours, and may be replaced
    with writing(layout, tmp_path / "out", overwrite=True) as pending:
        pending.publish()
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--strict", "-c", "SHA256SUMS"],
            cwd=tmp_path / "out",
            check=True,
            capture_output=True,
        )


def test_what_cannot_be_read_again_is_not_published(tmp_path, out, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        put(out, NEW)
    with (
        pytest.raises(OutputError, match="Input/output error"),
        writing(folder_layout(), tmp_path / "folder", overwrite=False) as pending,
    ):
        pending.publish()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spelled", [b"%s *out.pt\n", b"%s  out.pt\n"], ids=["binary", "text"])
def test_a_checksum_that_another_program_wrote_goes_with_its_file(tmp_path, spelled):
    (tmp_path / "out.pt.sha256").write_bytes(spelled % (b"A" * 64))
    assert remove_checksum(str(tmp_path / "out.pt"))
    assert list(tmp_path.iterdir()) == []
