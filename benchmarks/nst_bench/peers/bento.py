"""The service that `bentoml serve` finds; see worker.py."""

import os
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from worker import openvino, packed, unpacked

BYTES = ContentType("application/octet-stream")


@bentoml.service(workers=1, traffic={"timeout": 300})
class Painter:
    """Paints with the file that the environment names."""

    def __init__(self):
        self._paint = openvino(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]))

    @bentoml.api(route="/paint")
    def paint(self, body: Annotated[bytes, BYTES], /) -> Annotated[bytes, BYTES]:
        """A picture as .npy to a picture as .npy."""
        return packed(self._paint(unpacked(body)))
