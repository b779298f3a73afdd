"""Where the model may come from, and what is said where it does not."""

import sys
import types

import pytest
import torch
from torch import nn

from swatool.errors import UsageError
from swatool.models.building import build_model

SOURCE = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self, width=2):
        super().__init__(width, 1)

def build(width=2, depth=1):
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

def broken():
    raise RuntimeError("the disk of weights\\nis gone")

def wrong():
    return {"weights": 1}

def scripted():
    return torch.jit.script(nn.Linear(1, 1))

def leaving():
    raise SystemExit(3)

finished = nn.Linear(5, 5)
number = 7
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return str(path)


def test_a_function_is_called_with_its_arguments(source):
    model = build_model(f"{source}:build", {"width": 3, "depth": 2})
    assert [layer.in_features for layer in model] == [3, 3]


def test_a_class_is_made_and_a_module_taken(source):
    assert build_model(f"{source}:Net", {"width": 4}).in_features == 4
    assert build_model(f"{source}:finished", {}).in_features == 5


def test_a_module_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "nets_of_this_folder.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert isinstance(build_model("nets_of_this_folder:build", {}), nn.Sequential)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("broken", {}, "failed when it was called: RuntimeError: the disk of weights; -v shows where"),
        ("build", {"size": 3}, "failed when it was called: TypeError"),
        ("leaving", {}, "failed when it was called: SystemExit: 3"),
        ("wrong", {}, "gives 'dict' instead of a torch.nn.Module"),
        ("number", {}, "is 'int': name a function or a class"),
        ("finished", {"a": 1}, "is a finished module, which takes no --model-arg"),
        ("biuld", {}, "did you mean build?"),
    ],
)
def test_what_is_no_model_is_refused(source, name, arguments, said):
    with pytest.raises(UsageError) as caught:
        build_model(f"{source}:{name}", arguments)
    assert said in str(caught.value)
    assert "--model" in str(caught.value)


def test_the_cause_is_kept_for_whoever_wants_to_see_it(source):
    with pytest.raises(UsageError) as caught:
        build_model(f"{source}:broken", {})
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(source):
    with pytest.raises(UsageError, match="TorchScript module"):
        build_model(f"{source}:scripted", {})
    with pytest.raises(UsageError, match="TorchScript archive"):
        build_model("model.pt", {})


def fake(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_timm(monkeypatch):
    def create_model(name, pretrained, **arguments):
        assert not pretrained
        return nn.Linear(len(name), arguments["num_classes"])

    fake(monkeypatch, "timm", create_model=create_model)
    assert build_model("timm:resnet", {"num_classes": 3}).weight.shape == (3, 6)


def test_torchvision(monkeypatch):
    def get_model(name, weights, **arguments):
        assert weights is None
        return nn.Linear(len(name), arguments["num_classes"])

    fake(monkeypatch, "torchvision", models=types.SimpleNamespace(get_model=get_model))
    assert build_model("torchvision:resnet", {"num_classes": 3}).weight.shape == (3, 6)


def test_transformers(monkeypatch):
    asked = {}

    class AutoConfig:
        @staticmethod
        def from_pretrained(folder, **options):
            asked.update(options)
            return types.SimpleNamespace(architectures=[folder])

    fake(monkeypatch, "transformers", AutoConfig=AutoConfig, Net=lambda _: nn.Linear(1, 1))
    assert isinstance(build_model("hf:Net", {}), nn.Linear)
    assert asked == {"local_files_only": True, "trust_remote_code": False}
    with pytest.raises(UsageError, match="'Foreign', which transformers does not have"):
        build_model("hf:Foreign", {})


@pytest.mark.parametrize(
    ("kind", "library"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")]
)
@pytest.mark.parametrize(
    "error", [ImportError("none"), RuntimeError("operator torchvision::nms does not exist")]
)
def test_libraries_that_do_not_import(monkeypatch, kind, library, error):
    def find_spec(name, *_):
        if name == library:
            raise error
        return None

    monkeypatch.delitem(sys.modules, library, raising=False)
    monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find_spec), *sys.meta_path])
    with pytest.raises(UsageError) as caught:
        build_model(f"{kind}:anything", {})
    assert f"needs {library}" in str(caught.value)
    assert str(error) in str(caught.value)
    assert f"pip install {library}" in str(caught.value)


def test_models_are_as_the_factory_made_them(source):
    torch.manual_seed(0)
    built = build_model(f"{source}:build", {})
    assert built.training
