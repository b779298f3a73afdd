"""Folders as Hugging Face's libraries write them, and indexes that are damaged or lie."""

import json

import torch

from swatool.tensors import DTYPES

INDEX = "model.safetensors.index.json"


STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3.0).to(torch.bfloat16),
    "b.weight": torch.arange(6.0).reshape(2, 3) - 3,
    "b.count": torch.tensor(7),
}


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


PLACES = dict(zip(STATE, (SHARDS[0], SHARDS[0], SHARDS[1], SHARDS[1]), strict=True))


TOTAL = sum(tensor.nbytes for tensor in STATE.values())


def raw(tensor):
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def save_safetensors(tensors, path, metadata=None):
    """Write tensors as the format prescribes: the reference library needs NumPy for it."""
    header, data = {"__metadata__": metadata or {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        begin, data = len(data), data + raw(tensor)
        code = DTYPES[str(tensor.dtype).removeprefix("torch.")].code
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_index(folder, weight_map, name=INDEX, total=TOTAL):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


OUTSIDE = [
    *(
        "../secret.safetensors",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "sub/x.safetensors",
    ),
    *("./model.safetensors", "a\0.safetensors", "x" * 300 + ".safetensors", "\ud800.safetensors", "..", ""),
]


BAD_INDEXES = {
    "duplicate tensor": (
        f'{{"weight_map": {{"a": "{SHARDS[0]}", "a": "{SHARDS[1]}"}}}}',
        "same key twice: 'a'",
    ),
    "duplicate map": ('{"weight_map": {}, "weight_map": {"a": "b"}}', "same key twice: 'weight_map'"),
    "no map": ("{}", "no weight_map"),
    "empty map": ('{"weight_map": {}}', "no weight_map"),
    "list": ("[]", "no weight_map"),
    "map of lists": ('{"weight_map": []}', "no weight_map"),
    "number": ('{"weight_map": {"a": 1}}', "names no file for 'a'"),
    "list as a file": ('{"weight_map": {"a": ["x.bin"]}}', "names no file for 'a'"),
    "null": ('{"weight_map": {"a": null}}', "names no file for 'a'"),
    "no name": (f'{{"weight_map": {{"": "{SHARDS[0]}"}}}}', "names no file for ''"),
    "deep": ('{"weight_map": ' + "[" * 100_000, "damaged index"),
    "deep objects": ('{"a":' * 100_000, "damaged index"),
    "huge number": ('{"metadata": {"total_size": ' + "9" * 5000 + '}, "weight_map": {}}', "damaged index"),
    "cut": ('{"weight_map": {"a": "', "damaged index"),
    "not text": ("\udcff\udcfe", "damaged index"),
    "empty": ("", "damaged index"),
    "suffix": ('{"weight_map": {"a": "config.json"}}', "hold no weights by their names: 'config.json'"),
    "pickle": ('{"weight_map": {"a": "x.pkl"}}', "hold no weights by their names: 'x.pkl'"),
    "itself": (f'{{"weight_map": {{"a": "{INDEX}"}}}}', "hold no weights by their names"),
}
