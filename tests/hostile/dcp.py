"""Folders by torch.distributed.checkpoint, and metadata that are damaged or lie."""

import pickle

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties

Size = torch.Size


def save(path, state, **options):
    dcp.save(state, checkpoint_id=path, no_dist=True, **options)
    return path


def change(path, how):
    """Change the metadata of a folder."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    how(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


def place(metadata):
    (index,) = (index for index in metadata.storage_data if index.fqn == "w")
    return metadata.storage_data[index]


def set_place(**fields):
    def how(metadata):
        for name, value in fields.items():
            setattr(place(metadata), name, value)

    return how


def set_chunks(*boxes):
    """Claim these chunks, offsets and sizes, each stored in a place of its own."""

    def how(metadata):
        entry, info = metadata.state_dict_metadata["w"], place(metadata)
        entry.chunks = [ChunkStorageMetadata(Size(offsets), Size(sizes)) for offsets, sizes in boxes]
        for offsets, _ in boxes:
            metadata.storage_data[MetadataIndex("w", offsets)] = info

    return how


def set_entry(**fields):
    def how(metadata):
        for name, value in fields.items():
            setattr(metadata.state_dict_metadata["w"], name, value)

    return how


def drop_place(metadata):
    metadata.storage_data = {MetadataIndex("other", (0, 0)): place(metadata)}


def claim_the_same_place(metadata):
    first = next(index for index in metadata.storage_data if index.fqn == "w")
    twin = MetadataIndex("w", first.offset)
    object.__setattr__(twin, "fqn", "w ")  # equal to none when it is pickled
    metadata.storage_data[twin] = place(metadata)
    object.__setattr__(twin, "fqn", "w")


def other_item(metadata):
    (index,) = (index for index in metadata.storage_data if index.fqn == "other")
    metadata.storage_data[index], metadata.storage_data[MetadataIndex("w", (0, 0))] = (
        place(metadata),
        metadata.storage_data[index],
    )


def many_tensors_share_parts(metadata):
    entry = metadata.state_dict_metadata["w"]
    entry.chunks = entry.chunks * 100
    metadata.state_dict_metadata |= {f"w{i}": entry for i in range(100)}


BAD_METADATA = {
    "outside": (set_place(relative_path="../other/0.distcp"), "outside the folder, '../other/0.distcp'"),
    "absolute": (set_place(relative_path="/etc/passwd"), "outside the folder, '/etc/passwd': refused$"),
    "missing file": (set_place(relative_path="__1_0.distcp"), "incomplete: '__1_0.distcp'"),
    "no name of a file": (set_place(relative_path=3), "lies at no place"),
    "beyond the file": (set_place(offset=10**9), "truncated or damaged"),
    "too long": (set_place(length=10**12), "truncated or damaged"),
    "negative": (set_place(offset=-1), "lies at no place"),
    "huge": (set_place(offset=2**70), "lies at no place"),
    "no number": (set_place(length="12"), "lies at no place"),
    "empty item": (set_place(length=0), "too short for a zip file"),
    "cut item": (set_place(length=700), "does not end with a zip directory"),
    "shifted item": (set_place(offset=64), "does not end with a zip directory|contradict|not where"),
    "transform": (set_place(transform_descriptors=["zstd"]), "packed by an extension"),
    "hole": (set_chunks(((0, 0), (4, 3))), "lacks parts: they hold 12 elements of 15"),
    "overlap": (set_chunks(((0, 0), (5, 3)), ((1, 1), (1, 1))), "overlap: they hold 16 elements of 15"),
    "one place twice": (claim_the_same_place, "two parts at one place"),
    "overlap and hole": (set_chunks(((0, 0), (3, 3)), ((2, 0), (2, 3))), "overlap and leave holes"),
    "overrun": (set_chunks(((1, 0), (5, 3))), "reaches beyond its shape"),
    "other rank": (set_chunks(((0,), (15,))), "another number of dimensions"),
    "negative chunk": (set_chunks(((0, -1), (5, 3))), "without place and shape|no name"),
    "other sizes": (set_chunks(((0, 0), (2, 3)), ((2, 0), (3, 3))), r"should be float32 \[2, 3\]"),
    "other shape": (set_entry(size=Size((3, 5)), chunks=[ChunkStorageMetadata(Size((0, 0)), Size((3, 5)))]),
                    r"is float32 \[5, 3\] in the file and should be float32 \[3, 5\]"),
    "other dtype": (set_entry(properties=TensorProperties(torch.int32)), "and should be int32"),
    "no shape": (set_entry(size=None), "has no dtype, shape or parts"),
    "no dtype": (set_entry(properties=None), "has no dtype, shape or parts"),
    "no list": (set_entry(chunks={}), "has no dtype, shape or parts"),
    "no chunk": (set_entry(chunks=[3]), "should be a ChunkStorageMetadata"),
    "many dimensions": (set_entry(size=(1,) * 65), "has no dtype, shape or parts"),
    "place of another": (other_item, "in the file and should be"),
    "stored nowhere": (drop_place, r"stored nowhere|describes more parts"),
    "parts without places": (many_tensors_share_parts, "describes more parts"),
    "no places": (lambda m: setattr(m, "storage_data", None), "does not say which tensors"),
    "no tensors": (lambda m: setattr(m, "state_dict_metadata", None), "does not say which tensors"),
    "a list": (lambda m: setattr(m, "state_dict_metadata", [1]), "does not say which tensors"),
    "odd place": (lambda m: m.storage_data.update({_StorageInfo("a", 1, 2): 3}), "should be a MetadataIndex"),
    "odd entry": (lambda m: m.state_dict_metadata.update(w=3), "describes something that has no name"),
    "deep path": (lambda m: m.planner_data.update(w=("a",) * 100), "more than 64 dicts deep"),
    "same path": (lambda m: m.planner_data.update(other=("w",)), "has the place of something else"),
    "path through a tensor": (lambda m: m.planner_data.update(other=("w", "x")), "has the place"),
}  # fmt: skip
_StorageInfo.__hash__ = object.__hash__  # so that one can be a wrong key above
