"""What lies beside weights and outputs, and is hostile: checksums, sidecars, states of trainers and soups."""

import hashlib
import json
import os

from hostile import hf, models
from hostile.cases import Case
from hostile.corpus_folders import FOLDER
from hostile.watching import WORK

MODEL = "model.safetensors"
ABSENT = "0" * 64
INERT = {"*": 0}
TRAINER = "trainer_state.json"


def folder_with(*files):
    """Make a folder of a sound model, and other files: their names, and bytes or what makes them."""

    def make(folder):
        folder.mkdir()
        hf.save_safetensors(models.state(), folder / MODEL)
        for name, content in files:
            put(folder / name, content)

    return make


def put(path, content):
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)


def large(path):
    with open(path, "wb") as file:
        file.truncate(100_000_000)


def out_of_here(path):
    """Link to a file that lies outside of the folder."""
    (path.parent.parent / "secret").write_text('{"password": "abc"}')
    path.symlink_to("../secret")


NO_FILES = (
    ("a FIFO", os.mkfifo, "not a regular file"),
    ("a folder", os.mkdir, "not a regular file"),
    ("a device", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ("a broken link", lambda path: path.symlink_to("nowhere"), "cannot open"),
)


# Lists of checksums.


def sums():
    """Yield what is wrong, the list's lines about other files than the model, what is said, and the code."""
    no_list = "no list of checksums"
    yield "a way out", f"{ABSENT}  ../secret\n", r"'\.\./secret', which .* lists, is not there", 6
    yield "an absolute name", f"{ABSENT}  /etc/passwd\n", "'/etc/passwd', which .* lists, is not there", 6
    yield "an absent name", f"{ABSENT}  weights\n", "'weights', which .* lists, is not there", 6
    yield "a name for the terminal", f"{ABSENT}  \x1b[2J\u202e\n", "which .* lists, is not there", 6
    yield "a name of 1 MB", f"{ABSENT}  {'x' * (1 << 20)}\n", "which .* lists, is not there", 6
    yield "100,000 absent names", "".join(f"{ABSENT}  {n}\n" for n in range(100_000)), "is not there", 6
    yield "a file twice", f"{ABSENT}  x\n{'1' * 64}  x\n", no_list, 3
    yield "the model twice", f"{ABSENT}  {MODEL}\n", no_list, 3
    yield "a NUL", f"{ABSENT}  a\0b\n", no_list, 3
    yield "an unknown escape", f"\\{ABSENT}  a\\x41\n", no_list, 3
    yield "a short digest", f"{ABSENT[:-1]}  a\n", no_list, 3
    yield "half a line", f"{ABSENT}  a", no_list, 3
    yield "an empty name", f"{ABSENT}  \n", no_list, 3
    yield "itself", f"{ABSENT}  SHA256SUMS\n", "does not have the SHA-256", 6


def sums_of(text):
    """Make a folder whose list begins with the right checksum of its model."""

    def write(path):
        digest = hashlib.sha256((path.parent / MODEL).read_bytes()).hexdigest()
        path.write_text(f"{digest}  {MODEL}\n{text}")

    return folder_with(("SHA256SUMS", write))


def checksums():
    for name, text, said, code in sums():
        codes = {"file": 0 if code == 6 else 3, "*": code}  # asked of the file, others do not count
        yield Case("V1", f"sums: {name}", FOLDER, sums_of(text), said, kind="sums", codes=codes)
    line = f"{ABSENT}  secret.bin\n"
    for name, linked in (("a link out", out_of_here), ("a broken link", lambda path: path.symlink_to("no"))):
        write = sums_of(line)

        def make(folder, write=write, linked=linked):
            write(folder)
            linked(folder / "secret.bin")

        said = "leads out of the folder|cannot open"
        codes = {"file": 0, "*": 6 if linked is out_of_here else 3}
        yield Case("V1", f"sums: of {name}", FOLDER, make, said, kind="sums", codes=codes)
    for name, make, said in (
        *NO_FILES,
        ("100 MB", large, "no list of checksums"),
        ("noise", bytes(range(256)), "no list of checksums"),
        ("empty", b"", "no list of checksums"),
    ):
        yield Case("V1", f"sums: {name}", FOLDER, folder_with(("SHA256SUMS", make)), said, kind="sums")


# What is copied beside an average, or read beside the weights.


def sidecars():
    for file in ("config.json", "generation_config.json"):
        for name, make, said in (
            *NO_FILES[:3],
            ("a broken link", lambda path: path.symlink_to("nowhere"), "cannot open|out of its folder"),
            ("100 MB", large, "100,000,000 bytes"),
            ("a link out", out_of_here, "out of its folder"),
        ):
            wrong = "not a regular file|out of its folder" if name == "a device" else said
            yield Case("H3", f"{file}: {name}", FOLDER, folder_with((file, make)), wrong, kind="sidecar")
    for name, data in (
        ("deep lists", b"[" * 100_000),
        ("100,000 digits", b'{"dtype": ' + b"9" * 100_000 + b"}"),
        ("no UTF-8", b'{"\xff": 1}'),
        ("a NUL", b"\0"),
        ("empty objects", b"[" + b"{}," * 2_000_000 + b"{}]"),
    ):
        make = folder_with(("config.json", data))
        yield Case("H3", f"config.json: {name}", FOLDER, make, "", kind="sidecar", codes=INERT)


def trainers():
    """States of a Trainer: the weights are sound without them, so that a warning tells."""
    for name, state, said in (
        *NO_FILES,
        ("100 MB", large, "has 100,000,000 bytes"),
        ("deep lists", b"[" * 100_000, "nested too deep"),
        ("100,000 digits", b'{"global_step": ' + b"9" * 100_000 + b"}", "a number of 100,000 digits"),
        ("empty objects", b"[" + b"{}," * 2_000_000 + b"{}]", "more than 500,000 values"),
        ("no UTF-8", b'{"\xff": 1}', "not UTF-8"),
        ("cut", b'{"global_step": 5', "no JSON"),
        ("nothing", b"", "no JSON"),
        ("a key for the terminal", b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', "the same key twice"),
        ("a list", b"[1]", "no object"),
    ):
        make = folder_with((TRAINER, state))
        wanted = f"no step and no metric is read from .*{TRAINER}.*({said})"
        yield Case("H3", f"trainer's state: {name}", FOLDER, make, wanted, codes=INERT)
    for name, state in (
        ("NaN", b'{"global_step": NaN, "epoch": Infinity}'),
        ("400 digits", b'{"global_step": ' + b"9" * 400 + b', "best_metric": -' + b"9" * 400 + b"}"),
        ("texts", b'{"global_step": "\\u001b[2J", "epoch": []}'),
    ):
        make = folder_with((TRAINER, state))
        yield Case("H3", f"trainer's state: {name}", FOLDER, make, "", codes=INERT)


def indexes():
    """Indexes that would take far more memory than their bytes."""
    for name, data in (
        ("empty objects", b'{"a": [' + b"{}," * 2_000_000 + b'{}], "weight_map": {}}'),
        ("empty lists", b'{"a": [' + b"[]," * 2_000_000 + b'[]], "weight_map": {}}'),
        (
            "400,000 names",
            json.dumps({"weight_map": dict.fromkeys(map(str, range(400_000)), hf.SHARDS[0])}).encode(),
        ),
    ):
        make = folder_with((hf.INDEX, data), (hf.SHARDS[0], b""))

        def without_the_model(folder, make=make):
            make(folder)
            (folder / MODEL).unlink()

        yield Case("H2", f"index: {name}", FOLDER, without_the_model, "more than 300,000 values")


# What a soup has found, in the folder beside its output.


def state(content):
    def make(folder):
        folder.mkdir()
        put(folder / "state.json", content)

    return make


def soups():
    damaged = "is damaged, or was not written by this version"
    for name, content, said in (
        ("a FIFO", os.mkfifo, damaged),
        ("a folder", os.mkdir, damaged),
        ("a device", lambda path: path.symlink_to("/dev/zero"), damaged),
        ("a link out", out_of_here, damaged),
        ("100 MB", large, damaged),
        ("deep lists", b"[" * 100_000, damaged),
        ("100,000 digits", b'{"schema": ' + b"9" * 100_000 + b"}", damaged),
        ("empty objects", b"[" + b"{}," * 2_000_000 + b"{}]", damaged),
        ("no UTF-8", b'{"\xff": 1}', damaged),
        ("nothing", b"", damaged),
        ("a list", b"[]", damaged),
        ("another version", b'{"schema": 2}', damaged),
    ):
        yield Case("W1", f"soup: {name}", WORK, state(content), said, kind="work", codes={"*": 2})
    for name, make, said in (
        ("a link", lambda path: path.symlink_to(".."), "is a link"),
        ("a broken link", lambda path: path.symlink_to("nowhere"), "is a link"),
        ("a file", lambda path: path.write_bytes(b""), "no folder"),
        ("a FIFO in its place", os.mkfifo, "no folder"),
        ("other files", folder_with(("notes", b"")), "move it away"),
    ):
        yield Case("W1", f"soup: {name}", WORK, make, said, kind="work", codes={"*": 2})


def cases():
    yield from checksums()
    yield from sidecars()
    yield from trainers()
    yield from indexes()
    yield from soups()
