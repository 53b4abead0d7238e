"""Keep the content image's colours: the two methods of Gatys et al. 2016, *Preserving Color in Neural
Artistic Style Transfer*.

Images are `[1, 3, H, W]` in [0, 1], in sRGB without linearisation, as in the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nst_core.images import LUMA_WEIGHTS


def luminance(images: Tensor) -> Tensor:
    """Return the grey image, of the same shape."""
    weights = images.new_tensor(LUMA_WEIGHTS).view(1, 3, 1, 1)
    grey: Tensor = (images * weights).sum(dim=1, keepdim=True)
    return grey.expand_as(images).contiguous()


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """Return the style's grey image with the mean and standard deviation of the content's."""
    grey, target = luminance(style), luminance(content)
    matched: Tensor = (grey - grey.mean()) * (target.std() / grey.std().clamp(min=1e-6)) + target.mean()
    return matched


def with_colors_of(content: Tensor, stylized: Tensor) -> Tensor:
    """Combine the luminance of `stylized` with the chrominance of `content`, in [0, 1]."""
    return (content + luminance(stylized) - luminance(content)).clamp(0.0, 1.0)


def match_colors(style: Tensor, content: Tensor) -> Tensor:
    """Return the style image with the mean and covariance of the content's colours, in [0, 1].

    The linear map is the symmetric one of Image Analogies (Hertzmann et al. 2001).
    """
    mean, root = _statistics(content)
    own_mean, own_root = _statistics(style)
    flat = style[0].flatten(1) - own_mean
    matched = root @ torch.linalg.solve(own_root, flat) + mean
    recolored: Tensor = matched.view_as(style[0])[None].clamp(0.0, 1.0)
    return recolored


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colour `[3, 1]` and the square root of the colours' covariance `[3, 3]`."""
    flat = images[0].flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    covariance = torch.cov(flat) + 1e-5 * torch.eye(3, device=flat.device)
    values, vectors = torch.linalg.eigh(covariance)
    return mean, vectors @ torch.diag(values.clamp(min=1e-5).sqrt()) @ vectors.T
