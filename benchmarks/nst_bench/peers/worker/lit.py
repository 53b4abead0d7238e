"""LitServe's class, in a module of its own since LitServe starts further processes that import it."""

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
        """Load the model, in LitServe's own process."""
        self._stylize = openvino(self._model, self._threads)

    def decode_request(self, request: Bytes):
        """The image in the body."""
        return decode(request)

    def predict(self, pixels):
        """The stylized image."""
        return self._stylize(pixels)

    def encode_response(self, stylized):
        """The answer with the image."""
        return Response(encode(stylized), media_type="application/octet-stream")
