"""What the names of Hugging Face's files mean: models, variants, shards, and leftovers of another save."""

import pytest

from swatool.checkpoints.hf_names import KINDS, choose, is_index, recognises, shards_of
from swatool.errors import CheckpointError

FP16_SHARDS = ("model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors")


def chosen(*names, variant=None):
    return choose(sorted(names), variant, "run/x")


def refusal(*names, variant=None):
    with pytest.raises(CheckpointError) as caught:
        chosen(*names, variant=variant)
    assert str(caught.value).startswith("'run/x' ")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised_whole_and_in_shards(kind):
    stem, _, suffix = kind.rpartition(".")
    shard, index = f"{stem}-00001-of-00001.{suffix}", f"{kind}.index.json"
    assert recognises([kind])
    assert recognises([index])
    assert recognises([shard])
    assert recognises(["README.md", f"{stem}.fp16.{suffix}"])
    assert chosen(kind, "config.json") == kind
    assert chosen(index, shard) == index
    assert shards_of(index, [shard, kind, index]) == [shard]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["config.json", "tokenizer.json"],
        ["ckpt-1.safetensors", "ckpt-2.safetensors"],
        ["optimizer.pt", "training_args.bin"],
        ["model.1000.safetensors", "model.2000.safetensors"],
        ["model.step10.safetensors", "model.step20.safetensors"],
        ["mymodel.safetensors"],
        ["model.safetensors.bak"],
        ["xmodel-00001-of-00002.safetensors"],
        ["model-1.safetensors", "model-2.safetensors"],
        ["tf_model.h5", "flax_model.msgpack"],
    ],
)
def test_what_is_no_single_model_is_not_recognised(names):
    assert not recognises(names)


def test_several_variants_are_one_model_if_a_plain_one_or_a_config_is_there():
    variants = ["model.bf16.safetensors", "model.fp16.safetensors"]
    assert not recognises(variants)
    assert recognises([*variants, "config.json"])
    assert recognises([*variants, "model.safetensors"])


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin.index.json", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors.index.json"], "model.safetensors.index.json"),
        (["adapter_model.bin", "adapter_model.safetensors"], "adapter_model.safetensors"),
        (["adapter_model.safetensors", "model.safetensors"], "model.safetensors"),
        (["adapter_model.safetensors", "pytorch_model.bin"], "adapter_model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], "pytorch_model.bin"),
        (["model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.fp16.bin"], "model.fp16.safetensors"),
        (["model.safetensors.index.fp16.json", FP16_SHARDS[0]], "model.safetensors.index.fp16.json"),
        (["model.safetensors.index.fp16.json", FP16_SHARDS[1]], "model.safetensors.index.fp16.json"),
        (["model.safetensors.index.fp16.json", "model.safetensors", *FP16_SHARDS], "model.safetensors"),
    ],
)
def test_what_is_taken(names, wanted):
    assert chosen(*names) == wanted


def test_the_variant_that_is_asked_for_is_taken():
    names = ["model.safetensors", "model.fp16.safetensors", "pytorch_model.non_ema.bin"]
    assert chosen(*names, variant="fp16") == "model.fp16.safetensors"
    assert chosen(*names, variant="non_ema") == "pytorch_model.non_ema.bin"
    message = refusal(*names, variant="bf16")
    assert message == "'run/x' has no variant 'bf16': there is the plain one, 'fp16', 'non_ema'"
    assert "holds no weights as Hugging Face's libraries name them" in refusal("x.pt", variant="fp16")


def test_several_variants_without_a_plain_one_must_be_chosen_from():
    message = refusal("model.bf16.safetensors", "model.fp16.safetensors")
    assert message == "'run/x' holds several variants, 'bf16', 'fp16': choose one with --variant"


def test_of_very_many_variants_a_few_are_named():
    message = refusal(*(f"model.v{number:04}.safetensors" for number in range(1000)))
    assert "several variants, 'v0000', 'v0001', 'v0002', 'v0003', 'v0004' and 995 more: choose" in message


def test_shards_without_an_index_are_an_interrupted_save():
    assert "shards such as 'model-00001-of-00002.safetensors' and no index" in refusal(
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    )
    assert "no index" in refusal(FP16_SHARDS[1], variant="fp16")


@pytest.mark.parametrize("other", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_a_whole_file_beside_what_belongs_to_shards_is_of_two_saves(other):
    assert f"holds both 'model.safetensors' and {other!r}, of two saves" in refusal(
        other, "model.safetensors"
    )


def test_the_shards_of_one_variant_are_not_those_of_another():
    names = ["model-00001-of-00002.safetensors", *FP16_SHARDS, "pytorch_model-00001-of-00002.bin"]
    assert shards_of("model.safetensors.index.json", names) == names[:1]
    assert shards_of("model.safetensors.index.fp16.json", names) == list(FP16_SHARDS)
    assert shards_of("pytorch_model.bin.index.json", names) == names[3:]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model.safetensors.index.json", True),
        ("any.thing.bin.index.json", True),
        ("pytorch_model.bin.index.fp16.json", True),
        ("index.json", False),
        ("model.index.json", False),
        ("model.safetensors", False),
        ("model.safetensors.index.json.txt", False),
        ("", False),
    ],
)
def test_an_index_is_known_by_its_name(name, is_one):
    assert is_index(name) == is_one
