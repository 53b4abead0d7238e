"""Serve one peer over HTTP, in the peers' environment, where nst is not installed.

Usage: main.py versions PACKAGE... | main.py PEER MODEL.onnx THREADS PORT

`POST /stylize` takes and returns an image as .npy, `uint8 [H, W, 3]`. For a library, the header `Seconds` has the time
from an image in memory to an image in memory, measured in this process.
"""

import json
import os
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path


def versions(names):
    """Return the versions of the installed packages among `names`."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def serve_library(stylize, port):
    """Serve a function that stylizes, with Python's own HTTP server."""
    from runtimes import decode, encode

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            pixels = decode(self.rfile.read(int(self.headers["Content-Length"])))
            started = time.perf_counter()
            stylized = stylize(pixels)
            seconds = time.perf_counter() - started
            body = encode(stylized)
            self.send_response(200)
            self.send_header("Seconds", str(seconds))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Log errors only."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def serve_fastapi(model, threads, port):
    """Serve a minimal FastAPI app."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from runtimes import decode, encode, openvino

    app, stylize = FastAPI(), openvino(model, threads)

    @app.post("/stylize")
    async def answer(request: Request):
        body = await request.body()
        stylized = await run_in_threadpool(lambda: encode(stylize(decode(body))))
        return Response(stylized, media_type="application/octet-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_litserve(model, threads, port):
    """Serve with LitServe and one worker."""
    import litserve
    from lit import StyleAPI

    server = litserve.LitServer(StyleAPI(model, threads), accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def serve_bentoml(model, threads, port):
    """Replace this process with BentoML's command."""
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "PEER_MODEL": model, "PEER_THREADS": str(threads), "BENTOML_DO_NOT_TRACK": "True"}
    command = ["-m", "bentoml", "serve", "bento:StyleService", "--working-dir", here, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *command, "--host", "127.0.0.1"], environment)


SERVERS = {"fastapi": serve_fastapi, "litserve": serve_litserve, "bentoml": serve_bentoml}


def main(arguments):
    """Run as described in the module's docstring."""
    if arguments[0] == "versions":
        print(json.dumps(versions(arguments[1:])))
        return
    peer, model, threads, port = arguments
    if peer in SERVERS:
        SERVERS[peer](model, int(threads), int(port))
    else:
        from runtimes import RUNTIMES

        serve_library(RUNTIMES[peer](model, int(threads)), int(port))


if __name__ == "__main__":
    main(sys.argv[1:])
