"""LitServe's class, in a module of its own since its workers are other processes; see worker.py."""

from typing import Annotated

import litserve
from fastapi import Body, Response
from worker import openvino, packed, unpacked

Bytes = Annotated[bytes, Body(media_type="application/octet-stream")]


class Painter(litserve.LitAPI):
    """Paints with one file."""

    def __init__(self, model, threads):
        super().__init__(api_path="/paint")
        self._given = model, threads

    def setup(self, device):
        """In the worker."""
        self._paint = openvino(*self._given)

    def decode_request(self, request: Bytes):
        """The body to a picture."""
        return unpacked(request)

    def predict(self, pixels):
        """One picture."""
        return self._paint(pixels)

    def encode_response(self, painted):
        """A picture to the body."""
        return Response(packed(painted), media_type="application/octet-stream")
