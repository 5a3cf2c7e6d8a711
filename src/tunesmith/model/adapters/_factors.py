"""The best low-rank part of a matrix as LoRA's A and B: where PiSSA and LoftQ begin."""

import torch
from torch import Tensor


def factors(matrix: Tensor, r: int, scale: float, niter: int) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r) in fp32 such that scale B A is the best approximation of rank r of the matrix (out, in).

    Both get the square roots of the singular values. niter: rounds of the randomised decomposition (Halko et al., 2009, arXiv
    0909.4061), which takes seconds where the exact one, 0, takes minutes.
    """
    wide = matrix.float()
    if niter:
        u, s, v = torch.svd_lowrank(wide, q=r, niter=niter)
        vh = v.t()
    else:
        u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    root = (s[:r] / scale).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root
