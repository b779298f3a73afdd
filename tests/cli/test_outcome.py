import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import typer
from typer.testing import CliRunner

from swatool.cli import app
from swatool.cli.outcome import SIGNALS, Stopped, ending_in_an_exit_code
from swatool.errors import (
    CheckFailedError,
    CheckpointError,
    DataError,
    MismatchError,
    OutputError,
    SwatoolError,
    UsageError,
)
from swatool.jobs import sweep_average
from swatool.output import publish
from swatool.output.layout import OutputFile
from swatool.output.publish import PendingFile
from swatool.output.publish_folder import PendingFolder

SWATOOL = [sys.executable, "-m", "swatool", "average"]
KINDS = {
    UsageError: 2,
    CheckpointError: 3,
    DataError: 3,
    MismatchError: 4,
    OutputError: 5,
    CheckFailedError: 6,
}


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"ckpt-{i}.pt" for i in range(2)]
    for i, path in enumerate(paths):
        torch.save({"w": torch.full((10,), float(i)), "n": torch.tensor(i)}, path)
    return paths


def ended(command, as_json=False):
    """Run a command in the wrapper and return the exit code."""
    with pytest.raises(typer.Exit) as caught:
        ending_in_an_exit_code(command)(as_json=as_json)
    return caught.value.exit_code


def raising(error):
    def command(**_):
        raise error

    return command


def test_every_kind_of_error_has_its_exit_code():
    assert {kind: kind.exit_code for kind in KINDS} == KINDS
    assert set(SwatoolError.__subclasses__()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_told_on_stderr(capsys, kind):
    assert ended(raising(kind("it failed"))) == KINDS[kind]
    assert capsys.readouterr() == ("", "error: it failed\n")


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_told_as_json_if_so_asked(capsys, kind):
    assert ended(raising(kind("it failed")), as_json=True) == KINDS[kind]
    told = capsys.readouterr()
    assert told.out == ""
    assert json.loads(told.err) == {"schema": 1, "error": "it failed", "exit_code": KINDS[kind]}


def test_failures_of_the_system_are_told(capsys):
    assert ended(raising(OSError(5, "Input/output error"))) == 5
    assert ended(raising(MemoryError())) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: the system failed: ")
    assert lines[1] == "error: out of memory"


def test_what_cannot_be_imported_is_told(capsys):
    assert ended(raising(ImportError("libx.so: failed to map segment"))) == 5
    assert capsys.readouterr().err == "error: the system failed: libx.so: failed to map segment\n"


@pytest.mark.parametrize("error", ["MemoryError()", "ImportError('failed to map segment')"])
def test_failures_before_a_command_has_begun_are_told(error):
    code = f"import swatool.cli as c\ndef fail(_): raise {error}\nc._app = fail\nc.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: the system failed: ")
    assert len(done.stderr.splitlines()) == 1


def test_bugs_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        ending_in_an_exit_code(raising(ZeroDivisionError()))()


def test_nothing_is_told_of_success(capsys):
    ending_in_an_exit_code(lambda: None)()
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def as_from_a_shell():
    """Signals as a shell leaves them; nohup and CI systems may have some ignored."""
    before = [(one, signal.signal(one, signal.SIG_DFL)) for one in SIGNALS]
    yield
    for one, handler in before:
        signal.signal(one, handler)


@pytest.mark.usefixtures("as_from_a_shell")
@pytest.mark.parametrize("ignored", SIGNALS)
def test_an_ignored_signal_stays_ignored(ignored):
    signal.signal(ignored, signal.SIG_IGN)
    other = next(one for one in SIGNALS if one != ignored)
    assert ended(lambda **_: os.kill(os.getpid(), other)) == 128 + other
    assert signal.getsignal(ignored) is signal.SIG_IGN


@pytest.mark.usefixtures("as_from_a_shell")
@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_a_command(capsys, number):
    before = [signal.getsignal(one) for one in SIGNALS]
    assert ended(lambda **_: os.kill(os.getpid(), number)) == 128 + number
    assert capsys.readouterr().err.startswith(f"error: stopped by {signal.Signals(number).name}")
    assert [signal.getsignal(one) for one in SIGNALS] == before


def lose():
    with contextlib.suppress(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def fail_after():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise OSError(9, "Bad file descriptor")


@pytest.mark.usefixtures("as_from_a_shell")
@pytest.mark.parametrize("command", [lose, fail_after])
def test_a_signal_counts_though_it_is_lost_or_something_else_follows(capsys, command):
    assert ended(lambda **_: command()) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"


@pytest.mark.usefixtures("as_from_a_shell")
@pytest.mark.parametrize("kind", [PendingFile, PendingFolder])
def test_a_signal_while_a_block_is_entered_leaves_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(publish, "UNNAMED", 0)
    what = 100 if kind is PendingFile else [OutputFile("x", 0, 100)]

    def enter(**_):
        kind(tmp_path / "out", what).__enter__()
        assert os.listdir(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    assert ended(enter) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


# torch imports NumPy from C++, and forgets whatever is raised meanwhile.
STOPPED_WHILE_TORCH_IS_IMPORTED = """
    import os, signal, sys
    from swatool.__main__ import main

    class Late:
        def find_spec(self, name, *_):
            if name == "numpy" and not self.__dict__.setdefault("seen", name in sys.modules):
                self.seen = True
                os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.meta_path.insert(0, Late())
    main()
"""


def test_a_signal_while_torch_is_imported_ends_at_once(files):
    script = textwrap.dedent(STOPPED_WHILE_TORCH_IS_IMPORTED)
    folder = files[0].parent
    command = [sys.executable, "-c", script, "average", *files, "-o", f"{folder}/out/", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "error: stopped by SIGTERM\n"
    assert done.returncode == 128 + signal.SIGTERM
    assert sorted(folder.iterdir()) == files


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ending_in_an_exit_code(lambda: os.kill(os.getpid(), signal.SIGHUP))()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# The command is in the middle of a block when the signal comes: the write that sends it does not end before
# the main thread has been told of it.
STOPPED_WHILE_WRITING = """
    import os, signal, sys, threading, time
    from swatool.averaging import blocks
    from swatool.cli import main, outcome
    from swatool.output.publish import PendingFile

    blocks.LARGEST_BLOCK = 4
    blocks.SMALLEST_BLOCK = 1
    whole, number, count, told = PendingFile.write, int(sys.argv.pop(1)), 0, threading.Event()
    stopped = outcome.Stopped.__init__
    if signal.getsignal(number) is signal.SIG_IGN:  # inherited, as from nohup
        signal.signal(number, signal.SIG_DFL)

    def tell(self, number):
        stopped(self, number)
        told.set()

    def write(self, offset, buffer):
        global count
        whole(self, offset, buffer)
        count += 1
        if count == 3:
            os.kill(os.getpid(), number)
            assert told.wait(60)
        if count == 10:
            print("blocks are begun after the signal", file=sys.stderr)

    outcome.Stopped.__init__, PendingFile.write = tell, write
    main()
"""


@pytest.mark.parametrize(
    ("number", "named"), [*((one, False) for one in SIGNALS), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_signal_while_the_output_is_written(tmp_path, number, named):
    files = [tmp_path / f"ckpt-{i}.pt" for i in range(2)]
    for path in files:
        torch.save({"w": torch.ones(1000)}, path)
    script = textwrap.dedent(STOPPED_WHILE_WRITING)
    if named:
        script = "from swatool.output import publish; publish.UNNAMED = 0\n" + script
    command = [
        sys.executable,
        "-c",
        script,
        str(number),
        "average",
        *files,
        "-o",
        tmp_path / "out",
        "-j",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name = signal.Signals(number).name
    assert done.stderr.splitlines() == [f"error: stopped by {name}; no output was written"]
    assert done.returncode == 128 + number
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_the_output_was_written(files, monkeypatch, number):
    """What is said about the output must be true, even if the signal comes while the report is printed."""
    from swatool.cli import average_text

    output = files[0].parent / "out"
    monkeypatch.setattr(average_text, "tell_summary", lambda *_: os.kill(os.getpid(), number))
    result = CliRunner().invoke(app, ["average", *map(str, files), "-o", str(output)])
    assert result.exit_code == 128 + number
    assert ("no output was written" in result.stderr) is not output.exists()


@pytest.mark.parametrize("name", ["out.pt", "out-{last}.pt"])
def test_signal_while_averages_are_evaluated(files, monkeypatch, name):
    """All of a sweep that was written stays and is told, though the best was not found."""
    monkeypatch.chdir(files[0].parent)
    torch.save({"w": torch.ones(10), "n": torch.tensor(2)}, "ckpt-2.pt")
    monkeypatch.setattr(sweep_average, "score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    swept = ["--sweep", "last=2,3"] if "{" in name else []
    evaluation = ["--eval", "true {path}", "--mode", "min"]
    result = CliRunner().invoke(
        app, ["average", *map(str, files), "ckpt-2.pt", "-o", name, *swept, *evaluation, "-q"]
    )
    assert result.exit_code == 128 + signal.SIGTERM
    said = "written before that: 'out-2.pt', 'out-3.pt'" if swept else "the output was written"
    assert result.stderr.splitlines() == [f"error: stopped by SIGTERM; {said}"]
    assert all(os.path.exists(name.format(last=last)) for last in (2, 3))


def run(arguments, **options):
    return subprocess.run(
        [*SWATOOL, *map(str, arguments)], stderr=subprocess.PIPE, text=True, check=False, **options
    )


def test_reader_of_stdout_that_went_away(files):
    read, write = os.pipe()
    os.close(read)
    done = run([*files, "-o", files[0].parent / "out", "-v"], stdout=write)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE
    assert sorted(files[0].parent.iterdir()) == files


def test_head_takes_one_line(files):
    names = {f"a tensor of a long name {i:04}": torch.ones(1) for i in range(3000)}
    for path in files:
        torch.save(names, path)
    command = (
        f"{sys.executable} -m swatool average {files[0]} {files[1]} -o {files[0].parent / 'out'} -v | head -1"
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("checkpoint")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("stream", [1, 2])
def test_stream_that_is_closed_from_the_start(files, stream):
    output = files[0].parent / "out"
    command = f"{sys.executable} -m swatool average {files[0]} {files[1]} -o {output} {stream}>&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) is output.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_stdout_that_is_full(files):
    with open("/dev/full", "w") as full:
        done = run([*files, "-o", files[0].parent / "out"], stdout=full)
    assert done.returncode == 5
    assert done.stderr.splitlines() == ["error: the system failed: [Errno 28] No space left on device"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_report_that_cannot_be_printed(files):
    for command in (["inspect"], ["inspect", "--json"], ["diff", files[0]], ["run", "--schema"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "swatool", *command, *([] if "run" in command else [files[0]])],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 5
        assert "cannot write to standard output: No space left on device" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["average", "--help"]])
def test_what_is_asked_for_and_cannot_be_printed(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "swatool", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.splitlines() == ["error: cannot write to standard output: No space left on device"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_stderr_that_is_full_changes_no_exit_code(files):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "swatool", "average", files[0], "nothing.pt", "-q"]
        done = subprocess.run(command, stderr=full, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["average", "--help"], ["inspect", "-h"], []], ids=" ".join
)
def test_help_that_nobody_reads(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "swatool", *arguments]
    # As from a shell, which tells nothing but the number of the signal; without a command, it is stderr's.
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE if arguments else write, check=False)
    os.close(write)
    assert done.returncode == -signal.SIGPIPE
    assert not done.stderr


def test_an_error_that_nobody_reads_keeps_its_exit_code(files):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "swatool", "average", files[0], "nothing.pt", "-q"]
    done = subprocess.run(command, stdout=write, stderr=write, check=False)
    os.close(write)
    assert done.returncode == 3


def test_a_command_that_an_evaluation_runs_is_ended_by_a_reader_that_went_away(files):
    script = "( (yes; echo $? >&3) | true) 3>&1; echo {path} >&2"
    output = files[0].parent / "out"
    evaluation = ["--eval", f'sh -c "{script}"', "--mode", "max"]
    done = run([*files, "-o", output, "--json", "-q", *evaluation], stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["value"] == 128 + signal.SIGPIPE


def test_terminal_that_knows_only_ascii(files):
    for path in files:
        torch.save({"größe": torch.ones(1)}, path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    output = files[0].parent / "out"
    done = run([*files, "-o", output, "-v"], stdout=subprocess.PIPE, env=environment)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert output.exists()


def test_stdout_that_is_full_when_the_output_is_written(files):
    output = files[0].parent / "out"
    with open("/dev/full", "w") as full:
        done = run([*files, "-o", output, "--json", "-q"], stdout=full)
    assert done.returncode == 5
    assert json.loads(done.stderr)["error"].startswith(f"'{output}' was written, but the report")
    assert output.exists()


def test_ctrl_c_before_anything_has_begun_is_silent():
    code = (
        "import os, signal, sys, swatool.__main__ as m\n"
        "class Late:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'swatool.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Late())\n"
        "m.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
