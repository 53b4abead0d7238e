"""Images in the bodies of requests and answers: .npy files, `uint8 [H, W, 3]`."""

import io

import numpy as np


def decode(body):
    """The image in a request's body."""
    return np.load(io.BytesIO(body), allow_pickle=False)


def encode(pixels):
    """The body of an answer."""
    body = io.BytesIO()
    np.save(body, pixels)
    return body.getvalue()
