"""The maths of classification diffusion models: torch only; knows no file and no medicine.

Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation",
NeurIPS 2024, arXiv 2402.10095. Equation numbers in this package are that paper's.

Importing it makes this process take numbers below the smallest normal one for zero.
"""

import torch

# Gradients of a saturated network run below the smallest normal number, where some processors
# compute many times slower. Whatever computes with a network imports this package, be it a worker,
# a Ray actor or a test, so it is set here, once; CPU threads that begin later inherit it.
torch.set_flush_denormal(True)
