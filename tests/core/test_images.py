import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from nst_core.errors import ImageError, InputError, WriteError
from nst_core.images import (
    ImageData,
    blend,
    check_size,
    encode_image,
    find_images,
    fit,
    keep_colors,
    open_image,
    sample_photographs,
    save_image,
    side_by_side,
    unreadable_images,
    unreadable_summary,
)
from nst_trainer.images import to_image, to_tensor
from nst_trainer.optimization import color

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    opened = open_image(saved(tmp_path, Image.fromarray(RAMP)))
    assert np.array_equal(opened.pixels, RAMP)
    assert opened.alpha is None
    assert (opened.height, opened.width) == (6, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RAMP), exif=exif.tobytes())
    # What the standard says of each value, as numpy operations on the stored rows.
    upright = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, -1),
        7: RAMP.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(RAMP),
    }[orientation]
    assert np.array_equal(open_image(path).pixels, upright)


def test_alpha_is_kept_beside_the_pixels_and_saved_again(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 24, dtype=np.uint8).reshape(6, 4)
    opened = open_image(saved(tmp_path, Image.fromarray(np.dstack([RAMP, alpha]))))
    assert opened.alpha is not None
    assert np.array_equal(opened.alpha, alpha)
    save_image(opened, tmp_path / "again.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), np.dstack([RAMP, alpha]))


def test_full_opacity_is_no_alpha(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP).convert("RGBA"))
    assert open_image(path).alpha is None


def test_transparent_pixels_become_white_in_jpeg(tmp_path: Path) -> None:
    opened = ImageData(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    save_image(opened, tmp_path / "a.jpg")
    assert np.asarray(Image.open(tmp_path / "a.jpg")).min() >= 250


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    pixels = open_image(saved(tmp_path, Image.fromarray(RAMP[..., 0]))).pixels
    assert np.array_equal(pixels, np.repeat(RAMP[..., :1], 3, axis=2))


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    deep = (RAMP[..., 0].astype(np.uint16) * 257) + 100
    pixels = open_image(saved(tmp_path, Image.fromarray(deep))).pixels
    assert np.array_equal(pixels[..., 0], RAMP[..., 0])


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    """A 16-bit RGB PNG, written by hand since Pillow writes none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    deep = RAMP.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 4, 6, 16, 2, 0, 0, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.array_equal(open_image(path).pixels, RAMP)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    opened = open_image(saved(tmp_path, image, "a.gif", transparency=0))
    assert opened.alpha is not None
    assert opened.alpha[0, 0] == 0
    assert opened.alpha[1, 1] == 255
    assert opened.pixels[1, 1].tolist() == [0, 255, 0]


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg")
    red, green, blue = open_image(path).pixels[8, 8].tolist()
    assert red > 240
    assert green < 20
    assert blue < 20


def test_a_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """sRGB's own profile with the primaries of red and blue exchanged exchanges red and blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    path = saved(tmp_path, Image.fromarray(RAMP), icc_profile=exchanged)
    difference = open_image(path).pixels.astype(int) - RAMP[..., ::-1]
    assert np.abs(difference).max() <= 2


def test_a_broken_profile_is_ignored(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP), icc_profile=b"no profile at all")
    assert np.array_equal(open_image(path).pixels, RAMP)


def test_max_side_shrinks_and_never_enlarges(photographs: dict[str, Path]) -> None:
    opened = open_image(photographs["rocket"], max_side=320)
    assert (opened.width, opened.height) == (320, 214)
    assert open_image(photographs["rocket"], max_side=4000).width == 640


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("this is no photograph")
    for path, words in (
        (text, "not an image"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ImageError, match=words):
            open_image(path)


def test_a_truncated_jpeg_is_refused(tmp_path: Path, photographs: dict[str, Path]) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(photographs["coffee"].read_bytes()[:40_000])
    with pytest.raises(ImageError, match="damaged"):
        open_image(path)


@pytest.mark.parametrize("side", [10_000, 14_000])  # below and above where Pillow itself refuses
def test_a_bomb_is_refused_on_its_header(tmp_path: Path, side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    path = tmp_path / "bomb.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ImageError, match=r"megapixels, over the limit of 64; .*--max-pixels"):
        open_image(path)
    assert open_image(path, max_pixels=side * side, max_side=16).width == 16


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    save_image(ImageData(RAMP), target)
    with pytest.raises(ValueError, match="match"):
        save_image(ImageData(RAMP, np.zeros((9, 9), np.uint8)), target)
    assert np.array_equal(open_image(target).pixels, RAMP)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("no folder")
    for target in (tmp_path / "a.png", tmp_path / "file" / "b.png"):
        with pytest.raises(WriteError, match=f"cannot write {target}: "):
            save_image(ImageData(RAMP), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / f"{'n' * 251}.png"
    save_image(ImageData(RAMP), target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.jpeg, \.jpg, \.png, \.webp"):
        save_image(ImageData(RAMP), tmp_path / "a.xyz")


def test_blended_goes_from_the_photograph_to_the_stylized_image() -> None:
    content, stylized = RAMP, 255 - RAMP[::-1]
    assert np.array_equal(blend(content, stylized, 0.0), content)
    assert np.array_equal(blend(content, stylized, 1.0), stylized)
    exact = 0.75 * content.astype(float) + 0.25 * stylized
    assert np.abs(blend(content, stylized, 0.25) - exact).max() <= 0.5


def test_the_colours_of_the_photograph_are_those_of_the_optimisation(photographs: dict[str, Path]) -> None:
    """Level by level what `nst optimize --preserve-color` computes; larger than a band of rows."""
    content = fit(open_image(photographs["coffee"]), 400, 600).pixels
    stylized = fit(open_image(photographs["chelsea"]), 400, 600).pixels
    result = keep_colors(content, stylized)
    tensors = [to_tensor(ImageData(pixels)) for pixels in (content, stylized)]
    assert np.abs(result.astype(int) - to_image(color.with_colors_of(*tensors)).pixels).max() <= 1
    # Luma is the stylized image's and chroma the content image's, where nothing was clipped.
    inside = ((result > 0) & (result < 255)).all(axis=2)
    luma = [pixels.astype(float) @ [0.299, 0.587, 0.114] for pixels in (result, stylized)]
    assert np.abs(luma[0] - luma[1])[inside].max() <= 0.6
    assert inside.mean() > 0.3
    assert np.array_equal(keep_colors(content, content), content)


def test_fitted_covers_without_distortion() -> None:
    opened = ImageData(np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2))
    middle = fit(opened, 50, 50).pixels
    assert middle.shape == (50, 50, 3)
    assert np.array_equal(middle[0, :, 0], np.arange(25, 75))


def test_side_by_side_has_a_white_gap() -> None:
    row = side_by_side([RAMP, RAMP], gap=2)
    assert row.shape == (6, 10, 3)
    assert (row[:, 4:6] == 255).all()


def test_find_images_goes_into_subfolders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    saved(tmp_path / "deep" / "er", Image.fromarray(RAMP), "b.PNG")
    saved(tmp_path / "deep", Image.fromarray(RAMP), ".hidden.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert [path.name for path in find_images(tmp_path)] == ["b.PNG"]
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError, match="no images"):
        (tmp_path / "empty").mkdir()
        find_images(tmp_path / "empty")


def test_find_images_follows_linked_folders_once(tmp_path: Path) -> None:
    """Each folder where it is itself, if it is below the folder, and no circle."""
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for place in (folder / "b", elsewhere / "deep"):
        place.mkdir(parents=True)
        saved(place, Image.fromarray(RAMP), "x.jpg")
    (folder / "a").symlink_to(folder / "b")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "b" / "out").symlink_to(tmp_path)
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (folder / "twice").symlink_to(elsewhere / "deep")
    (folder / "gone").symlink_to(tmp_path / "none")
    (folder / "file.jpg").symlink_to(folder / "b" / "x.jpg")
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["b/x.jpg", "file.jpg", "linked/deep/x.jpg"]
    (tmp_path / "all").symlink_to(folder)
    assert len(find_images(tmp_path / "all")) == 3


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    saved(tmp_path, Image.fromarray(RAMP), "x.jpg")
    scandir = os.scandir

    def refused(path: str) -> object:
        if path.endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"^cannot list the folder .*secret: Permission denied$"):
        find_images(tmp_path)


def test_images_that_are_not_read_are_found_and_counted(tmp_path: Path) -> None:
    for name in ("a.DNG", "deep/b.dng", "c.jxl", "notes.txt", ".hidden.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    unread = unreadable_images(tmp_path)
    assert [path.name for path in unread] == ["a.DNG", "c.jxl", "b.dng"]
    assert unreadable_summary(unread) == "3 files were not read: 2 .dng, 1 .jxl"
    assert unreadable_summary(unread[:1]) == "1 file was not read: 1 .dng"
    assert unreadable_summary([]) == ""
    with pytest.raises(InputError, match=r"no images found; 3 files were not read: 2 \.dng, 1 \.jxl$"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("width", "height", "kind", "words"),
    [
        (16_384, 1, "WEBP", "16384x1 is more than a WebP file can hold (16,383 pixels per side); write .png"),
        (1, 65_501, "JPEG", "1x65501 is more than a JPEG file can hold (65,500 pixels per side); write .png"),
    ],
)
def test_an_image_that_its_format_cannot_hold(
    width: int, height: int, kind: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = ImageData(np.zeros((height, width, 3), np.uint8))
    for refused in (lambda: check_size(width, height, kind), lambda: encode_image(opened, kind)):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == words
    assert capfd.readouterr() == ("", ""), "libjpeg must not write to stderr"
    held = ImageData(opened.pixels[:65_500, :16_383])
    assert open_image(io.BytesIO(encode_image(held, kind))).pixels.shape == held.pixels.shape
    assert open_image(io.BytesIO(encode_image(opened, "PNG"))).width == width


def test_what_an_encoder_raises_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^cannot encode 4x6 as WEBP: "):
        encode_image(ImageData(RAMP), "WEBP", quality="best")  # type: ignore[arg-type]


def test_the_sample_photographs_are_there() -> None:
    assert [path.name for path in sample_photographs()] == [
        "astronaut.jpg",
        "chelsea.jpg",
        "coffee.jpg",
        "rocket.jpg",
    ]
