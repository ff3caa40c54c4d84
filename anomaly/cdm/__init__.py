"""The maths of classification diffusion models: torch only; knows no file and no medicine.

Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation",
NeurIPS 2024, arXiv 2402.10095. Equation numbers in this package are that paper's.
"""

import torch

# Gradients of a network that is far from what it was trained on run below the smallest normal
# number, where some processors compute a hundred times slower. Set here, once: whatever computes
# with a network imports this package, in a worker, a Ray actor or a test, and threads inherit it.
torch.set_flush_denormal(True)
