"""What several tests read: folders that ranks saved together, which take seconds to make."""

import pathlib
import subprocess
import sys

import pytest
import torch.distributed

SAVING = pathlib.Path(__file__).with_name("dcp_saving.py")


@pytest.fixture(scope="session")
def saved_by_ranks(tmp_path_factory):
    """The folder in which dcp_saving.py has saved everything."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    pytest.importorskip("numpy")  # torch needs it to save what is sharded
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run([sys.executable, SAVING, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
