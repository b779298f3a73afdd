"""`swatool.schemes`: the public place of the schemes, which is free of torch."""

import subprocess
import sys

import pytest

from swatool import schemes, swa_utils
from swatool.averaging import schemes as home


def test_every_scheme_is_there():
    classes = {*home.SCHEMES.values(), *home.ONLINE_SCHEMES.values()}
    assert {cls.__name__ for cls in classes} <= set(schemes.__all__)
    assert all(getattr(schemes, name) is getattr(home, name) for name in schemes.__all__)
    assert len(set(schemes.__all__)) == len(schemes.__all__)


@pytest.mark.parametrize("name", ["CrowsonEma", *(cls.__name__ for cls in home.ONLINE_SCHEMES.values())])
def test_what_training_can_use_is_in_swa_utils_too(name):
    assert name in swa_utils.__all__
    assert getattr(swa_utils, name) is getattr(schemes, name)


def test_importing_it_does_not_import_torch():
    code = "import sys, swatool.schemes; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
