"""The optimiser of the feed-forward networks: SOAP (Vyas et al. 2024, *Improving and Stabilizing Shampoo*)."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import SOAP

from nst_trainer.networks import StyledNetwork

NORM_FACTOR = 5.0
"""Learning rate of the normalisations relative to the convolutions', for several styles (dev/LOG.md)."""


class Soap(SOAP):
    """SOAP that continues if LAPACK finds no eigenvectors: any orthogonal basis works until the next update."""

    @staticmethod
    def get_orthogonal_matrix(mat: Any) -> list[Any]:
        """Return the eigenvectors of each matrix, or unit vectors where LAPACK finds none."""
        try:
            found: list[Any] = SOAP.get_orthogonal_matrix(mat)
            return found
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return [
                torch.eye(len(matrix), device=matrix.device, dtype=matrix.dtype) if len(matrix) else []
                for matrix in mat
            ]

    def get_orthogonal_matrix_qr(self, state: Any, *options: Any, **more: Any) -> list[Any]:
        """Return the updated bases, or the present ones if the update fails."""
        try:
            found: list[Any] = super().get_orthogonal_matrix_qr(state, *options, **more)
            return found
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            kept: list[Any] = state["Q"]
            return kept


def soap(network: StyledNetwork, learning_rate: float) -> Soap:
    """Create the optimiser of the trainable parameters.

    Deviation: Johnson et al. use Adam, which needs more than twice the iterations for the same loss (dev/LOG.md). The
    normalisations still use Adam, since those of one style must not depend on another's. With several styles they take
    larger steps: all styles start alike, and scales of about 1 would diverge slowly at the convolutions' rate.
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
