"""`SWALR` against torch's: the same rates and states, bit for bit, except where ours is better."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim import swa_utils as theirs

from swatool import swa_utils as ours
from swatool.errors import SwatoolError


def make_optimizer(rates=(0.1, 0.3), tensor=False, cls=torch.optim.SGD):
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "lr": torch.tensor(rate) if tensor else rate}
        for rate in rates
    ]
    return cls(groups, lr=rates[0])


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def follow(optimizer, scheduler, steps, before=None):
    """Return the rates before each step, and after the last; another scheduler may make the first three."""
    seen = []
    for step in range(steps):
        seen.append(rates_of(optimizer))
        optimizer.step()
        (before if before and step < 3 else scheduler).step()
    return [*seen, rates_of(optimizer)]


BEFORE = {
    "nothing": lambda _: None,
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "steps": lambda o: lr_scheduler.StepLR(o, 2),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("epochs", [0, 1, 2, 5, True])
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("swa_lr", [0.05, [0.05, 0.2], (0.5, 0.01)])
def test_rates_and_states_are_torchs(before, strategy, epochs, tensor, swa_lr):
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer(tensor=tensor)
        first = BEFORE[before](optimizer)
        scheduler = module.SWALR(optimizer, swa_lr, epochs, strategy)
        found.append(
            (
                follow(optimizer, scheduler, 10, first),
                scheduler.state_dict(),
                optimizer.state_dict()["param_groups"],
                scheduler.get_last_lr(),
                [type(group["lr"]) for group in optimizer.param_groups],
            )
        )
    assert str(found[0]) == str(found[1])
    assert list(found[0][1]) == list(found[1][1])


@pytest.mark.parametrize(
    ("epochs", "strategy", "golden"),
    [
        (5, "cos", [0.1, 0.091406, 0.068906, 0.041094, 0.018594, 0.01, 0.01]),
        (5, "linear", [0.1, 0.082, 0.064, 0.046, 0.028, 0.01, 0.01]),
        (2, "cos", [0.1, 0.055, 0.01, 0.01]),
        (1, "cos", [0.1, 0.01, 0.01]),
        (0, "cos", [0.01, 0.01]),
    ],
)
def test_rates_are_the_known_ones(epochs, strategy, golden):
    optimizer = make_optimizer((0.1,))
    scheduler = ours.SWALR(optimizer, 0.01, anneal_epochs=epochs, anneal_strategy=strategy)
    seen = follow(optimizer, scheduler, len(golden) - 1)
    assert [one for [one] in seen] == pytest.approx(golden, abs=5e-7)


def test_the_defaults_are_ten_epochs_of_a_cosine():
    optimizer = make_optimizer((1.0,))
    scheduler = ours.SWALR(optimizer, 0.0)
    seen = follow(optimizer, scheduler, 11)
    expected = [(1 + math.cos(math.pi * min(1, step / 10))) / 2 for step in range(12)]
    assert [one for [one] in seen] == pytest.approx(expected, abs=1e-12)


def test_a_rate_may_be_a_whole_number():
    optimizer = make_optimizer((0.5,))
    follow(optimizer, ours.SWALR(optimizer, 0, 2), 3)
    assert rates_of(optimizer) == [0]


def test_tensor_rates_are_filled_in_place_and_not_shared():
    swa_lr = torch.tensor(0.01)
    optimizer = make_optimizer((0.1, 0.1), tensor=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = ours.SWALR(optimizer, swa_lr, 2)
    swa_lr.fill_(7)
    assert optimizer.param_groups[0]["swa_lr"] is not optimizer.param_groups[1]["swa_lr"]
    follow(optimizer, scheduler, 3)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    assert rates_of(optimizer) == pytest.approx([0.01, 0.01])


def test_a_sequence_of_schedulers_goes_as_with_torchs():
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer()
        main = lr_scheduler.CosineAnnealingLR(optimizer, 10)
        swa = module.SWALR(optimizer, 0.05, 3)
        sequence = lr_scheduler.SequentialLR(optimizer, [main, swa], [5])
        found.append(follow(optimizer, sequence, 12))
    assert found[0] == found[1]


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize(("before", "after"), [(ours, theirs), (theirs, ours), (ours, ours)])
def test_resuming_by_state_goes_on_exactly(strategy, before, after):
    optimizer = make_optimizer()
    scheduler = before.SWALR(optimizer, [0.05, 0.5], 6, strategy)
    follow(optimizer, scheduler, 3)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make_optimizer()
    resumed = after.SWALR(other, [0.0, 0.0], 1, "cos" if strategy == "linear" else "linear")
    resumed.load_state_dict(copy.deepcopy(saved[1]))
    other.load_state_dict(saved[0])
    assert follow(other, resumed, 5) == follow(optimizer, scheduler, 5)
    assert resumed.state_dict() == scheduler.state_dict()


def resumed_rates(done, epochs, strategy, tensor=False, **options):
    """Return the rates of an uninterrupted run from a point on, and of one resumed there by last_epoch."""
    optimizer = make_optimizer((0.1,), tensor=tensor)
    scheduler = ours.SWALR(optimizer, 0.01, epochs, strategy)
    follow(optimizer, scheduler, done)
    load_first = options.pop("load_first", True)
    other = make_optimizer((0.7 if load_first else 0.1,), tensor=tensor)
    if load_first:
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        resumed = ours.SWALR(other, 0.01, epochs, strategy, last_epoch=scheduler.last_epoch - 1, **options)
    else:
        lr_scheduler.ExponentialLR(other, 1.0)
        resumed = ours.SWALR(other, 0.01, epochs, strategy, last_epoch=scheduler.last_epoch - 1, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        resumed._last_lr = scheduler.get_last_lr()
    if options.get("resume") is not False:
        assert resumed.state_dict() == scheduler.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return (
            follow(optimizer, scheduler, 6),
            follow(other, resumed, 6),
        )


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize(("done", "epochs"), [(1, 4), (3, 4), (4, 4), (7, 4), (2, 0), (1, 1)])
@pytest.mark.parametrize("tensor", [False, True])
def test_resuming_by_last_epoch_goes_on_with_the_anneal(done, epochs, strategy, tensor):
    expected, found = resumed_rates(done, epochs, strategy, tensor=tensor)
    assert found == expected
    expected, found = resumed_rates(done, epochs, strategy, tensor=tensor, resume=True, load_first=False)
    assert found == expected


def test_resuming_can_be_torchs_restart():
    expected, found = resumed_rates(3, 4, "linear", resume=False)
    assert [one for [one] in expected][:3] == pytest.approx([0.0325, 0.01, 0.01])
    assert [one for [one] in found][:3] == pytest.approx([0.0325, 0.026875, 0.02125])


def test_an_optimizer_that_was_never_annealed_starts_to_be():
    """As after a main schedule whose epochs are counted on: torch's way."""
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer()
        lr_scheduler.ExponentialLR(optimizer, 0.9)
        scheduler = module.SWALR(optimizer, 0.01, 4, last_epoch=99)
        found.append((follow(optimizer, scheduler, 6), scheduler.state_dict()))
    assert found[0] == found[1]


def test_a_second_anneal_from_the_start_is_one():
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer()
        module.SWALR(optimizer, 0.01, 4)
        scheduler = module.SWALR(optimizer, 0.02, 4)
        found.append(follow(optimizer, scheduler, 6))
    assert found[0] == found[1]


def test_a_group_added_later_is_annealed_with_the_others():
    optimizer = make_optimizer((0.1,))
    scheduler = ours.SWALR(optimizer, 0.01, 4, "linear")
    follow(optimizer, scheduler, 2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.055})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.4, "swa_lr": 0.2})
    seen = follow(optimizer, scheduler, 3)
    assert seen[1] == pytest.approx([0.0325, 0.0325, 0.3])
    assert seen[3] == pytest.approx([0.01, 0.01, 0.2])
    assert scheduler.base_lrs == [0.1, 0.055, 0.4]
    assert optimizer.param_groups[1]["initial_lr"] == 0.055
    assert len(scheduler.get_last_lr()) == 3
    other = make_optimizer((0.1, 0.2, 0.3))
    other.load_state_dict(optimizer.state_dict())


def test_a_group_added_later_shares_no_tensor():
    optimizer = make_optimizer((0.1,), tensor=True)
    scheduler = ours.SWALR(optimizer, torch.tensor(0.01), 4)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": torch.tensor(0.2)})
    follow(optimizer, scheduler, 1)
    first, second = optimizer.param_groups
    assert first["swa_lr"] is not second["swa_lr"]
    assert second["initial_lr"] is not second["lr"]
    assert scheduler.base_lrs[1] is not second["initial_lr"]
    assert float(second["initial_lr"]) == pytest.approx(0.2)


def test_a_group_added_later_needs_its_own_rate_where_the_others_differ():
    optimizer = make_optimizer()
    scheduler = ours.SWALR(optimizer, [0.01, 0.02], 4)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.step()
    before = rates_of(optimizer)
    with pytest.raises(ours.ArgumentError, match="no common swa_lr"):
        scheduler.step()
    assert rates_of(optimizer) == before


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        (
            {"swa_lr": [0.1, 0.2, 0.3]},
            ValueError,
            "swa_lr must have the same length as optimizer.param_groups",
        ),
        ({"swa_lr": (0.1,)}, ValueError, "it has 1 values for 2 groups"),
        (
            {"anneal_strategy": "square"},
            ValueError,
            "anneal_strategy must be one of 'cos' or 'linear', .* square",
        ),
        ({"anneal_epochs": -1}, ValueError, "anneal_epochs must be equal or greater than 0, got -1"),
        ({"anneal_epochs": 2.0}, ValueError, "anneal_epochs must be equal or greater than 0, got 2.0"),
        ({"swa_lr": "0.05"}, TypeError, "swa_lr must be a number or a tensor, or a list of them, not '0.05'"),
        ({"swa_lr": None}, TypeError, "swa_lr must be a number"),
        ({"swa_lr": [0.1, "a"]}, TypeError, "not 'a'"),
        ({"last_epoch": 5}, KeyError, "last_epoch=5 goes on .* without initial_lr: load the optimizer's"),
    ],
)
def test_a_refused_call_changes_nothing(options, error, what):
    optimizer = make_optimizer()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=what) as caught:
        ours.SWALR(optimizer, **{"swa_lr": 0.1, **options})
    assert isinstance(caught.value, SwatoolError)
    assert optimizer.state_dict() == before
    if options.get("swa_lr", 0) is not None:
        with pytest.raises(error):
            theirs.SWALR(make_optimizer(), **{"swa_lr": 0.1, **options}).step()


def test_only_optimizers_have_rates():
    with pytest.raises(TypeError, match="int is not an Optimizer") as caught:
        ours.SWALR(3, 0.1)
    assert isinstance(caught.value, SwatoolError)


def test_a_refused_call_leaves_no_trace_in_later_ones():
    rates = []
    for refused in (True, False):
        optimizer = make_optimizer()
        if refused:
            with pytest.raises(KeyError) as caught:
                ours.SWALR(optimizer, 0.05, 4, last_epoch=5)
            assert str(caught.value).startswith("last_epoch=5")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        rates.append(follow(optimizer, ours.SWALR(optimizer, 0.05, 4, last_epoch=5), 5))
    assert rates[0] == rates[1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_fails_halfway_changes_no_group(error, monkeypatch):
    optimizer = make_optimizer()
    before = copy.deepcopy(optimizer.state_dict())

    def fail(_):
        assert "initial_lr" in optimizer.param_groups[0]
        raise error

    monkeypatch.setattr(ours.SWALR, "get_lr", fail)
    with pytest.raises(error):
        ours.SWALR(optimizer, 0.05, 4)
    assert optimizer.state_dict() == before


def test_only_an_optimizer_all_of_whose_groups_were_annealed_is_gone_on_with():
    """One group alone may have been given its rate when it was made."""
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer()
        lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.param_groups[1]["swa_lr"] = 0.5
        scheduler = module.SWALR(optimizer, 0.01, 4, last_epoch=2)
        found.append(follow(optimizer, scheduler, 6))
    assert found[0] == found[1]


def test_get_lr_outside_of_a_step_warns_as_torchs():
    found = []
    for module in (ours, theirs):
        scheduler = module.SWALR(make_optimizer(), 0.1)
        with pytest.warns(UserWarning, match="get_last_lr") as caught:
            found.append(scheduler.get_lr())
        assert caught[0].filename == __file__
    assert found[0] == found[1]


def test_a_state_without_strategy_loads_with_a_warning():
    optimizer = make_optimizer()
    scheduler = ours.SWALR(optimizer, 0.01, 4, "linear")
    state = scheduler.state_dict()
    del state["_anneal_strategy"]
    state["anneal_func"] = theirs.SWALR._cosine_anneal
    state["optimizer"] = None
    state["anneal_epochs"] = 8
    with pytest.warns(UserWarning, match="goes on as it was constructed, with 'linear'") as caught:
        scheduler.load_state_dict(state)
    assert caught[0].filename == __file__
    assert scheduler.optimizer is optimizer
    assert scheduler.anneal_epochs == 8
    assert scheduler.anneal_func(0.25) == 0.25


@pytest.mark.parametrize("strategy", ["bogus", None])
def test_a_state_of_an_unknown_strategy_is_refused_before_anything_is_changed(strategy):
    scheduler = ours.SWALR(make_optimizer(), 0.01, 4, "linear")
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="anneal_strategy must be one of") as caught:
        scheduler.load_state_dict({**before, "_anneal_strategy": strategy, "anneal_epochs": 9})
    assert isinstance(caught.value, SwatoolError)
    assert scheduler.state_dict() == before


def test_the_parts_are_torchs():
    for t in (0, 0.25, 0.5, 1):
        assert ours.SWALR._linear_anneal(t) == theirs.SWALR._linear_anneal(t)
        assert ours.SWALR._cosine_anneal(t) == theirs.SWALR._cosine_anneal(t)
        assert ours.SWALR._get_initial_lr(0.3, 0.1, t) == theirs.SWALR._get_initial_lr(0.3, 0.1, t)
    scheduler = ours.SWALR(make_optimizer(), 0.1)
    scheduler._set_anneal_func("linear")
    assert (scheduler._anneal_strategy, scheduler.anneal_func(0.25)) == ("linear", 0.25)
    scheduler._set_anneal_func("cos")
    assert (scheduler._anneal_strategy, scheduler.anneal_func(0.5)) == ("cos", pytest.approx(0.5))


def test_a_rate_changed_outside_is_as_with_torchs():
    found = []
    for module in (ours, theirs):
        optimizer = make_optimizer((0.1,))
        scheduler = module.SWALR(optimizer, 0.01, 3)
        seen = follow(optimizer, scheduler, 1)
        optimizer.param_groups[0]["lr"] = 0.5
        found.append(seen + follow(optimizer, scheduler, 4))
    assert found[0] == found[1]
