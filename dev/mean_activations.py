"""Write `nst_trainer/mean_activations.npz`, the mean activation of each filter over photographs and positions.

Usage: python dev/mean_activations.py PHOTOS. Gatys et al. 2015 (section 2) scale the weights so that it is 1.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from nst_core.files import atomic_write
from nst_core.images import fit, open_image
from nst_trainer.images import to_tensor
from nst_trainer.vgg import CONVOLUTIONS, Vgg16
from nst_trainer.weights import MEAN_ACTIVATIONS, vgg16_weights


def main(folder: Path) -> None:
    """Compute the means with equal weight per image and average pooling, as in the paper."""
    vgg = Vgg16(vgg16_weights(), pooling="average")
    rectified = [name.replace("conv", "relu") for name in CONVOLUTIONS]
    files = sorted(folder.glob("*.jpg"))
    sums = dict.fromkeys(CONVOLUTIONS, 0.0)
    with torch.inference_mode():
        for file in files:
            features = vgg(to_tensor(fit(open_image(file), 256, 256)), rectified)
            for name, layer in zip(CONVOLUTIONS, rectified, strict=True):
                sums[name] = sums[name] + features[layer].double().mean(dim=(0, 2, 3))
    means = {name: (sums[name] / len(files)).float().numpy() for name in CONVOLUTIONS}
    for name, mean in means.items():
        floor = 1e-3 * mean.mean()  # avoids huge weights for filters that are hardly ever active
        print(name, f"mean {mean.mean():.4g}, lowest {mean.min():.4g}, {(mean < floor).sum()} below {floor:.4g}")
        means[name] = np.maximum(mean, floor)
    with atomic_write(MEAN_ACTIVATIONS) as beside:
        np.savez(beside, **means)


main(Path(sys.argv[1]))
