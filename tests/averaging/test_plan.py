import dataclasses

import pytest
from hanging import no_hang

from swatool.averaging.plan import Action, make_plan
from swatool.averaging.policies import Policies
from swatool.checkpoints.opening import Checkpoint
from swatool.choices import choices_of
from swatool.errors import MismatchError, UsageError
from swatool.tensors import DTYPES, Extent, StoredTensor


class Nowhere:
    """A source that is only compared."""

    path, size = "nowhere", 1 << 40


def tensor(dtype="float32", shape=(2,), place=None, source=None):
    extents = (Extent(source or Nowhere(), place or 0, 1),) if 0 not in shape else ()
    return StoredTensor(DTYPES[dtype], shape, extents)


def checkpoint(path, skipped=(), **tensors):
    return Checkpoint(path, None, "test", "", tensors, skipped, {}, (), {})


def plan(*checkpoints, coefficients=None, **policies):
    coefficients = coefficients or [1 / len(checkpoints)] * len(checkpoints)
    return make_plan(checkpoints, [coefficients], Policies(**policies))


def pair(first, second, **policies):
    """Plan two checkpoints of one tensor, and return its treatment."""
    (planned,) = plan(checkpoint("a", w=first), checkpoint("b", w=second), **policies).tensors
    assert planned.name == "w"
    return planned.treatment


def coefficients_of(planned):
    return {t.name: {i.checkpoint: i.coefficients[0] for i in t.treatment.inputs} for t in planned.tensors}


CHOICES = {one.name: choices_of(one) for one in dataclasses.fields(Policies) if choices_of(one)}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted_and_others_are_refused(name):
    assert set(CHOICES) == {"match", "integers", "tied", "dtype", "accumulate"}
    for choice in CHOICES[name]:
        assert getattr(Policies(**{name: choice}), name) == choice
    with pytest.raises(UsageError, match=f"--{name} must be one of {', '.join(CHOICES[name])}, not 'no'"):
        Policies(**{name: "no"})
    assert getattr(Policies(), name) in CHOICES[name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_done_depends_on_the_type(dtype):
    treatment = pair(tensor(dtype), tensor(dtype))
    averageable = DTYPES[dtype].kind in ("float", "complex")
    assert treatment.averages is averageable
    assert treatment.action is (Action.AVERAGE if averageable else Action.COPY_LAST)
    assert treatment.dtype is DTYPES[dtype]
    wide = "float64" if dtype in ("float64", "complex128") else "float32"
    assert treatment.accumulator == (wide if averageable else "")
    assert [i.checkpoint for i in treatment.inputs] == [0, 1]


@pytest.mark.parametrize(
    ("integers", "action"),
    [("last", Action.COPY_LAST), ("first", Action.COPY_FIRST), ("equal", Action.MUST_EQUAL)],
)
@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_integers(integers, action, dtype):
    assert pair(tensor(dtype), tensor(dtype), integers=integers).action is action


@pytest.mark.parametrize(
    ("stored", "wanted", "written"),
    [
        ("bfloat16", "same", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float64", "float16", "float16"),
        ("complex64", "same", "complex64"),
        ("complex64", "float32", "complex64"),
        ("complex128", "bfloat16", "complex64"),
        ("complex128", "same", "complex128"),
        ("int64", "float32", "int64"),
        ("bool", "float16", "bool"),
    ],
)
def test_type_of_the_output(stored, wanted, written):
    assert pair(tensor(stored), tensor(stored), dtype=wanted).dtype.name == written


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_type_of_the_sums_can_be_chosen(accumulate):
    for dtype in ("bfloat16", "float64", "complex64"):
        assert pair(tensor(dtype), tensor(dtype), accumulate=accumulate).accumulator == accumulate


def test_types_that_differ_need_a_type_for_the_output():
    with pytest.raises(MismatchError) as caught:
        pair(tensor("float32"), tensor("bfloat16"))
    assert caught.value.differences == (
        "'w' is bfloat16 in 'b', float32 in 'a'; name the output's type with --dtype",
    )
    treatment = pair(tensor("float32"), tensor("bfloat16"), dtype="float16")
    assert [i.dtype.name for i in treatment.inputs] == ["float32", "bfloat16"]
    assert treatment.dtype.name == "float16"
    assert pair(tensor("float32"), tensor("float64"), dtype="float32").accumulator == "float64"


@pytest.mark.parametrize("types", [("int64", "int32"), ("float32", "int64"), ("int8", "bool")])
def test_no_type_of_the_output_makes_integers_match(types):
    with pytest.raises(MismatchError) as caught:
        pair(*map(tensor, types), dtype="float32")
    assert len(caught.value.differences) == 1


@pytest.mark.parametrize("types", [("float32", "complex64"), ("complex64", "float32")])
def test_real_and_complex_tensors_do_not_match(types):
    with pytest.raises(MismatchError) as caught:
        pair(*map(tensor, types), dtype="float32")
    assert len(caught.value.differences) == 1


def test_all_differences_are_collected_and_the_first_are_shown():
    first = {f"n{i:02}": tensor() for i in range(12)} | {f"s{i}": tensor() for i in range(6)}
    second = {f"s{i}": tensor(shape=(3,)) for i in range(6)}
    first |= {f"d{i}": tensor("float32") for i in range(7)}
    second |= {f"d{i}": tensor("float16") for i in range(7)} | {"only": tensor()}
    with pytest.raises(MismatchError) as caught:
        plan(checkpoint("a", **first), checkpoint("b", **second))
    differences = caught.value.differences
    assert len(differences) == 26
    lines = str(caught.value).splitlines()
    assert lines[0] == "the checkpoints do not match (26 differences):"
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "  ... and 6 more"
    assert "'n00' is missing in 'b'" in differences
    assert "'only' is missing in 'a'" in differences
    assert "'s3' has shape [3] in 'b', [2] in 'a'" in differences
    assert any(d.startswith("'d6' is float16 in 'b', float32 in 'a'") for d in differences)


def test_missing_names_say_in_how_many():
    have, lack = {"w": tensor(), "x": tensor()}, {"w": tensor()}
    with pytest.raises(MismatchError) as caught:
        plan(checkpoint("a", **have), checkpoint("b", **lack), checkpoint("c", **lack))
    assert caught.value.differences == ("'x' is missing in 'b' and 1 more",)


def test_names_are_escaped_in_messages():
    with pytest.raises(MismatchError) as caught:
        plan(checkpoint("a\n", **{"\x1b[31m": tensor()}), checkpoint("b", w=tensor()))
    assert "\x1b" not in str(caught.value)
    assert "'\\x1b[31m'" in str(caught.value)
    assert "'a\\n'" in str(caught.value)


PARTIAL = (
    {"w": tensor(), "x": tensor()},
    {"w": tensor(), "y": tensor()},
    {"w": tensor(), "x": tensor(), "y": tensor("int64")},
)


def partial(**options):
    return plan(*(checkpoint(str(i), **t) for i, t in enumerate(PARTIAL)), **options)


def test_intersection_drops_what_only_some_have():
    planned = partial(match="intersection")
    assert [t.name for t in planned.tensors] == ["w"]
    assert planned.dropped == ("x", "y")
    assert any(w.startswith("2 tensors that only some") for w in planned.warnings)
    with pytest.raises(MismatchError, match="no tensor name in common"):
        plan(checkpoint("a", v=tensor()), checkpoint("b", w=tensor()), match="intersection")


def test_union_divides_by_the_coefficients_present():
    files = [
        checkpoint(str(i), **{n: t for n, t in some.items() if n != "y"}) for i, some in enumerate(PARTIAL)
    ]
    planned = plan(*files, coefficients=[0.5, 0.3, 0.2], match="union")
    found = coefficients_of(planned)
    assert found["w"] == {0: 0.5, 1: 0.3, 2: 0.2}
    assert found["x"] == pytest.approx({0: 5 / 7, 2: 2 / 7})
    assert planned.dropped == ()
    # Weights that are not normalized keep their sum.
    found = coefficients_of(plan(*files, coefficients=[3.0, -1.0, 1.0], match="union"))
    assert found["x"] == pytest.approx({0: 3 / 4 * 3, 2: 1 / 4 * 3})


def test_union_still_wants_shapes_and_types_to_match():
    with pytest.raises(MismatchError) as caught:
        partial(match="union")
    assert len(caught.value.differences) == 1
    assert "'y' is int64 in '2', float32 in '1'" in caught.value.differences[0]


def test_union_refuses_what_only_checkpoints_without_weight_have():
    files = [checkpoint("a", w=tensor(), x=tensor()), checkpoint("b", w=tensor())]
    with pytest.raises(MismatchError, match="weight of zero together"):
        plan(*files, coefficients=[0.0, 1.0], match="union")
    planned = plan(*files, coefficients=[0.0, 1.0], match="union", exclude=("x",))
    assert {t.name: t.treatment.action for t in planned.tensors}["x"] is Action.EXCLUDED


def test_excluded_tensors_are_copied_from_the_last_that_has_them():
    files = [
        checkpoint("a", w=tensor(), bn_mean=tensor("float32"), bn_var=tensor()),
        checkpoint("b", w=tensor(), bn_mean=tensor("bfloat16")),
    ]
    planned = plan(*files, exclude=("bn_*",), match="union", dtype="float16")
    actions = {t.name: (t.treatment.action, t.treatment.dtype.name) for t in planned.tensors}
    assert actions == {
        "w": (Action.AVERAGE, "float16"),
        "bn_mean": (Action.EXCLUDED, "bfloat16"),
        "bn_var": (Action.EXCLUDED, "float32"),
    }
    assert coefficients_of(planned)["bn_mean"] == {1: 1.0}
    assert coefficients_of(planned)["bn_var"] == {0: 1.0}


def test_exclude_must_match_something():
    with pytest.raises(UsageError, match=r"--exclude 'head\.\*' matches no tensor"):
        plan(checkpoint("a", w=tensor()), checkpoint("b", w=tensor()), exclude=("w", "head.*"))


def test_excluded_types_may_differ():
    treatment = pair(tensor("float32"), tensor("int64"), exclude=("w",))
    assert (treatment.action, treatment.dtype.name) == (Action.EXCLUDED, "int64")


def test_excluded_shapes_must_match():
    with pytest.raises(MismatchError, match="shape"):
        pair(tensor(shape=(2,)), tensor(shape=(3,)), exclude=("w",))


def test_names_that_share_bytes_everywhere_are_tied():
    sources = Nowhere(), Nowhere()
    tied = [{"a": tensor(place=8, source=s), "b": tensor(place=8, source=s)} for s in sources]
    planned = plan(*(checkpoint(str(i), **some) for i, some in enumerate(tied)))
    assert planned.ties == {"b": "a"}
    assert [t.name for t in planned.tensors] == ["a"]
    apart = {"a": tensor(place=8, source=sources[1]), "b": tensor(place=16, source=sources[1])}
    planned = plan(checkpoint("0", **tied[0]), checkpoint("1", **apart))
    assert planned.ties == {}
    assert len(planned.tensors) == 2


def test_checkpoints_whose_factor_is_zero_are_not_read():
    three = [checkpoint(str(index), w=tensor(), n=tensor("int64")) for index in range(3)]
    planned = plan(*three, coefficients=[0.0, 1.0, 0.0], integers="first")
    assert coefficients_of(planned) == {"w": {1: 1.0}, "n": {0: 0.0, 1: 1.0, 2: 0.0}}
    nothing = plan(*three, coefficients=[0.0, 0.0, 0.0])
    assert coefficients_of(nothing)["w"] == {0: 0.0, 1: 0.0, 2: 0.0}


def test_names_that_share_bytes_in_the_first_checkpoint_only_cost_no_time():
    names, source = [f"w{number}" for number in range(20_000)], Nowhere()
    tied = checkpoint("0", **{name: tensor(source=source) for name in names})
    apart = checkpoint("1", **{name: tensor(place=index) for index, name in enumerate(names)})
    with no_hang():
        planned = plan(tied, apart)
    assert planned.ties == {}


def test_empty_tensors_are_not_tied():
    empty = {"a": tensor(shape=(0,)), "b": tensor(shape=(0,))}
    planned = plan(checkpoint("0", **empty), checkpoint("1", **empty))
    assert planned.ties == {}
    assert [t.numel for t in planned.tensors] == [0, 0]


@pytest.mark.parametrize("excluded", ["a", "b"])
def test_a_name_that_is_excluded_alone_is_not_tied_to_an_averaged_one(excluded):
    source = Nowhere()
    tied = {"a": tensor(source=source), "b": tensor(source=source)}
    planned = plan(checkpoint("0", **tied), checkpoint("1", **tied), exclude=(excluded,))
    actions = {t.name: t.treatment.action for t in planned.tensors}
    assert planned.ties == {}
    assert actions[excluded] is Action.EXCLUDED
    assert actions["ab".replace(excluded, "")] is Action.AVERAGE


def test_warnings():
    bn = {"bn.running_var": tensor(), "bn.running_mean": tensor()}
    planned = plan(checkpoint("a", ("epoch", "args"), **bn), checkpoint("b", ("epoch",), **bn))
    assert planned.skipped == ("epoch", "args")
    assert any("BatchNorm" in w for w in planned.warnings)
    assert any(
        w.startswith("2 entries that are no tensors with a name are dropped: 'epoch', 'args'")
        for w in planned.warnings
    )
    excluded = plan(checkpoint("a", **bn), checkpoint("b", **bn), exclude=("*.running_*",))
    assert excluded.warnings == ()
    assert plan(checkpoint("a"), checkpoint("b")).warnings == ("there is no tensor to write",)


def test_equal_treatment_is_one_object():
    some = {"a": tensor(), "b": tensor(), "c": tensor("float16"), "d": tensor("int8")}
    planned = plan(checkpoint("0", **some), checkpoint("1", **some))
    treatments = {t.name: t.treatment for t in planned.tensors}
    assert treatments["a"] is treatments["b"]
    assert len({id(t) for t in treatments.values()}) == 3
