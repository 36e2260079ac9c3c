"""Settings of all tests."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch

# The work is small; threads that wait for each other on a busy machine make it many times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
    """The folder with real data, where there is one."""
    folder = os.environ.get("JEPA_MONITOR_DATA")
    if not folder:
        pytest.skip("needs real data: set JEPA_MONITOR_DATA to their folder")
    return pathlib.Path(folder)
