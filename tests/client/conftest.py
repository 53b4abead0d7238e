from collections.abc import Iterator

import pytest

from .fake_triton import FakeTriton, serving, serving_http


@pytest.fixture(params=["grpc", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Triton that inverts colours, over each protocol."""
    if request.param == "http":
        with serving_http() as url:
            yield url
    else:
        with serving(FakeTriton()) as triton:
            yield triton.url
