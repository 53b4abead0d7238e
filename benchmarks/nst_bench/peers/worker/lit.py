"""LitServe's class, in its own module since LitServe's processes import it."""

from typing import Annotated

import litserve
from fastapi import Body, Response
from runtimes import decode, encode, openvino

Bytes = Annotated[bytes, Body(media_type="application/octet-stream")]


class StyleAPI(litserve.LitAPI):
    """Stylizes with one ONNX file."""

    def __init__(self, model, threads):
        super().__init__(api_path="/stylize")
        self._model, self._threads = model, threads

    def setup(self, device):
        """Load the model in LitServe's process."""
        self._stylize = openvino(self._model, self._threads)

    def decode_request(self, request: Bytes):
        """Return the image in the body."""
        return decode(request)

    def predict(self, pixels):
        """Return the stylized image."""
        return self._stylize(pixels)

    def encode_response(self, stylized):
        """Return the answer with the image."""
        return Response(encode(stylized), media_type="application/octet-stream")
