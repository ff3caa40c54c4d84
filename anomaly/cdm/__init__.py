"""The maths of classification diffusion models: torch only; knows no file and no medicine.

Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation",
NeurIPS 2024, arXiv 2402.10095. Equation numbers in this package are that paper's.
"""
