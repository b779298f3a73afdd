import dataclasses
import json

import pytest

from swatool.report import (
    SCHEMA,
    CheckpointReport,
    Estimate,
    FiguresReport,
    OutputReport,
    Report,
    Seconds,
    SweepReport,
    SweptReport,
    TensorsReport,
    peak_rss_bytes,
)

REPORT = Report(
    version="1.2.3",
    command="average",
    dry_run=False,
    method="ema",
    parameters={"decay": 0.5},
    checkpoints=(CheckpointReport("a.pt", None, 10, 0.25), CheckpointReport("b.pt", 7, 11, 0.75, "model")),
    figures=FiguresReport(1.6, 2.0, "steps", 1.0),
    output=OutputReport("out", 12, {"model.safetensors": 12}),
    tensors=TensorsReport(("w", "b"), ("n",), (), ("t",), ("n",)),
    dtype={"float32": 8},
    device="cpu",
    threads=2,
    seconds=Seconds(1.0, 2.0, 3.0, 7.0),
    bytes_read=21,
    bytes_written=12,
    peak_rss_bytes=1000,
    merge_signal_kept=0.5,
    warnings=("careful",),
    estimate=Estimate(4.5, 2000, 1e9),
)


def test_json_has_every_field_and_a_schema_number():
    data = json.loads(json.dumps(REPORT.as_json()))
    assert data == {
        "schema": SCHEMA,
        "version": "1.2.3",
        "command": "average",
        "dry_run": False,
        "method": "ema",
        "parameters": {"decay": 0.5},
        "checkpoints": [
            {"path": "a.pt", "step": None, "bytes": 10, "coefficient": 0.25, "key": "", "sha256": None},
            {"path": "b.pt", "step": 7, "bytes": 11, "coefficient": 0.75, "key": "model", "sha256": None},
        ],
        "figures": {"effective": 1.6, "lag": 2.0, "lag_unit": "steps", "l1": 1.0},
        "output": {
            "path": "out",
            "bytes": 12,
            "files": {"model.safetensors": 12},
            "format": "safetensors",
            "sha256": {},
        },
        "tensors": {"averaged": 2, "copied": 1, "dropped": 0, "tied": 1, "differing": 1},
        "dtype": {"float32": 8},
        "device": "cpu",
        "threads": 2,
        "seconds": {"plan": 1.0, "stream": 2.0, "fsync": 3.0, "total": 7.0, "checksum": 0.0},
        "bytes_read": 21,
        "bytes_written": 12,
        "peak_rss_bytes": 1000,
        "merge_signal_kept": 0.5,
        "warnings": ["careful"],
        "estimate": {"seconds": 4.5, "memory_bytes": 2000, "bytes_per_second": 1e9},
        "checksum": False,
    }
    assert set(data) == {"schema"} | {field.name for field in dataclasses.fields(Report)}


def test_names_are_listed_if_asked_for():
    data = json.loads(json.dumps(REPORT.as_json(names=True)))
    assert data["tensors"] == {
        "averaged": ["w", "b"],
        "copied": ["n"],
        "dropped": [],
        "tied": ["t"],
        "differing": ["n"],
    }
    assert {**data, "tensors": None} == {**json.loads(json.dumps(REPORT.as_json())), "tensors": None}


def test_the_schema_is_the_first():
    assert SCHEMA == 1


@pytest.mark.parametrize("kind", [Report, CheckpointReport, OutputReport, Seconds, TensorsReport])
def test_reports_cannot_be_changed(kind):
    one = (
        dataclasses.replace(REPORT)
        if kind is Report
        else next(
            value
            for value in (*REPORT.checkpoints, REPORT.output, REPORT.seconds, REPORT.tensors)
            if type(value) is kind
        )
    )
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, name, None)


def test_every_field_is_explained():
    for kind in (Report, CheckpointReport, OutputReport, Seconds, TensorsReport):
        for field in dataclasses.fields(kind):
            assert f"    {field.name}: " in kind.__doc__


def test_peak_memory_only_grows():
    before = peak_rss_bytes()
    ballast = bytearray(b"\1") * (before + 1_000_000)
    after = peak_rss_bytes()
    assert before < after
    assert len(ballast) <= after < 100 * before


def test_a_sweep_s_json_holds_the_report_of_each_average():
    other = dataclasses.replace(REPORT, warnings=("careful", "slow"))
    found = SweepReport(
        version="1.2.3",
        command="average",
        dry_run=False,
        outputs=(SweptReport({"last": "2"}, REPORT, 0.5, {"acc": 0.5}), SweptReport({"last": "4"}, other)),
        metric="acc",
        mode="max",
    )
    assert found.warnings == ("careful", "slow")
    assert json.loads(json.dumps(found.as_json())) == {
        "schema": SCHEMA,
        "version": "1.2.3",
        "command": "average",
        "dry_run": False,
        "metric": "acc",
        "mode": "max",
        "failures": [],
        "outputs": [
            {
                "values": {"last": "2"},
                "value": 0.5,
                "metrics": {"acc": 0.5},
                "kept": True,
                "report": json.loads(json.dumps(REPORT.as_json())),
            },
            {
                "values": {"last": "4"},
                "value": None,
                "metrics": {},
                "kept": True,
                "report": json.loads(json.dumps(other.as_json())),
            },
        ],
    }
