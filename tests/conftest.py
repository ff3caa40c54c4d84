"""Every test runs on one thread, with deterministic kernels and fixed examples."""

from __future__ import annotations

import os

import hypothesis
import torch

# Tensors are tiny here: a second thread gains nothing, and on a busy machine the two wait for each
# other ten times longer than they compute.
torch.set_num_threads(1)
# Likewise in the commands that tests start: the tests themselves take all processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.use_deterministic_algorithms(True)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
