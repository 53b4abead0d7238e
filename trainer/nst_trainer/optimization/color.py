"""The photograph's colours kept: the two ways of Gatys et al. 2016, *Preserving Color in Neural
Artistic Style Transfer*.

Pictures are `[1, 3, H, W]` in [0, 1], sRGB as it is, as in the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Rec. 601: the Y of YIQ."""


def luminance(pictures: Tensor) -> Tensor:
    """The grey picture of the same shape."""
    weights = pictures.new_tensor(LUMA).view(1, 3, 1, 1)
    grey: Tensor = (pictures * weights).sum(dim=1, keepdim=True)
    return grey.expand_as(pictures).contiguous()


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """The style's grey picture with the mean and deviation of the content's."""
    one, other = luminance(style), luminance(content)
    matched: Tensor = (one - one.mean()) * (other.std() / one.std().clamp(min=1e-6)) + other.mean()
    return matched


def with_colors_of(content: Tensor, painted: Tensor) -> Tensor:
    """The luminance of `painted` under the chrominance of `content`, in [0, 1]."""
    return (content + luminance(painted) - luminance(content)).clamp(0.0, 1.0)


def match_colors(style: Tensor, content: Tensor) -> Tensor:
    """The style with the mean and covariance of the content's colours, in [0, 1].

    Of the linear maps that do so, the symmetric one of Image Analogies (Hertzmann et al. 2001).
    """
    mean, root = _statistics(content)
    own_mean, own_root = _statistics(style)
    flat = style[0].flatten(1) - own_mean
    matched = root @ torch.linalg.solve(own_root, flat) + mean
    recolored: Tensor = matched.view_as(style[0])[None].clamp(0.0, 1.0)
    return recolored


def _statistics(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The mean colour `[3, 1]` and the square root of the colours' covariance `[3, 3]`."""
    flat = pictures[0].flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    covariance = torch.cov(flat) + 1e-5 * torch.eye(3, device=flat.device)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors @ torch.diag(values.clamp(min=1e-5).sqrt()) @ vectors.T
