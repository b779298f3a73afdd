"""Finding the state dict in what training scripts save, and taking prefixes off its names."""

import pytest
from hanging import no_hang

from swatool.checkpoints.contents import Contents, Opaque, TensorDescriptor, UnsupportedTensor
from swatool.checkpoints.state_dicts import find_state_dict, without_prefixes
from swatool.errors import CheckpointError, MismatchError
from swatool.tensors import DTYPES, StoredTensor, c_strides

PATH = "run/x.pt"


def tensor(*shape, dtype="float32"):
    return TensorDescriptor(DTYPES[dtype], shape, c_strides(shape), "0", 0, 0)


def weights(scale=1):
    """A state dict of 80 * scale + 8 bytes."""
    return {
        "fc.weight": tensor(4, 5 * scale),
        "bn.num_batches_tracked": tensor(dtype="int64"),
    }


def random_state():
    return tensor(5056, dtype="uint8")


def find(root, key=None):
    def locate(_):
        raise AssertionError("nothing is located while the state dict is looked for")

    return find_state_dict(Contents("torch zip", root, locate), PATH, key)


def refusal(root, key=None):
    with pytest.raises(CheckpointError) as caught:
        find(root, key)
    message = str(caught.value)
    assert f"'{PATH}'" in message
    assert message.isprintable()
    return message


def assert_found(root, key, wanted, given=None):
    found = find(root, given)
    assert found.key == key
    assert list(found.leaves.items()) == list(wanted.items())
    return found


OPTIMIZER_BY_NUMBER = {
    "state": {0: {"step": tensor(), "exp_avg": tensor(4, 500)}, 1: {"exp_avg": tensor(4)}},
    "param_groups": [{"lr": 0.1, "params": [0, 1]}],
}
OPTIMIZER_BY_NAME = {
    "state": {"fc.weight": {"step": tensor(), "exp_avg": tensor(4, 500)}, "fc.bias": {"exp_avg": tensor(4)}},
    "param_groups": [{"lr": 0.1, "params": ["fc.weight", "fc.bias"]}],
}


def test_a_bare_state_dict_is_the_whole_file():
    assert_found(weights(), "", weights())


def test_stored_tensors_are_leaves_too():
    root = {"w": StoredTensor(DTYPES["float32"], (0,), ())}
    assert_found(root, "", root)


WRAPPERS = ["state_dict", "model", "model_state_dict", "module", "net", "params", "generator", "weights"]
AVERAGES = ["ema", "state_dict_ema", "model_ema", "EMA", "ema_state_dict", "swa_model", "shadow", "averaged"]


@pytest.mark.parametrize("wrapper", WRAPPERS + AVERAGES)
def test_a_wrapper_is_found_by_itself(wrapper):
    assert_found({wrapper: weights()}, wrapper, weights())


@pytest.mark.parametrize("outer", ["checkpoint", "state", "model"])
@pytest.mark.parametrize("inner", WRAPPERS)
def test_two_wrappers_are_seen_through(outer, inner):
    assert_found({"epoch": 3, outer: {"arch": "x", inner: weights()}}, f"{outer}.{inner}", weights())


@pytest.mark.parametrize("optimizer", [OPTIMIZER_BY_NUMBER, OPTIMIZER_BY_NAME])
@pytest.mark.parametrize(
    "beside", ["optimizer", "optim", "optimizer_state_dict", "optimizer_states", "Optimizer"]
)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_an_optimizer_beside_the_weights_is_not_taken(wrapper, beside, optimizer):
    assert_found({beside: optimizer, wrapper: weights()}, wrapper, weights())


@pytest.mark.parametrize("beside", ["lr_scheduler", "scheduler", "scaler", "rng", "callbacks", "loops"])
def test_other_state_beside_the_weights_is_not_taken(beside):
    assert_found({beside: {"a": tensor(4, 500)}, "model": weights()}, "model", weights())


@pytest.mark.parametrize("names", [["rng_state"], ["cuda_rng_state", "cpu_rng", "random"], ["loss"]])
def test_tensors_of_the_wrapper_itself_are_not_taken(names):
    beside = tensor() if names == ["loss"] else random_state()
    assert_found(dict.fromkeys(names, beside) | {"model": weights()}, "model", weights())


def test_weights_around_a_state_dict_are_told():
    root = {
        "model": {"emb": tensor(2), "loss": tensor(), "rng": random_state(), "blk": weights()},
        "q": tensor(1, 3),
    }
    assert assert_found(root, "model.blk", weights()).around == ("q", "emb")
    assert (
        assert_found(
            {"rng_state": random_state(), "loss": tensor(), "model": weights()}, "model", weights()
        ).around
        == ()
    )


@pytest.mark.parametrize("root", [{0: tensor(2), 1: tensor(3)}, {"model": {0: tensor(2)}, "step": 3}])
def test_tensors_without_names_are_refused(root):
    assert "have no names, but numbers or places in a list" in refusal(root)


def test_a_random_state_that_is_larger_than_the_model_is_not_taken():
    model = {"w": tensor(2)}
    assert_found({"rng_state": random_state(), "model": model}, "model", model)
    assert_found({"model": model, "rng": {"cpu": random_state()}}, "model", model)


def test_a_dict_inside_a_state_dict_is_not_taken_for_another():
    root = weights() | {"quant": {"scale": tensor(1)}, "fc._extra_state": {"amax": tensor(4, 500)}}
    found = assert_found(root, "", weights())
    assert found.skipped == ("quant", "fc._extra_state")
    assert_found(weights() | {"seen": {"counts": tensor(4, 500, dtype="int64")}}, "", weights())


LIGHTNING = {
    "epoch": 3,
    "global_step": 1200,
    "pytorch-lightning_version": "2.2",
    "state_dict": weights(),
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
    "callbacks": {
        "ModelCheckpoint{'monitor': 'val'}": {"best_model_score": tensor(), "best_k": {"a": tensor(9)}}
    },
    "optimizer_states": [OPTIMIZER_BY_NUMBER],
    "lr_schedulers": [{"last_epoch": 3}],
    "hyper_parameters": {"lr": 0.1, "pos_weight": tensor(900)},
}
TIMM = {
    "epoch": 7,
    "arch": "resnet18",
    "state_dict": weights(),
    "optimizer": OPTIMIZER_BY_NUMBER,
    "version": 2,
    "args": Opaque("argparse.Namespace"),
    "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0},
    "metric": 71.5,
    "state_dict_ema": weights(),
}
FAIRSEQ = {
    "args": None,
    "cfg": {"model": {"arch": "x"}, "optimization": {"lr": [0.1]}},
    "model": weights(),
    "criterion": {},
    "optimizer_history": [{"num_updates": 500, "optimizer_name": "Adam"}],
    "extra_state": {"epoch": 2, "train_iterator": {"epoch": 2}, "metrics": [("loss", 1.0)]},
    "last_optimizer_state": OPTIMIZER_BY_NUMBER,
}
DEEPSPEED = {
    "module": weights(),
    "buffer_names": ["bn.num_batches_tracked"],
    "optimizer": None,
    "param_shapes": [{"fc.weight": (4, 5)}],
    "lr_scheduler": {"last_batch_iteration": 10},
    "data_sampler": None,
    "random_ltd": None,
    "sparse_tensor_module_names": Opaque("builtins.set"),
    "global_steps": 10,
    "mp_world_size": 1,
    "ds_config": {"train_batch_size": 8},
}
LAYOUTS = {
    "lightning": (LIGHTNING, "state_dict", {"epoch": 3, "global_step": 1200}),
    "timm": (TIMM, "state_dict", {"epoch": 7, "version": 2, "metric": 71.5}),
    "fairseq": (FAIRSEQ, "model", {"num_updates": 500}),
    "deepspeed": (DEEPSPEED, "module", {"global_steps": 10, "mp_world_size": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_training_libraries_are_known(layout):
    root, key, fields = LAYOUTS[layout]
    found = assert_found(root, key, weights())
    assert found.fields == fields


def test_several_state_dicts_are_listed_with_their_sizes():
    message = refusal({"generator": weights(2), "discriminator": weights(), "optim_g": OPTIMIZER_BY_NAME})
    assert "several state dicts, choose one with --key" in message
    assert "'generator' (2 tensors, 168 bytes), 'discriminator' (2 tensors, 88 bytes)" in message
    assert "optim_g" not in message


@pytest.mark.parametrize("key", ["generator", "discriminator"])
def test_one_of_several_is_chosen_by_its_key(key):
    root = {"generator": weights(2), "discriminator": weights()}
    assert_found(root, key, root[key], given=key)


def test_a_long_list_is_cut_off():
    message = refusal({f"head{number}": weights() for number in range(25)})
    assert "'head19'" in message
    assert "'head20'" not in message
    assert message.endswith("and 5 more")


@pytest.mark.parametrize("average", AVERAGES)
def test_the_model_is_preferred_to_its_average(average):
    root = {average: weights(2), "model": weights()}
    assert_found(root, "model", weights())
    assert_found(root, average, weights(2), given=average)


def test_an_average_deeper_down_is_known_as_one():
    assert_found({"model": weights(), "ema": {"module": weights(2)}}, "model", weights())


@pytest.mark.parametrize("name", ["semantic_head", "schema", "swav", "remaining", "foreshadowed"])
def test_a_word_that_holds_the_letters_of_ema_is_no_average(name):
    refusal({"backbone": weights(), name: weights()})


def test_two_averages_alone_are_ambiguous():
    assert "several" in refusal({"ema_0.99": weights(), "ema_0.999": weights()})


def test_a_key_may_hold_dots():
    root = {"ema_0.999": weights(2), "a.b": {"c.d": weights(3)}, "model": weights()}
    assert_found(root, "ema_0.999", weights(2), given="ema_0.999")
    assert_found(root, "a.b.c.d", weights(3), given="a.b.c.d")


def test_the_whole_file_can_be_chosen():
    root = {"w": tensor(1), "model": weights()}
    assert_found(root, "model", weights())
    assert_found(root, "", {"w": tensor(1)}, given="")


def test_what_lies_beside_the_weights_can_be_chosen():
    root = {"model": weights(), "optimizer": OPTIMIZER_BY_NAME}
    wanted = OPTIMIZER_BY_NAME["state"]["fc.weight"]
    assert_found(root, "optimizer.state.fc.weight", wanted, given="optimizer.state.fc.weight")


@pytest.mark.parametrize("key", ["modle", "", "model.fc", "model.fc.weight", "epoch"])
def test_an_unknown_key_lists_what_there_is(key):
    message = refusal({"model": weights(), "ema": weights(2), "epoch": 1}, key)
    assert f"no state dict under the key {key!r}" in message
    assert "'model' (2 tensors, 88 bytes), 'ema' (2 tensors, 168 bytes)" in message


def test_an_unknown_key_where_the_whole_file_is_the_state_dict():
    assert "the whole file (2 tensors" in refusal(weights(), "model")


def test_an_unknown_key_where_there_is_nothing():
    assert "there is none at all" in refusal({"a": 1}, "model")


def test_a_pickled_model_is_told_apart():
    message = refusal(Opaque("torchvision.models.resnet.ResNet\x1b"))
    assert "pickled object of class 'torchvision.models.resnet.ResNet\\x1b'" in message
    assert "save model.state_dict() instead" in message


@pytest.mark.parametrize(
    "root",
    [None, 7, "text", [], (), {}, [tensor(1)], tensor(1), {"epoch": 1}, {0: {"w": tensor(1)}}],
)
def test_a_file_without_a_state_dict_is_refused(root):
    assert "holds no state dict" in refusal(root)


def test_nothing_but_an_optimizer_is_no_state_dict():
    assert "holds no state dict" in refusal({"optimizer": OPTIMIZER_BY_NAME})


def test_unsupported_tensors_are_refused_by_name():
    root = weights() | {f"s{number}": UnsupportedTensor("sparse") for number in range(7)}
    root["s1"] = UnsupportedTensor("quantized")
    message = refusal({"model": root})
    assert "'s0' is sparse, 's1' is quantized, 's2' is sparse" in message
    assert "'s5'" not in message
    assert message.endswith("save them as plain dense tensors")


def test_kinds_that_files_name_are_fit_to_be_printed():
    assert UnsupportedTensor("torch.Flo\x1b[2Jat").kind == r"torch.Flo\x1b[2Jat"
    assert len(UnsupportedTensor("torch." + "F" * 500).kind) < 200
    assert r"'w' is a\nb" in refusal({"w": UnsupportedTensor("a\nb")})


def test_a_state_dict_of_unsupported_tensors_alone_is_refused_for_them():
    assert "'w\\n' is meta" in refusal({"w\n": UnsupportedTensor("meta")})


def test_unsupported_tensors_elsewhere_do_no_harm():
    root = {
        "model": weights(),
        "optimizer": {"m": UnsupportedTensor("sparse")},
        "x": UnsupportedTensor("meta"),
    }
    assert_found(root, "model", weights())


def test_a_cycle_ends():
    root = {"epoch": 1}
    root["again"] = root
    root["model"] = weights() | {"parent": root}
    root["model"]["itself"] = root["model"]
    found = find(root)
    assert found.key == "model"
    assert found.leaves == weights()


def test_deep_nesting_ends():
    shallow = deep = weights()
    for _ in range(8):
        shallow = {"a": shallow}
    for _ in range(100_000):
        deep = {"a": deep}
    assert find(shallow).key == ".".join("a" * 8)
    assert "holds no state dict" in refusal(deep)
    assert_found({"deep": deep, "model": weights()}, "model", weights())
    while deep:  # the interpreter would recurse to free it
        deep = deep.pop("a", None)


def test_a_dict_shared_a_million_times_is_looked_at_once():
    node = weights()
    for _ in range(7):
        node = {f"k{number}": node for number in range(10)}
    with no_hang():
        find(node)


def test_many_dicts_take_no_more_than_linear_time():
    root = {f"layer{number}": {"w": tensor(1)} for number in range(20_000)}
    with no_hang():
        refusal(root)


def test_what_is_no_tensor_is_skipped_and_told():
    root = weights() | {
        "version": 3,
        "config": Opaque("x.Config"),
        7: tensor(1),
        "names": ["a"],
        "none": None,
    }
    found = assert_found(root, "", weights())
    assert found.skipped == ("version", "config", "7", "names", "none")


def test_numbers_in_front_of_the_state_dict_are_collected_the_inner_ones_last():
    root = {
        "step": 10,
        "epoch": 1,
        "lr": 0.5,
        "best": True,
        "name": "run",
        "loss": tensor(),
        3: 4,
        "inner": {"epoch": 2, "version": 1, "model": weights() | {"version": 2}},
        "args": {"step": 99},
    }
    assert find(root).fields == {"step": 10, "epoch": 2, "lr": 0.5, "version": 2}


def shortened(*names, **options):
    result = without_prefixes(names, PATH, **options)
    assert list(result) == list(names)
    return list(result.values())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "module._orig_mod.module._orig_mod.",
    ],
)
def test_prefixes_on_every_name_are_taken_off(prefix):
    assert shortened(f"{prefix}a.weight", f"{prefix}b") == ["a.weight", "b"]


@pytest.mark.parametrize(
    "names",
    [
        ["module.a", "b"],
        ["module.a", "_orig_mod.b"],
        ["module", "module.a"],
        ["modules.a", "modules.b"],
        ["model.a", "model.b"],
        ["encoder.module.a", "encoder.module.b"],
        ["MODULE.a"],
        ["module.", "module.a"],
        ["module."],
        [],
    ],
)
def test_other_names_are_kept(names):
    assert shortened(*names) == names


def test_only_what_is_common_is_taken_off():
    assert shortened("module.module.a", "module.b") == ["module.a", "b"]


def test_prefixes_can_be_kept():
    assert shortened("module.a", "module.b", automatic=False) == ["module.a", "module.b"]


def test_given_prefixes_are_taken_off_once_each_and_in_order():
    assert shortened("a.b.x", "a.b.y", given=["a.", "b."]) == ["x", "y"]
    assert shortened("a.a.x", "a.a.y", given=["a."]) == ["a.x", "a.y"]
    assert shortened("net.x", given=["net."], automatic=False) == ["x"]


def test_automatic_prefixes_are_taken_off_before_and_after_a_given_one():
    assert shortened("module.model.module.x", given=["model."]) == ["x"]
    assert shortened("module.model.module.x", given=["module.model."], automatic=False) == ["module.x"]


def test_a_given_prefix_that_is_missing_lists_every_name_without_it():
    with pytest.raises(MismatchError, match=r"not every name in 'run/x\.pt' begins with 'model\.'") as caught:
        shortened("model.a", "b", "c\n", given=["model."])
    assert caught.value.differences == ("'b'", "'c\\n'")


@pytest.mark.parametrize(
    "names", [["a", "module.a"], ["module.a", "module.module.a", "a"], ["x.a", "a", "x."]]
)
def test_two_names_never_become_one(names):
    assert len(set(shortened(*names))) == len(names)


def test_a_dict_saved_under_two_keys_is_found_once_and_under_either_key():
    state = weights()
    root = {"model": state, "ema": state, "copy": state}
    assert_found(root, "model", state)
    assert_found(root, "ema", state, given="ema")
