"""The optimiser of the feed-forward networks: SOAP (Vyas et al. 2024, *Improving and Stabilizing Shampoo*)."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import SOAP

from nst_trainer.networks import StyledNetwork

NORM_FACTOR = 5.0
"""Learning rate of the normalisations over the convolutions', where there are several styles (dev/LOG.md)."""


class Soap(SOAP):
    """SOAP that goes on where LAPACK finds no eigenvectors: any orthogonal basis will do until the next update."""

    @staticmethod
    def get_orthogonal_matrix(mat: Any) -> list[Any]:
        """The eigenvectors of each of the matrices; the unit vectors for one that has none to be found."""
        try:
            found: list[Any] = SOAP.get_orthogonal_matrix(mat)
            return found
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return [
                torch.eye(len(matrix), device=matrix.device, dtype=matrix.dtype) if len(matrix) else []
                for matrix in mat
            ]

    def get_orthogonal_matrix_qr(self, state: Any, *options: Any, **more: Any) -> list[Any]:
        """The bases brought up to date, or as they are if that fails."""
        try:
            found: list[Any] = super().get_orthogonal_matrix_qr(state, *options, **more)
            return found
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            kept: list[Any] = state["Q"]
            return kept


def soap(network: StyledNetwork, learning_rate: float) -> Soap:
    """SOAP of what is to be learned.

    Deviation: the paper has Adam, which needs more than twice the iterations for the same loss (dev/LOG.md).
    Normalisations learn by Adam still: a style's must not depend on another's. For several styles they take larger
    steps: styles begin alike, and their scales, of about 1, would part slowly at a pace made for convolutions.
    """
    normalisations = {id(values) for norm in network.norms() for values in (norm.weight, norm.bias)}
    learned = [values for values in network.parameters() if values.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [values for values in learned if id(values) not in normalisations], "factor": 1.0},
        {
            "params": [values for values in learned if id(values) in normalisations],
            "factor": 1.0 if network.styles == 1 else NORM_FACTOR,
            "max_precondition_dim": 0,
        },
    ]
    return Soap([group for group in groups if group["params"]], learning_rate, weight_decay=0.0)
