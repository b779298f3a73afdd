"""An assembler of pickles, and pickles that would call something."""

import struct


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(qualified, protocol=2):
    module, _, name = qualified.rpartition(".")
    if protocol >= 4:
        return text(module) + text(name) + b"\x93"
    return f"c{module}\n{name}\n".encode()


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def program(body, protocol=2):
    return b"\x80" + bytes([protocol]) + body + b"."


def storage_id(numel=6, kind="torch.FloatStorage", key="0"):
    return tuple_of(text("storage"), named(kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(storage=None, offset=b"K\0", shape=None, strides=None, rest=b"\x89" + b"}"):
    if storage is None:
        storage = storage_id()
    if shape is None:
        shape = tuple_of(number(2), number(3))
    if strides is None:
        strides = tuple_of(number(3), number(1))
    return named("torch._utils._rebuild_tensor_v2") + tuple_of(storage, offset, shape, strides, rest) + b"R"


def strided(storage, shape, strides=None, offset=0):
    """A tensor of these lengths in a storage; without strides, all of them are 1."""
    lengths, steps = (tuple_of(*map(number, values)) for values in (shape, strides or [1] * len(shape)))
    return tensor(storage, number(offset), lengths, steps)


def changed_afterwards():
    """Tensors of zeros in storage 0 that torch.load fills from storage 1 after they were made, by how."""
    ones = storage_id(key="1")
    other = tensor(ones)
    parameter = named("torch._utils._rebuild_parameter_with_state")
    wrapped = named("torch._tensor._rebuild_from_type_v2") + b"(" + named("torch._utils._rebuild_tensor_v2")
    inner = tuple_of(
        storage_id(), number(0), tuple_of(number(2), number(3)), tuple_of(number(3), number(1)), b"\x89}"
    )
    data = b"}" + text("data") + other + b"s"
    counted = named("collections.Counter") + tuple_of(data) + b"R"
    return {
        "by its state": tensor() + tuple_of(ones, number(0), tuple_of(number(2)), tuple_of(number(1))) + b"b",
        "by an attribute": parameter + tuple_of(tensor(), b"\x89}", data) + b"R",
        "by a slot": parameter + tuple_of(tensor(), b"\x89}", tuple_of(b"N", data)) + b"R",
        "by a part of it": parameter
        + tuple_of(tensor(), b"\x89}", b"}" + text("real") + other + b"s")
        + b"R",
        "by its storage": tensor(storage_id() + b"}" + text("dtype") + named("torch.int32") + b"sb"),
        "by a wrapped view beside it": tensor(storage_id() + b"q\x01")
        + b"s"
        + text("beside")
        + named("torch._tensor._rebuild_from_type_v2")
        + tuple_of(
            named("torch._tensor._rebuild_from_type_v2"),
            named("torch.nn.parameter.Parameter"),
            tuple_of(
                named("torch._utils._rebuild_tensor_v2"),
                named("torch.Tensor"),
                tuple_of(
                    b"h\x01",
                    *(number(0), tuple_of(number(2), number(3)), tuple_of(number(3), number(1)), b"\x89}"),
                ),
                b"}" + text("real") + other + b"s",
            ),
            b"N",
        )
        + b"R",
        "by what is no dict": parameter + tuple_of(tensor(), b"\x89}", counted) + b"R",
        "by a type": wrapped + named("torch.nn.parameter.Parameter") + inner + data + b"tR",
        "by its metadata": tensor(
            rest=b"\x89}" + named("collections.Counter") + b"}" + text("neg") + b"\x88s\x85R"
        ),
    }


def deep(levels):
    return program(b"N" + b"\x85" * levels)


def doubling(levels):
    return b"N" + b"2\x86" * levels


CALLS = {
    "os.system": "touch {canary}",
    "posix.system": "touch {canary}",
    "nt.system": "touch {canary}",
    "os.mkdir": "{canary}",
    "os.popen": "touch {canary}",
    "subprocess.Popen": "touch {canary}",
    "subprocess.check_output": "touch {canary}",
    "builtins.eval": "__import__('os').mkdir('{canary}')",
    "builtins.exec": "__import__('os').mkdir('{canary}')",
    "__builtin__.eval": "__import__('os').mkdir('{canary}')",
    "builtins.compile": "1",
    "builtins.open": "{canary}",
    "builtins.__import__": "antigravity",
    "builtins.breakpoint": "",
    "io.open": "{canary}",
    "importlib.import_module": "antigravity",
    "runpy.run_path": "{canary}.py",
    "shutil.rmtree": "{canary}",
    "socket.create_connection": "example.invalid",
    "sys.settrace": "",
    "pty.spawn": "sh",
    "ctypes.CDLL": "libc.so.6",
    "code.InteractiveInterpreter": "",
    "webbrowser.open": "http://example.invalid",
    "pickle.loads": "",
    "_pickle.loads": "",
    "marshal.loads": "",
    "multiprocessing.util.spawnv_passfds": "",
    "asyncio.unix_events._UnixSubprocessTransport._start": "",
    "pdb.run": "1",
    "timeit.timeit": "1",
    "torch.hub.load": "a/b",
    "torch.load": "x.pt",
    "numpy.testing._private.utils.runstring": "1",
    "pathlib.os.system": "touch {canary}",
}


def call(qualified, argument, protocol):
    module, _, name = qualified.rpartition(".")
    if qualified == "pathlib.os.system":
        module, name, protocol = "pathlib", "os.system", 4
    function = text(module) + text(name) + b"\x93" if protocol >= 4 else f"c{module}\n{name}\n".encode()
    return function + text(argument) + b"\x85R"


def placements(body, protocol):
    weights = b"}" + text("w") + tensor() + b"s"
    return {
        "root": program(body, protocol),
        "beside weights": program(weights + text("x") + body + b"s", protocol),
        "key": program(weights + body + number(1) + b"s", protocol),
        "state": program(weights + b"}" + text("_metadata") + body + b"sb", protocol),
        "object state": program(named("argparse.Namespace", protocol) + b")\x81" + body + b"b", protocol),
        "persistent id": program(
            tuple_of(text("storage"), body, text("0"), text("cpu"), number(1)) + b"Q", protocol
        ),
        "tensor argument": program(tensor(storage=body), protocol),
        "dropped": program(body + b"0" + weights, protocol),
    }


def attacks(canary):
    """All crafted pickles that would do something, with the name that their refusal tells."""
    for qualified, argument in CALLS.items():
        for protocol in (2, 4):
            yield qualified, program(call(qualified, argument.format(canary=canary), protocol), protocol)
    for protocol in (2, 4):
        for data in placements(call("os.mkdir", str(canary), protocol), protocol).values():
            yield "os.mkdir", data


def foreign_opcodes(canary):
    touch = f"mkdir {canary}"
    yield b"(" + text(touch) + b"ios\nsystem\n"  # INST
    yield b"(" + named("argparse.Namespace") + text(touch) + b"o"  # OBJ
    yield b"Pos.system\n"  # PERSID
    yield b"\x82\x01"  # EXT1
    yield b"\x83\x01\x00"  # EXT2
    yield b"\x84\x01\x00\x00\x00"  # EXT4
    yield b"\x97"  # NEXT_BUFFER
    yield b"N\x98"  # READONLY_BUFFER
    yield b"S'text'\n"  # protocol 0
    yield b"\xff"
