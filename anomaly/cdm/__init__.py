"""Classification diffusion models in PyTorch only, independent of files and of medicine.

Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation",
NeurIPS 2024, arXiv 2402.10095. Equation numbers in this package are that paper's.

Importing this package makes the process flush denormal numbers to zero.
"""

import torch

# Gradients of a saturated network fall below the smallest normal number, where some processors
# compute many times slower. Everything that runs a network (worker, Ray actor, test) imports this
# package, so it is set here once; CPU threads that start later inherit it.
torch.set_flush_denormal(True)
