"""Every test runs on one thread, with deterministic kernels and fixed examples."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Tensors are tiny here: a second thread gains nothing, and on a busy machine the two wait for each
# other ten times longer than they compute.
torch.set_num_threads(1)
# Likewise in the commands that tests start: the tests themselves take all processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# cuBLAS is deterministic with workspaces of a fixed size alone, stated before it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# As `use_deterministic_algorithms`, which also imports PyTorch's compiler: seconds in each process.
torch.set_deterministic_debug_mode("error")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

WORKERS_AT_MOST = 16
"""Each imports every library: half a gigabyte and ten seconds of a processor."""

LONGEST = (
    "pipelines/test_node.py",
    "pipelines/test_road.py",
    "pacs/test_listener.py",
    "pipelines/test_score.py",
    "pipelines/test_settings_obeyed.py",
    "pipelines/test_bit_rot.py",
    "pipelines/test_no_traceback.py",
    "pipelines/test_full_disk.py",
    "pipelines/test_benchmark.py",
    "pacs/test_faults.py",
    "test_training.py",
    "test_extending.py",
    "reporting/test_html_accessibility.py",
    "pacs/test_dimse.py",
    "reporting/test_html_studies.py",
    "pacs/test_round_trip.py",
)
"""Files that take longest: they are begun first, so that no worker is left with one at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than processors: a third of the time of tests is waiting."""
    return min(len(os.sched_getaffinity(0)) + 1, WORKERS_AT_MOST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where the tests that take a `device` compute: cpu (default) or cuda",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            "--device is cuda: PyTorch finds no CUDA device here. Run with --device cpu, or where "
            "there is one with a build of PyTorch for it"
        )


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Return where a test computes; what it compares with is computed on the CPU."""
    return torch.device(pytestconfig.getoption("--device"))
