"""The service that `bentoml serve` finds; see main.py."""

import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from runtimes import decode, encode, openvino

BYTES = ContentType("application/octet-stream")


@bentoml.service(workers=1, traffic={"timeout": 300})
class StyleService:
    """Stylizes with the ONNX file that the environment names."""

    def __init__(self):
        self._stylize = openvino(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]))

    @bentoml.api(route="/stylize")
    def stylize(self, body: Annotated[bytes, BYTES], /) -> Annotated[bytes, BYTES]:
        """An image as .npy to an image as .npy."""
        return encode(self._stylize(decode(body)))
