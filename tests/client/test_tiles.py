"""How images are cut and joined; what the network guarantees is tested in tests/export/test_tiles.py."""

import asyncio

import numpy as np
import pytest

from nst_client import AsyncStyleClient, MockTransport, Request, ServiceError, StyleClient
from nst_client.tiles import MAX_KEPT_SIDE_PIXELS, Grid, thumbnail
from nst_core.errors import InputError
from nst_core.images import Pixels

LENGTHS = [16, 100, 207, 208, 209, 231, 500, 777, 1000]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("multiple", [4, 32])
@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_kept_of_the_tiles_is_the_axis_once(length: int, multiple: int) -> None:
    grid = Grid(multiple, 64, 96)
    spans = grid.spans(length)
    assert [span.first for span in spans[1:]] == [span.last for span in spans[:-1]]
    assert (spans[0].first, spans[-1].last) == (0, length)
    for span in spans:
        assert span.start % multiple == 0
        assert 0 <= span.start <= span.first < span.last <= span.stop <= length
        assert span.start == 0 or span.first - span.start >= 64
        assert span.stop == length or span.stop - span.last >= 64


@pytest.mark.parametrize("height", LENGTHS)
def test_a_server_meets_one_size_an_image(height: int) -> None:
    grid, pixels = Grid(8, 56, 96), noise(height, 411)
    tiles = list(grid.tiles(height, 411))
    assert len(tiles) == grid.count(height, 411)
    (shape,) = {tile.cut(pixels).shape for tile in tiles}
    assert all(side % 8 == 0 and side <= 96 + 2 * 56 for side in shape[1:3])


def test_beyond_the_border_a_tile_sees_the_reflection_that_the_network_would_make() -> None:
    pixels = noise(50, 39)
    (tile,) = Grid(8, 56, 96).tiles(50, 39)
    assert np.array_equal(tile.cut(pixels)[0], np.pad(pixels, ((0, 6), (0, 1), (0, 0)), "reflect"))


@pytest.mark.parametrize("size", [(500, 333), (210, 1000), (97, 120)])
def test_tiles_join_to_the_image(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    whole = np.zeros_like(pixels)
    for tile in Grid(4, 56, 96).tiles(*size):
        tile.place(tile.cut(pixels), whole)
    assert np.array_equal(whole, pixels)


def blurred(pixels: Pixels, reach: int) -> Pixels:
    """Each pixel the mean of its row's `reach` neighbours to both sides, as far as there are any."""
    total = np.cumsum(np.pad(pixels.astype(int), ((0, 0), (0, 0), (1, 0), (0, 0))), axis=2)
    at = np.arange(pixels.shape[2])
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(at))
    return ((total[:, :, last] - total[:, :, first]) // (last - first)[:, None]).astype(np.uint8)


def test_a_reach_over_the_overlap_would_show() -> None:
    """The joins are exact as long as no pixel reaches farther than the overlap, and not beyond."""
    pixels = noise(40, 500)[None]
    for reach, seamless in ((56, True), (64, False)):
        whole = np.zeros_like(pixels[0])
        for tile in Grid(4, 56, 96).tiles(40, 500):
            tile.place(blurred(tile.cut(pixels[0]), reach), whole)
        assert np.array_equal(whole, blurred(pixels, reach)[0]) is seamless


def test_tiles_keep_to_the_models_limit() -> None:
    assert Grid.fitting(4, 56, 4096 * 2160) == Grid(4, 56, MAX_KEPT_SIDE_PIXELS)
    assert Grid.fitting(32, 120, 500 * 500) == Grid(32, 128, 224)
    assert Grid.fitting(4, 56, 100 * 100) is None


@pytest.mark.parametrize(
    ("size", "small"), [((4000, 3000), (512, 384)), ((300, 200), (300, 200)), ((5000, 20), (4000, 16))]
)
def test_the_small_copy(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert thumbnail(np.zeros((*size, 3), np.uint8), 16).shape == (*small, 3)


PAIR = {
    "wave": {"max_pixels": "40000", "styles": "calm,rough"},
    "wave_statistics": {"purpose": "statistics"},
    "wave_tiled": {"purpose": "tiled", "multiple": "4", "overlap": "56", "max_pixels": "40000"},
    "small": {"max_pixels": "40000"},
}


class Adding:
    """A pair whose statistics are the mean of the small copy, which is added to each pixel of a tile."""

    def __call__(self, request: Request) -> np.ndarray:
        image = request.inputs["image"]
        if request.output == "statistics":
            return image.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]
        assert image.shape[1] * image.shape[2] <= 40000
        if "statistics" not in request.inputs:
            return image
        (share,) = request.inputs["style_weights"].tolist()
        return image // 2 + np.uint8(request.inputs["statistics"][0, 0] * share[1] / 2)


@pytest.fixture
def transport() -> MockTransport:
    return MockTransport(Adding(), PAIR)


def test_an_image_over_the_models_limit_goes_by_tiles(transport: MockTransport) -> None:
    batch = np.stack([noise(301, 410), 255 - noise(301, 410)])
    progress: list[tuple[int, int]] = []
    with StyleClient(transport=transport) as client:
        assert [style.name for style in client.styles()] == ["calm", "rough", "small"]
        stylized = client.stylize(batch, {"calm": 1, "rough": 3}, on_tile=lambda *counts: progress.append(counts))
        for pixels, result in zip(batch, stylized, strict=True):
            assert np.array_equal(result, pixels // 2 + np.uint8(pixels.mean(dtype=np.float32) * 3 / 2))
    tiles = sum(request.model == "wave_tiled" for request in transport.requests)
    assert progress == [(done, tiles) for done in range(1, tiles + 1)]
    assert tiles == 2 * 3 * 4
    assert not any(request.model == "wave" for request in transport.requests)


def test_tiles_of_an_asynchronous_client(transport: MockTransport) -> None:
    pixels = noise(301, 410)

    async def stylize() -> Pixels:
        async with AsyncStyleClient(transport=transport) as client:
            return await client.stylize(pixels, "calm")

    assert np.array_equal(asyncio.run(stylize()), pixels // 2)


def test_an_image_within_the_limit_goes_by_tiles_on_request(transport: MockTransport) -> None:
    pixels = noise(60, 70)
    client = StyleClient(transport=transport)
    assert np.array_equal(client.stylize_tiled(pixels, "calm"), pixels // 2)
    assert [request.model for request in transport.requests] == ["wave_statistics", "wave_tiled"]


def test_an_error_without_the_pair_says_how_to_get_it(transport: MockTransport) -> None:
    client = StyleClient(transport=transport)
    with pytest.raises(ServiceError, match="nst export --tiled"):
        client.stylize_tiled(noise(60, 70), "small")
    with pytest.raises(InputError, match=r"--max-side 233, or .* nst export --tiled"):
        client.stylize(noise(301, 410), "small")


def test_a_config_of_tiles_that_cannot_be_understood_is_named() -> None:
    """The model stylizes what it takes whole."""
    broken = PAIR | {"wave_tiled": {"purpose": "tiled", "overlap": "56"}}
    client = StyleClient(transport=MockTransport(lambda request: request.inputs["image"], broken))
    (style,) = [style for style in client.styles() if style.name == "calm"]
    assert style.tiles is None
    client.stylize(noise(60, 70), "calm")
    with pytest.raises(ServiceError, match=r"the config of model wave_tiled is invalid \('multiple' is missing\)"):
        client.stylize_tiled(noise(60, 70), "calm")
