"""How tables, plots and comparisons name what documents say.

The texts in a document are part of its contract, since rows are told apart by them; what a reader sees is not.
"""

from __future__ import annotations

import re

SHOWN = {
    # speedup, latency
    "in the process": "in-process",
    "in the process (local:)": "in-process (local:)",
    "in the process, load and first image": "in-process, load the model and stylize a first image",
    "Triton, from start to ready": "Triton, start to ready",
    "Gatys, load the loss network's weights": "Gatys, load the VGG-16 weights",
    "first of a shape": "first request of a shape",
    # serving, energy, soak
    "bare session": "in-process session",
    "each caller another size": "one size per client",
    "each caller changes sizes": "changing sizes per client",
    "the network, without a server": "in-process",
    "callers": "clients",
    "stubs": "model processes",
    # cold
    "nst-serve, from its start to ready": "nst serve, start to ready",
    "the server loads the model and warms it up": "server loads and warms up the model",
    "a session in the process, without a server": "in-process session, load the model",
    "first image of a shape": "first request of a shape",
    "the same shape again": "later request of the same shape",
    # peers, methods
    "in a process": "in-process",
    "nst, the bare session": "nst, in-process session",
    "OpenVINO as it comes": "OpenVINO, default precision",
    "a network of its authors, 26 styles": "its own network, 26 styles",
    "Johnson et al. 2016, rearranged for CPUs": "Johnson et al. 2016, fast variant",
    # styles, export
    "a model of one style": "single-style model",
    "one of ten styles": "ten-style model, one style",
    "two of ten styles, interpolated": "ten-style model, two styles interpolated",
    "alone": "in-process",
    "a tile": "one tile",
    "statistics for the tiles": "tile statistics",
    "all for the CPU": "all CPU rewrites",
    "for TensorRT": "TensorRT rewrites",
}
"""Texts of documents, or parts of them between commas, and what is shown instead."""


def shown(text: str) -> str:
    """Return how a text of a document is shown; most are shown as they are."""
    if text in SHOWN:
        return SHOWN[text]
    parts = (SHOWN.get(part, re.sub(r"\b(\d+) caller(s?)\b", r"\1 client\2", part)) for part in text.split(", "))
    return ", ".join(parts).replace("nst-bench ", "nst bench ")
