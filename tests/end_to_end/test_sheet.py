"""`nst styles --sheet` before real models, without a server."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from nst_client import StyleClient
from nst_client.stylize.cli import styles_app
from nst_client.stylize.contact_sheet import CAPTION_HEIGHT, COLUMNS, GAP, HEIGHT, WIDTH, contact_sheet
from nst_core.images import ImageData, Pixels, fit, open_image, resize, sample_photographs

from .conftest import LIMIT
from .serving import Models


@pytest.fixture(scope="module")
def url(models: Models) -> str:
    return f"local:{models.repository}"


def styles(*options: object) -> Result:
    return CliRunner().invoke(styles_app, [*map(str, options)])


def thumbnail(pixels: Pixels, number: int) -> Pixels:
    left, top = GAP + number % COLUMNS * (WIDTH + GAP), GAP + number // COLUMNS * (HEIGHT + CAPTION_HEIGHT + GAP)
    return pixels[top : top + HEIGHT, left : left + WIDTH]


def test_a_photograph_in_every_style(url: str, tmp_path: Path) -> None:
    content, target = sample_photographs()[3], tmp_path / "new" / "styles.png"
    result = styles("--url", url, "--sheet", target, "--content", content)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["a", "b", "starry"]
    assert result.stderr.endswith(f"{target}  3 styles\n")
    drawn = open_image(target).pixels
    large = fit(open_image(content), 2 * WIDTH, 2 * HEIGHT)
    assert np.array_equal(thumbnail(drawn, 0), resize(large, WIDTH, HEIGHT).pixels)
    small = resize(large, 282, 212)  # the maximum that the model of a and b takes in one pass
    assert 282 * 212 <= LIMIT < 284 * 213
    with StyleClient(url) as client:
        for number, (style, given) in enumerate((("a", small), ("b", small), ("starry", large)), 1):
            stylized = resize(ImageData(client.stylize(given.pixels, style)), WIDTH, HEIGHT).pixels
            assert int(np.abs(thumbnail(drawn, number).astype(int) - stylized).max()) <= 2


def test_the_photograph_that_nobody_gives_ships(url: str, tmp_path: Path) -> None:
    assert styles("--url", url, "--sheet", tmp_path / "styles.jpg").exit_code == 0
    given = fit(open_image(sample_photographs()[1]), WIDTH, HEIGHT).pixels.astype(int)
    assert np.abs(thumbnail(open_image(tmp_path / "styles.jpg").pixels, 0) - given).mean() < 5


def test_names_stand_below_their_images_however_long() -> None:
    grey = np.full((40, 100, 3), 128, np.uint8)
    names = ["a", "a-name-far-too-long-for-its-image", "c"]
    pixels = contact_sheet([(name, grey) for name in names], 2).pixels
    assert pixels.shape == (GAP + 2 * (40 + CAPTION_HEIGHT + GAP), GAP + 2 * (100 + GAP), 3)
    dark = pixels.min(2) < 100
    for number, name in enumerate(names):
        left, top = GAP + number % 2 * (100 + GAP), GAP + number // 2 * (40 + CAPTION_HEIGHT + GAP) + 40
        written = dark[top : top + CAPTION_HEIGHT, left : left + 100]
        assert written.any(), name
        dark[top : top + CAPTION_HEIGHT, left : left + 100] = False
    assert not dark.any()  # nothing beside, above or below


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--content", "cat.jpg"], "--content cat.jpg is only for a contact sheet; add --sheet styles.png"),
        (["--sheet", "styles.bmp"], "styles.bmp: cannot write .bmp"),
        (["--sheet", "styles.png", "--content", "none.jpg"], "none.jpg: no such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = styles("--url", url, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {words}") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
