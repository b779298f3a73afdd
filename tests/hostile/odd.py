"""Inputs that are odd rather than bad, and that two readers may take differently."""

import io
import json
import pickle

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties

from hostile import dcp, hf
from hostile.safetensors_headers import assembled

FLOATS = bytes(range(1, 9))


def header(text, data=FLOATS):
    return assembled(text, data)


def fields(shape="[2]", offsets="[0,8]", dtype='"F32"', more=""):
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


def named(name, **said):
    return header(f'{{"{name}":{fields(**said)}}}')


def several(entries, data=FLOATS):
    return header("{" + ",".join(f'"{name}":{one}' for name, one in entries) + "}", data)


HALVES = fields("[1]", "[0,4]"), fields("[1]", "[4,8]")
EMPTY = fields("[0]", "[0,0]")

SAFETENSORS = {
    **{
        f"a length written as {number}": named("w", shape=f"[{number}]")
        for number in ("2.0", "2e0", "0.2e1", "+2", "02", "-0", "2 ", " 2", "2\\u0000", "0x2", "2_", "\u0662")
    },
    **{
        f"an offset written as {number}": named("w", offsets=f"[{number},8]")
        for number in ("-0", "0.0", "0e0", "00", "-0.0", "false", "null", '"0"', " 0", "\t0")
    },
    **{
        f"an end written as {number}": named("w", offsets=f"[0,{number}]")
        for number in ("8.0", "8e0", "08", "18446744073709551624", "8.00000000000000000001", "true")
    },
    **{
        f"a tensor named {name}": named(name)
        for name in (
            *("\\u0077", "\\/", "a\\/b", "\\\\", "\\ud83d\\ude00", "\\ud83d", "\\ude00\\ud83d", "\\x41"),
            *("\u00e9", "e\u0301", "\u202e", "\\u202e", "\\b\\f\\n\\r\\t", "..", "../w", " "),
            *("__metadata__ ", "__proto__", "\\u005f_metadata__", "\\u0000", "\ufeffw", "constructor", '\\"'),
        )
    },
    "the second of two first": several([("b", HALVES[1]), ("a", HALVES[0])]),
    "empty tensors at every edge": several(
        [("a", EMPTY), ("b", HALVES[0]), ("c", fields("[0,7]", "[4,4]")), ("d", HALVES[1]),
         ("e", fields("[7,0]", "[8,8]"))]
    ),
    "an empty tensor in the middle of another": several([("a", fields()), ("b", fields("[0]", "[4,4]"))]),
    "two of one place": several([("a", fields()), ("b", fields())]),
    "two names that look alike": several([("\u00e9", HALVES[0]), ("e\u0301", HALVES[1])]),
    "a name and its escape": several([("w", HALVES[0]), ("\\u0077", HALVES[1])]),
    "a name and one with a zero": several([("w", HALVES[0]), ("w\\u0000", HALVES[1])]),
    "fields in another order": header('{"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}'),
    "a field by an escape": header('{"w":{"\\u0064type":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "a dtype by an escape": named("w", dtype='"\\u00463\\u0032"'),
    "a field twice, once by an escape": named("w", more=',"\\u0073hape":[1]'),
    "a comment": header('{"w":' + fields() + "/* */}"),
    "a comma at the end": header('{"w":' + fields() + ",}"),
    "a comma at the end of a shape": named("w", shape="[2,]"),
    "single quotes": header("{'w':" + fields() + "}"),
    "white space everywhere": header(' { "w" : ' + fields("[ 2 ]", "[ 0 , 8 ]") + " } "[1:]),
    "white space after the brace": header('{\t\r\n "w"\n:\n' + fields("[ 2 ]", "[ 0 , 8 ]") + "\n}\n"),
    "a form feed": header('{\f"w":' + fields() + "}"),
    "a space that does not break": header('{\u00a0"w":' + fields() + "}"),
    "zeros behind the header": header('{"w":' + fields() + "}\0\0"),
    "more behind the header": header('{"w":' + fields() + "} x"),
    "bytes behind the data": header('{"w":' + fields() + "}", FLOATS + b"\0"),
    "a length of one more": header('{"w":' + fields("[3]") + "}"),
    "a scalar of a length": named("w", shape="[]"),
    "a scalar": several([("w", fields("[]", "[0,4]")), ("v", HALVES[1])]),
    "lengths of 1": named("w", shape="[1,2,1,1]"),
    "lengths whose product overflows to 0": header(
        '{"w":' + fields("[4294967296,4294967296]", "[0,0]") + "}", b""
    ),
    "an empty tensor of huge lengths": header(
        '{"w":' + fields("[0,4294967296,4294967296]", "[0,0]") + "}", b""
    ),
    "booleans": header('{"w":' + fields("[8]", dtype='"BOOL"') + "}", bytes(7) + b"\1"),
    "a complex number": named("w", dtype='"C64"', shape="[1]"),
    "bytes": named("w", dtype='"F8_E4M3"', shape="[2,4]"),
    "metadata of an escape": header('{"__metadata__":{"a":"\\u0041\\n"},"w":' + fields() + "}"),
    "metadata by an escape": header('{"__meta\\u0064ata__":{"a":"b"},"w":' + fields() + "}"),
    "metadata of nothing": header('{"__metadata__":{},"w":' + fields() + "}"),
    "metadata last": header('{"w":' + fields() + ',"__metadata__":{"":""}}'),
    "metadata like a tensor": header('{"__metadata__":' + fields() + "}"),
    "metadata like a tensor, of texts": header(
        '{"__metadata__":{"dtype":"a","shape":"b","data_offsets":"c"},"w":' + fields() + "}"
    ),
    **{
        f"metadata that hold {value}": header('{"__metadata__":{"a":' + value + '},"w":' + fields() + "}")
        for value in ("1", "1.5", "true", "null", "[]", "{}", '["b"]', '{"b":"c"}')
    },
    "tensors named like the fields": several(
        [("dtype", HALVES[0]), ("shape", HALVES[1]), ("data_offsets", fields("[0]", "[8,8]"))]
    ),
    "an entry named like a tensor": header('{"w":{"w":' + fields() + "}}"),
}  # fmt: skip

# What the library reads: another one may read it in another way, and torch has no tensor of such lengths.
STRICTER_SAFETENSORS = {
    "a tensor named \\u0000",
    "a name and one with a zero",
    "an empty tensor of huge lengths",
    "white space everywhere",
}


def index_of(weight_map, total=None, **more):
    said = {"metadata": {} if total is None else {"total_size": total}, "weight_map": weight_map, **more}
    return said if isinstance(said, bytes) else json.dumps(said).encode()


def index_text(text):
    return text.replace("MAP", json.dumps(hf.PLACES)).encode()


_first, _second = hf.SHARDS
INDEXES = {
    "an honest one": index_of(hf.PLACES),
    "another order": index_of(dict(reversed(hf.PLACES.items()))),
    "no metadata": index_text('{"weight_map":MAP}'),
    "metadata of null": index_text('{"metadata":null,"weight_map":MAP}'),
    "unknown fields": index_of(hf.PLACES, more=[1, {"weight_map": {}}]),
    "a total of 1e2": index_text('{"metadata":{"total_size":1e2},"weight_map":MAP}'),
    "a total of -0": index_text('{"metadata":{"total_size":-0},"weight_map":MAP}'),
    "a total of NaN": index_text('{"metadata":{"total_size":NaN},"weight_map":MAP}'),
    "a total as text": index_of(hf.PLACES, total="52"),
    "a name by an escape": index_of(hf.PLACES).replace(b"a.weight", b"\\u0061.weight"),
    "a shard by an escape": index_of(hf.PLACES).replace(b"model-00001", b"\\u006dodel-00001"),
    "a name twice": index_of(hf.PLACES).replace(b'"weight_map": {', b'"weight_map": {"a.weight": "x",'),
    "a map twice": index_text('{"weight_map":{},"weight_map":MAP}'),
    "a byte order mark": b"\xef\xbb\xbf" + index_of(hf.PLACES),
    "white space around": b"\n\t " + index_of(hf.PLACES) + b" \r\n",
    "more behind": index_of(hf.PLACES) + b"{}",
    "a dot before": index_of({name: f"./{shard}" for name, shard in hf.PLACES.items()}),
    "two slashes": index_of({name: f"x//../{shard}" for name, shard in hf.PLACES.items()}),
    "a zero behind": index_of({name: f"{shard}\0" for name, shard in hf.PLACES.items()}),
    "a space behind": index_of({name: f"{shard} " for name, shard in hf.PLACES.items()}),
    "shards exchanged": index_of({n: _second if s == _first else _first for n, s in hf.PLACES.items()}),
    "one shard alone": index_of({n: _first for n, s in hf.PLACES.items() if s == _first}),
    "all in the first": index_of(dict.fromkeys(hf.PLACES, _first)),
    "a map in a list": index_of([hf.PLACES]),
    "numbers for shards": index_of(dict.fromkeys(hf.PLACES, 1)),
    "UTF-16": index_of(hf.PLACES).decode().encode("utf-16"),
}  # fmt: skip

# What a folder with such an index holds is told by no other file: whatever does not fit is refused.
STRICTER_INDEXES = {
    "a byte order mark",
    "a dot before",
    "a map twice",
    "a name twice",
    "all in the first",
    "one shard alone",
    "shards exchanged",
    "UTF-16",
}


# What may stand where torch has saved `w`, a tensor of 5 x 3, and lies in `.metadata` of an honest folder.


def replaced(value, **options):
    """Store something else for `w`, at the end of the file, where the metadata look for it."""

    def make(folder):
        stored = io.BytesIO()
        torch.save(value, stored, **options)
        (file,) = folder.glob("*.distcp")
        begin = file.stat().st_size
        with open(file, "ab") as opened:
            opened.write(stored.getvalue())
        where = dcp.set_place(offset=begin, length=len(stored.getvalue()))
        dcp.change(folder, where)

    return make


def changed(how):
    return lambda folder: dcp.change(folder, how)


def set_planner(**paths):
    return changed(lambda metadata: metadata.planner_data.update(paths))


def two_rows(swap):
    """Claim that `w` consists of two parts, whose places hold halves of another tensor, or the other's."""

    def make(folder):
        halves = torch.arange(6.0).reshape(2, 3), torch.arange(9.0).reshape(3, 3)
        places = []
        for half in halves:
            replaced(half)(folder)
            metadata = pickle.loads((folder / ".metadata").read_bytes())
            places.append(dcp.place(metadata))

        def how(metadata):
            chunks = [
                ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((2, 3))),
                ChunkStorageMetadata(torch.Size((2, 0)), torch.Size((3, 3))),
            ]
            metadata.state_dict_metadata["w"].chunks = chunks[::-1] if swap else chunks
            del metadata.storage_data[next(one for one in metadata.storage_data if one.fqn == "w")]
            for chunk, place in zip(chunks, places, strict=True):
                metadata.storage_data[MetadataIndex("w", chunk.offsets, 7)] = place

        dcp.change(folder, how)

    return make


def alias(metadata):
    metadata.state_dict_metadata["v"] = metadata.state_dict_metadata["w"]
    metadata.storage_data[MetadataIndex("v", torch.Size((0, 0)))] = dcp.place(metadata)
    metadata.planner_data["v"] = ("v",)


def paths_of_twins(folder):
    replaced(torch.ones(5, 3))(folder)
    first = dcp.place(pickle.loads((folder / ".metadata").read_bytes()))
    replaced(torch.zeros(5, 3))(folder)

    def how(metadata):
        alias(metadata)
        metadata.storage_data[MetadataIndex("v", torch.Size((0, 0)))] = first
        metadata.planner_data |= {"v": ("w",), "w": ("v",)}

    dcp.change(folder, how)


def other_index(metadata):
    info = dcp.place(metadata)
    del metadata.storage_data[next(one for one in metadata.storage_data if one.fqn == "w")]
    metadata.storage_data[MetadataIndex("w", torch.Size((0, 0)), 10**6)] = info


def without_offset(metadata):
    info = dcp.place(metadata)
    del metadata.storage_data[next(one for one in metadata.storage_data if one.fqn == "w")]
    metadata.storage_data[MetadataIndex("w")] = info


def more_places(metadata):
    metadata.storage_data[MetadataIndex("nobody", torch.Size((0, 0)))] = dcp.place(metadata)
    metadata.storage_data[MetadataIndex("w", torch.Size((1, 1)))] = dcp.place(metadata)


def set_properties(**said):
    return dcp.set_entry(properties=TensorProperties(torch.float32, **said))


def sized(*chunk, size=(5, 3)):
    return dcp.set_entry(size=size, chunks=[ChunkStorageMetadata(*chunk)])


def longer(by):
    def how(metadata):
        dcp.place(metadata).length += by

    return changed(how)


BASE = torch.arange(60.0).reshape(10, 6)
VALUES = {
    "another value": BASE[:5, :3].clone(),
    "a view of a larger one": BASE[5:, 3:],
    "every other element": BASE[::2, ::2],
    "a transposed one": BASE[:3, :5].clone().t(),
    "an expanded one": torch.arange(3.0).expand(5, 3),
    "a flat one": torch.arange(15.0),
    "a parameter": torch.nn.Parameter(BASE[:5, :3].clone()),
    "one that needs a gradient": BASE[:5, :3].clone().requires_grad_(),
    "doubles": BASE[:5, :3].double(),
    "halves": BASE[:5, :3].half(),
    "integers": BASE[:5, :3].long(),
    "complex ones": BASE[:5, :3] + 1j,
    "a larger one": BASE,
    "one row": BASE[:1, :3].clone(),
    "a number": torch.tensor(3.0),
    "nothing": torch.zeros(0),
    "a sparse one": BASE[:5, :3].to_sparse(),
    "a meta one": torch.empty(5, 3, device="meta"),
    "a dict": {"w": BASE[:5, :3].clone()},
    "a list": [BASE[:5, :3].clone()],
    "a Python number": 3.0,
    "a text": "w",
    "None": None,
}

DCP = {
    "nothing at all": lambda _: None,
    **{f"{name} for w": replaced(value) for name, value in VALUES.items()},
    "a legacy file for w": replaced(BASE[:5, :3].clone(), _use_new_zipfile_serialization=False),
    "two parts": two_rows(swap=False),
    "two parts in another order": two_rows(swap=True),
    "two names of one place": changed(alias),
    "another hint": changed(other_index),
    "a place without offset": changed(without_offset),
    "more places than parts": changed(more_places),
    "a part twice": changed(dcp.set_chunks(((0, 0), (5, 3)), ((0, 0), (5, 3)))),
    "an empty part": changed(dcp.set_chunks(((0, 0), (5, 3)), ((5, 0), (0, 3)))),
    "an empty part in the middle": changed(dcp.set_chunks(((0, 0), (5, 3)), ((2, 1), (0, 1)))),
    "no part": changed(dcp.set_entry(chunks=[])),
    "no part of an empty one": changed(dcp.set_entry(chunks=[], size=torch.Size((0, 3)))),
    "a part that is smaller": changed(dcp.set_chunks(((0, 0), (4, 3)))),
    "another shape of as many": changed(sized((0, 0), (3, 5), size=(3, 5))),
    "a gradient that is wanted": changed(set_properties(requires_grad=True)),
    "memory that is pinned": changed(set_properties(pin_memory=True)),
    "channels last": changed(set_properties(memory_format=torch.channels_last)),
    "a sparse layout": changed(set_properties(layout=torch.sparse_coo)),
    "shapes as tuples": changed(sized((0, 0), (5, 3))),
    "shapes as lists": changed(sized([0, 0], [5, 3], size=[5, 3])),
    "True as a length": changed(sized((False, 0), (5, 3))),
    "lengths of floats": changed(sized((0.0, 0.0), (5.0, 3.0), size=(5.0, 3.0))),
    "another path": set_planner(w=("a", "b")),
    "a path of numbers": set_planner(w=("a", 0), other=("a", 1)),
    "a path of nothing": set_planner(w=()),
    "paths exchanged": set_planner(w=("other",), other=("w",)),
    "paths of two of one shape exchanged": paths_of_twins,
    "a path as a list": set_planner(w=["a", "b"]),
    "the right path as a list": set_planner(w=["w"]),
    "a path of a number": set_planner(w=("w", 0)),
    "paths of others": set_planner(nobody=("x", "y")),
    "no paths": changed(lambda metadata: setattr(metadata, "planner_data", None)),
    "no path of w": changed(lambda metadata: metadata.planner_data.pop("w")),
    "a longer item": longer(1),
    "an item over the next": longer(500),
    "a shorter item": longer(-1),
    "True as an offset": changed(dcp.set_place(offset=False)),
    "a dot before the file": changed(dcp.set_place(relative_path="./__0_0.distcp")),
    "another version": changed(lambda metadata: setattr(metadata, "version", "99.9")),
    "more attributes": changed(lambda metadata: setattr(metadata, "more", ["x", 1])),
}  # fmt: skip

# What torch reads, of another type or size than the metadata say, or of parts that do not make up the whole.
STRICTER_DCP = {
    "a dot before the file",
    "a larger one for w",
    "a legacy file for w",
    "a longer item",
    "a part that is smaller",
    "a part twice",
    "an item over the next",
    "complex ones for w",
    "doubles for w",
    "halves for w",
    "integers for w",
    "no part",
    "paths of two of one shape exchanged",
    "True as a length",
    "True as an offset",
}
