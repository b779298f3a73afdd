import json
import math
import os
from types import SimpleNamespace

import pytest
from hanging import no_hang

from swatool.checkpoints.selection import DatedCheckpoint
from swatool.errors import CheckpointError, MismatchError, UsageError
from swatool.jobs.metrics import best, metric_values


def dated(*paths, fields=None, steps=None):
    fields = fields or [{}] * len(paths)
    steps = steps or [None] * len(paths)
    return [
        DatedCheckpoint(SimpleNamespace(path=p, fields=f), s)
        for p, f, s in zip(paths, fields, steps, strict=True)
    ]


RUN = dated("run/a-100.pt", "run/a-200.pt", "run/a-300.pt", steps=[100, 200, 300])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "step,acc\n100,0.5\n200,0.75\n300,0.25\n400,1\n"),
        ("m.csv", "\ufeffacc , checkpoint\n0.5,other/a-100.pt\n0.75,a-200\n0.25,a-300.pt\n"),
        ("m.csv", "epoch,step,loss,acc\n0,100,3,\n0,100,,0.5\n0,200,,0.75\n1,300,,0.25\n"),
        ("m.tsv", "step\tacc\n100\t0.5\n200\t0.75\n300\t0.25\n"),
        ("m.json", '[{"step": 100, "acc": 0.5}, {"step": 200, "acc": 0.75}, {"step": 300, "acc": 0.25}]'),
        ("m.json", '{"a-100.pt": {"acc": 0.5}, "a-200.pt": {"acc": 0.75}, "a-300.pt": {"acc": 0.25}}'),
        ("m.json", '{"a-100.pt": 0.5, "a-200": 0.75, "a-300.pt": 0.25}'),
        (
            "trainer_state.json",
            '{"log_history": [{"step": 100, "loss": 1}, {"step": 100, "acc": 0.5},'
            ' {"step": 200, "acc": 0.75}, {"step": 300, "acc": 0.25}]}',
        ),
        ("m.csv", "step,acc\r100,0.5\r200,0.75\r300,0.25\r"),
        ("m.jsonl", '{"step": 100, "acc": 0.5}\n\n{"step": 200, "acc": 0.75}\n{"step": 300, "acc": 0.25}'),
        (
            "m.jsonl",
            '{"step": 100, "acc": 0.5, "x": "\u2028"}\r\n{"step": 200, "acc": 0.75}\n'
            '{"step": 300, "acc": 0.25}',
        ),
        ("m.yaml", "- {step: 100, acc: 0.5}\n- {step: 200, acc: 0.75}\n- {step: 300, acc: 2.5e-1}\n"),
        ("m.yml", "a-100.pt: 0.5\na-200.pt: 0.75\na-300.pt: 0.25\n"),
    ],
)
def test_tables_of_every_kind(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert metric_values(RUN, "acc", tmp_path / name) == (0.5, 0.75, 0.25)


def test_a_step_that_is_stored_under_the_column_s_name_counts_before_the_run_s_steps(tmp_path):
    (tmp_path / "m.csv").write_text("epoch,acc\n1,0.5\n2,0.75\n")
    run = dated("a.pt", "b.pt", fields=[{"epoch": 1}, {"epoch": 2}], steps=[100, 200])
    assert metric_values(run, "acc", tmp_path / "m.csv") == (0.5, 0.75)


def test_a_logger_s_table_that_counts_steps_otherwise(tmp_path):
    rows = ["epoch,step,train_loss,val_loss"]
    for epoch in range(3):
        rows += [f"{epoch},{epoch * 10 + 4},{9 - epoch},", f"{epoch},{epoch * 10 + 9},,{epoch / 4}"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    fields = [{"epoch": epoch, "global_step": 10 * (epoch + 1)} for epoch in range(3)]
    run = dated("a.ckpt", "b.ckpt", "c.ckpt", fields=fields, steps=[10, 20, 30])
    assert metric_values(run, "val_loss", tmp_path / "metrics.csv") == (0.0, 0.25, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch=3-val_loss=0.21.ckpt", 0.21),
        ("run/epoch=3-val_loss=0.21-v1.ckpt", 0.21),
        ("x-val_loss=-1.5e-3", -0.0015),
        ("val_loss=7.pt", 7.0),
    ],
)
def test_a_value_in_the_name(name, value):
    assert metric_values(dated(name), "val_loss") == (value,)


@pytest.mark.parametrize(
    "name", ["my_val_loss=0.21.ckpt", "val_loss=0x21.ckpt", "val_loss.ckpt", "val_loss=/a.pt"]
)
def test_what_is_not_the_metric_s_value_in_a_name(name):
    with pytest.raises(MismatchError, match="has none"):
        metric_values(dated(name), "val_loss")


def test_stored_numbers_count_before_the_names():
    run = dated("acc=1.pt", "acc=2.pt", fields=[{"acc": 3}, {"acc": 4.5}])
    assert metric_values(run, "acc") == (3.0, 4.5)


def test_all_checkpoints_without_a_number_are_named():
    run = dated("a.pt", "b.pt", "c.pt", fields=[{"acc": 1.0}, {}, {"acc": math.nan}])
    with pytest.raises(MismatchError) as caught:
        metric_values(run, "acc")
    assert caught.value.differences == ("'b.pt' has none", "'c.pt' has NaN")


@pytest.mark.parametrize(
    ("name", "data", "error", "said"),
    [
        ("absent.csv", None, CheckpointError, "cannot read the table .*absent.csv"),
        ("m.txt", "a", UsageError, "must be .csv"),
        ("m.csv", "acc,loss\n1,2\n", UsageError, "needs a column checkpoint or step"),
        ("m.csv", "step,loss\n1,2\n", UsageError, "no column 'acc'; it has 'loss', 'step'"),
        ("m.csv", "step,acc,acc\n1,2,3\n", CheckpointError, "twice in its header"),
        ("m.csv", "step,acc\n1,2,3\n", CheckpointError, "line 2, has 3 cells under 2 names"),
        ("m.csv", 'step,acc\n1,"2', CheckpointError, "no CSV"),
        ("m.tsv", 'step\tacc\n1\t"2"3', CheckpointError, r"no CSV: '\\t' expected"),
        (
            "m.jsonl",
            '{"step": 1, "acc": 1}\u2028{"step": 2, "acc": 1}',
            CheckpointError,
            "line 1 is damaged: it is no JSON",
        ),
        ("m.csv", "step,acc\n100,1\n100,2\n", UsageError, "several values of 'acc' for 100"),
        ("m.csv", "step,acc\n100,high\n", UsageError, "has 'high' where a number"),
        ("m.csv", "step,acc\nlate,1\n", UsageError, "has 'late' where a number"),
        ("m.csv", "step,acc\n100,1\n200,nan\n", MismatchError, "not known of every checkpoint"),
        ("m.csv", "step,acc\n,1\n", UsageError, "does not say whose"),
        ("m.csv", "step,acc\n1,1\n,1\n", UsageError, "says of no checkpoint whose"),
        ("m.json", "[1]", CheckpointError, "a row that is no object"),
        ("m.json", "1", CheckpointError, "neither a list"),
        ("m.json", '[{"step": 1, "step": 2, "acc": 1}]', CheckpointError, "the same key twice: 'step'"),
        ("m.json", "[" * 100_000, CheckpointError, "damaged: it is nested too deep"),
        ("m.json", '[{"step": 1, "acc": true}]', UsageError, "has 'True' where"),
        ("m.json", '[{"step": 1, "acc": %s}]' % ("9" * 5000), CheckpointError, "number of 5,000 digits"),
        ("m.jsonl", '{"step": 1, "acc": 1}\n{', CheckpointError, "line 2"),
        ("m.yaml", "a: 1\na: 2", CheckpointError, "stands twice"),
        ("m.csv", b"\xff\xfe", CheckpointError, "not UTF-8"),
    ],
)
def test_bad_tables(tmp_path, name, data, error, said):
    if data is not None:
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(error, match=said):
        metric_values(RUN, "acc", tmp_path / name)


def test_a_step_beyond_all_integers_is_no_crash(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([{"step": 1e999, "acc": 1}]))
    with pytest.raises(MismatchError, match="not known of every checkpoint"):
        metric_values(RUN, "acc", tmp_path / "m.json")


@pytest.mark.parametrize(
    ("values", "mode", "count", "chosen"),
    [
        ((0.5, 0.75, 0.25), "max", 2, [0, 1]),
        ((0.5, 0.75, 0.25), "min", 2, [0, 2]),
        ((1.0, 1.0, 1.0), "max", 1, [2]),
        ((1.0, 1.0, 1.0), "min", 2, [1, 2]),
        ((-math.inf, 0.0, 1.0), "max", 2, [1, 2]),
        ((math.inf, 0.0, 1.0), "min", 3, [0, 1, 2]),
    ],
)
def test_the_best_stay_in_their_order(values, mode, count, chosen):
    assert best(RUN, count, values, mode) == tuple(RUN[index] for index in chosen)


@pytest.mark.parametrize(
    ("count", "mode", "said"), [(4, "max", "more than the 3"), (1, "high", "--mode must be")]
)
def test_what_cannot_be_chosen(count, mode, said):
    with pytest.raises(UsageError, match=said):
        best(RUN, count, (1.0, 2.0, 3.0), mode)


@pytest.mark.parametrize(("value", "mode"), [(math.inf, "max"), (-math.inf, "min")])
def test_nothing_infinite_is_the_best(value, mode):
    with pytest.raises(UsageError, match=r"best value would be -?inf, that of 'run/a-200.pt', which is"):
        best(RUN, 2, (0.0, value, 1.0), mode)


@pytest.mark.parametrize("values", [("0.5", "nan"), ("nan", "0.5")])
def test_nan_beside_a_number_is_never_dropped(tmp_path, values):
    names = [os.path.basename(one.checkpoint.path) for one in RUN]
    rows = [f"{names[0]},{value}" for value in values] + [f"{name},0.1" for name in names[1:]]
    (tmp_path / "m.csv").write_text("\n".join(["checkpoint,acc", *rows]))
    with pytest.raises(UsageError, match="has several values of 'acc'"):
        metric_values(RUN, "acc", tmp_path / "m.csv")


def test_a_table_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    with no_hang(), pytest.raises(CheckpointError, match="it is no regular file"):
        metric_values(RUN, "acc", tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.csv", "step,acc\n" + "1,2\n" * 260_000, "more than 500,000 cells: keep the rows"),
        ("m.csv", "step,acc\n" + " " * (9 << 20), "9,437,193 bytes, and at most 8,388,608 are read"),
        ("m.json", "[" + "{}," * 300_000 + "{}]", "more than 500,000 values"),
        ("m.jsonl", '{"step":1,"a":1}\n' * 200_000, "more than 500,000 values"),
        ("m.jsonl", "\n" * 300_000 + "{", "line 300001 is damaged: it is no JSON"),
    ],
)
def test_tables_that_would_take_memory_without_bound(tmp_path, name, data, said):
    (tmp_path / name).write_text(data)
    with pytest.raises(CheckpointError, match=said):
        metric_values([], "acc", tmp_path / name)


def test_a_stored_number_that_no_float_holds_is_infinite():
    run = dated("a.pt", "b.pt", fields=[{"acc": 10**400}, {"acc": -(10**400)}])
    assert metric_values(run, "acc") == (math.inf, -math.inf)
