"""The service that `bentoml serve` finds; see main.py."""

import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from runtimes import decode, encode, openvino

BYTES = ContentType("application/octet-stream")


@bentoml.service(workers=1, traffic={"timeout": 300})
class StyleService:
    """Stylizes with the ONNX file `PEER_MODEL`."""

    def __init__(self):
        self._stylize = openvino(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]))

    @bentoml.api(route="/stylize")
    def stylize(self, body: Annotated[bytes, BYTES], /) -> Annotated[bytes, BYTES]:
        """Stylize an image; body and answer are .npy."""
        return encode(self._stylize(decode(body)))
