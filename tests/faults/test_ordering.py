"""The short form of what `tests/bench/reliability.py` does at length, and what it judges by."""

import pytest

from faults import ordering, tracing

MISSING = tracing.missing()
needs_strace = pytest.mark.skipif(bool(MISSING), reason=MISSING)

FILE = """
7 openat(3</o>, ".", O_RDWR|O_TMPFILE, 0666) = 4</o/#12>(deleted)
7 pwrite64(4</o/#12>(deleted), ""..., 10, 0 <unfinished ...>
8 pwrite64(4</o/#12>(deleted), ""..., 10, 10) = 10
7 <... pwrite64 resumed>) = 10
7 fsync(4</o/#12>(deleted)) = 0
7 linkat(9</proc/7/fd>, "4", 3</o>, "a", AT_SYMLINK_FOLLOW) = 0
7 fsync(3</o>) = 0
"""
REPLACED = """
7 openat(3</o>, ".", O_RDWR|O_TMPFILE, 0666) = 4</o/#12>(deleted)
7 pwrite64(4</o/#12>(deleted), ""..., 10, 0) = 10
7 fsync(4</o/#12>(deleted)) = 0
7 linkat(9</proc/7/fd>, "4", 3</o>, ".a.tmp", AT_SYMLINK_FOLLOW) = 0
7 renameat2(3</o>, ".a.tmp", 3</o>, "a", RENAME_EXCHANGE) = 0
7 fsync(3</o>) = 0
7 unlinkat(3</o>, ".a.tmp", 0) = 0
"""
FOLDER = """
7 mkdirat(3</o>, ".a.tmp", 0777) = 0
7 openat(5</o/.a.tmp>, "x", O_WRONLY|O_CREAT|O_EXCL, 0666) = 4</o/.a.tmp/x>
7 pwrite64(4</o/.a.tmp/x>, ""..., 10, 0) = 10
7 fsync(4</o/.a.tmp/x>) = 0
7 fsync(5</o/.a.tmp>) = 0
7 renameat2(3</o>, ".a.tmp", 3</o>, "a", RENAME_NOREPLACE) = -1 EEXIST (File exists)
7 renameat2(3</o>, ".a.tmp", 3</o>, "a", RENAME_EXCHANGE) = 0
7 fsync(3</o>) = 0
7 unlinkat(6</o/.a.tmp>, "x", 0) = 0
7 unlinkat(3</o>, ".a.tmp", AT_REMOVEDIR) = 0
"""


def wrong(log, finished=True):
    return ordering.Order(tracing.parse(log), "/o", ["a"]).wrong(finished)


def moved(log, line, to):
    """Return a log with one line at another place."""
    lines = log.strip().splitlines()
    lines.insert(to, lines.pop(line))
    return "\n".join(lines)


def without(log, line):
    lines = log.strip().splitlines()
    del lines[line]
    return "\n".join(lines)


@pytest.mark.parametrize("log", [FILE, REPLACED, FOLDER])
def test_the_right_order_is_right_wherever_the_run_was_killed(log):
    assert wrong(log) == []
    lines = log.strip().splitlines()
    for end in range(len(lines)):
        assert wrong("\n".join(lines[:end]), finished=False) == []
    assert wrong("\n".join(lines[:2])) == ["says that it is done, and has not given every output its name"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (without(FILE, 4), "/o/#12 was not synced before linkat"),
        (moved(FILE, 4, 3), "/o/#12 was not synced before linkat"),
        (moved(FILE, 2, 4), "/o/#12 was not synced before linkat"),
        (FILE.replace("(deleted)) = 0", "(deleted)) = -1 EIO (x) (INJECTED)"), "not synced before linkat"),
        (without(FILE, 6), "the folder was not synced after linkat"),
        (moved(FILE, 6, 5), "the folder was not synced after linkat"),
        (without(REPLACED, 2), "/o/#12 was not synced before renameat2"),
        (moved(REPLACED, 6, 5), "came before the new name was on the disk"),
        (without(FOLDER, 3), "/o/.a.tmp/x was not synced before renameat2"),
        (without(FOLDER, 4), "the folder was not synced before renameat2"),
        (moved(FOLDER, 4, 1), "the folder was not synced before renameat2"),
        (without(FOLDER, 7), "the folder was not synced after renameat2"),
        (moved(FOLDER, 8, 7), "came before the new name was on the disk"),
        (FILE + '7 openat(AT_FDCWD</o>, "a", O_WRONLY|O_TRUNC) = 4</o/a>', "is about what is visible"),
        (FILE + '7 pwrite64(4</o/a>, ""..., 10, 0) = 10', "is about what is visible"),
    ],
)  # fmt: skip
def test_another_order_is_told(log, said):
    assert any(said in one for one in wrong(log)), wrong(log)


@needs_strace
def test_everything_reaches_the_disk_before_its_name(tmp_path):
    finding = ordering.measure_ordering(False, tmp_path)
    assert finding.tried > 10
    assert finding.wrong == ()
