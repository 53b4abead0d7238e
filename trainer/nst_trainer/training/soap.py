"""The optimiser of the feed-forward networks: SOAP (Vyas et al. 2024, *Improving and Stabilizing Shampoo using Adam*).

Parameters of one shape are stacked and updated together. A residual network has few shapes, so a step has less than a
third of the operations of an update parameter by parameter (dev/LOG.md), and a GPU waits less for Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nst_trainer.networks import StyledNetwork

BETA = 0.95
"""Decay of the means of gradients, of their squares, and of their products (algorithm 3 of the paper)."""

EPSILON = 1e-8

NORM_FACTOR = 5.0
"""Learning rate of the normalisations relative to the convolutions', for several styles (dev/LOG.md)."""

BASES_EVERY_STEPS = 10
"""Steps between updates of the eigenbases."""


class Soap(torch.optim.Optimizer):
    """SOAP: Adam in the eigenbases of Shampoo's preconditioners, one basis for each axis of a parameter.

    A group with `rotated` False uses plain Adam. The first step learns the bases only and changes no parameter.

    `update` and `update_bases` are the two halves of `step`: `update` reads the learning rate from a tensor and makes
    no decision in Python, so that a CUDA graph can repeat it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
        super().__init__(groups, {"lr": learning_rate, "rotated": True, "step": 0})
        self.lengths = [torch.zeros((), device=group["params"][0].device) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        self.count()
        self.update()
        self.update_bases()

    def count(self) -> None:
        """Begin a step: count it, and write its length for `update`, 0 for the first."""
        for group, length in zip(self.param_groups, self.lengths, strict=True):
            unbiased = 1.0 - BETA ** group["step"]
            length.fill_(group["lr"] / math.sqrt(unbiased) if unbiased else 0.0)
            group["step"] += 1

    @torch.no_grad()
    def update(self) -> None:
        """Move the parameters by the length of this step, and update the statistics of their gradients."""
        for group, length in zip(self.param_groups, self.lengths, strict=True):
            for stack in _stacks(group["params"]):
                self._update_stack(stack, length, rotated=group["rotated"])

    @torch.no_grad()
    def update_bases(self) -> None:
        """Update the eigenbases, if it is time: one power iteration and a QR decomposition (algorithm 4)."""
        for group in self.param_groups:
            done = group["step"] - 1
            if done == 0 or done % BASES_EVERY_STEPS:
                continue
            for state in (self.state[stack[0]] for stack in _stacks(group["params"])):
                for axis, products in enumerate(state["products"]):
                    _update_basis(state["bases"][axis], products, state["squares"], axis + 1)

    def _update_stack(self, stack: list[Tensor], length: Tensor, *, rotated: bool) -> None:
        gradients = torch.stack([values.grad for values in stack])  # type: ignore[misc]
        if gradients.ndim == 5:
            gradients = gradients.flatten(3)  # a kernel's positions are one axis
        state = self.state[stack[0]]
        if not state:
            state["mean"], state["squares"] = torch.zeros_like(gradients), torch.zeros_like(gradients)
            axes = range(1, gradients.ndim) if rotated and gradients.ndim > 2 else ()
            products = [_products(gradients, axis) for axis in axes]
            state["products"] = [(1.0 - BETA) * each for each in products]
            state["bases"] = [eigenbases(each) for each in state["products"]]
            return
        mean, squares, bases = state["mean"], state["squares"], state["bases"]
        mean.lerp_(gradients, 1.0 - BETA)
        gradient_in_bases, mean_in_bases = rotate(torch.stack([gradients, mean]), bases)
        squares.lerp_(gradient_in_bases.square(), 1.0 - BETA)
        change = rotate(mean_in_bases / (squares.sqrt() + EPSILON), [basis.mT for basis in bases])
        change = (change * length).view(len(stack), *stack[0].shape)
        torch._foreach_sub_(stack, list(change.unbind()))
        for axis, products in enumerate(state["products"]):
            products.lerp_(_products(gradients, axis + 1), 1.0 - BETA)


def _stacks(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the parameters that have a gradient, those of one shape together."""
    stacks: dict[torch.Size, list[Tensor]] = {}
    for values in parameters:
        if values.grad is not None:
            stacks.setdefault(values.shape, []).append(values)
    return list(stacks.values())


def _products(gradients: Tensor, axis: int) -> Tensor:
    """Return the products `[N, D, D]` of gradients `[N, ...]` with themselves along an axis of length D."""
    flat = gradients.movedim(axis, 1).flatten(2)
    return flat @ flat.mT


def rotate(values: Tensor, bases: list[Tensor]) -> Tensor:
    """Return `values` `[..., N, D1, D2, ...]` in the `bases` `[N, D1, D1]`, `[N, D2, D2]`, ...; none change nothing."""
    if not bases:
        return values
    first = values.ndim - len(bases)
    for basis in bases:  # each product moves its axis to the end
        shape = values.shape
        turned = values.flatten(first + 1).mT @ basis
        values = turned.view(*shape[:first], *shape[first + 1 :], shape[first])
    return values


def eigenbases(matrices: Tensor) -> Tensor:
    """Return the eigenvectors of symmetric matrices `[N, D, D]`, largest eigenvalue first.

    Where LAPACK finds none it returns unit vectors: any orthogonal basis works until the next update.
    """
    identity = torch.eye(matrices.shape[-1], device=matrices.device, dtype=matrices.dtype)
    try:
        vectors: Tensor = torch.linalg.eigh(matrices + 1e-30 * identity)[1]
        return vectors.flip(-1)  # eigh has the smallest first
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return identity.expand_as(matrices).clone()


def _update_basis(basis: Tensor, products: Tensor, squares: Tensor, axis: int) -> None:
    """Update `basis` `[N, D, D]` in place, and reorder `squares` along `axis` as its vectors."""
    powers = products @ basis
    order = (basis * powers).sum(dim=1).argsort(dim=1, descending=True)  # by estimated eigenvalue
    powers = powers.gather(2, order[:, None, :].expand_as(powers))
    try:
        turned = torch.linalg.qr(powers)[0]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return
    basis.copy_(turned)
    shape = [1] * squares.ndim
    shape[0], shape[axis] = order.shape
    squares.copy_(squares.gather(axis, order.view(shape).expand_as(squares)))


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
            "rotated": False,
        },
    ]
    return Soap([group for group in groups if group["params"]], learning_rate)
