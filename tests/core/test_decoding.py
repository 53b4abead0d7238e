"""What kinds of files are read, as what, and what is refused with which words."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms, ImageDraw, TiffImagePlugin

from nst_core.errors import ImageError
from nst_core.images import (
    READABLE_SUFFIXES,
    Pixels,
    from_pillow,
    open_image,
    process_of_file,
    sample_photographs,
    save_image,
)

SIZE = (96, 64)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(sample_photographs()[2]) as image:
        return image.resize(SIZE)


def heif(image: Image.Image, **options: object) -> bytes:
    """A HEIC file, by pillow_heif alone: Pillow does not learn the format."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind == "HEIF":
        return heif(image, **options)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(pixels: Pixels, expected: object) -> float:
    """The mean absolute difference; formats that lose something stay below 6 of 255."""
    return float(np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).mean())


def turned() -> bytes:
    data = Image.Exif()
    data[ExifTags.Base.Make] = "Camera"
    data[ExifTags.Base.Orientation] = 6
    return data.tobytes()


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_heic_and_avif_are_turned_once(photo: Image.Image, kind: str) -> None:
    """The box says how the image lies, and the EXIF data beside it say so again."""
    opened = open_image(io.BytesIO(encoded(photo, kind, exif=turned())))
    assert (opened.width, opened.height) == (64, 96)
    assert difference(opened.pixels, np.rot90(np.asarray(photo), -1)) < 6
    assert opened.metadata.kind == kind
    assert b"Camera" in opened.metadata.exif


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_opacity_grey_and_profiles_of_heic_and_avif(photo: Image.Image, kind: str) -> None:
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    opened = open_image(io.BytesIO(encoded(clear, kind)))
    assert opened.alpha is not None
    assert difference(opened.alpha, clear.getchannel("A")) < 6
    grey = open_image(io.BytesIO(encoded(photo.convert("L"), kind)))
    assert difference(grey.pixels, photo.convert("L").convert("RGB")) < 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = open_image(io.BytesIO(encoded(photo, kind, icc_profile=exchanged)))
    assert difference(swapped.pixels, np.asarray(photo)[..., ::-1]) < 6


def test_heic_of_ten_bits(photo: Image.Image) -> None:
    deep = (np.asarray(photo).astype(np.uint16) * 257).tobytes()
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", SIZE, deep).save(buffer, quality=95)
    assert pillow_heif.open_heif(buffer, convert_hdr_to_8bit=False).mode == "RGB;16"
    assert difference(open_image(buffer).pixels, photo) < 6


def test_a_heic_called_jpg_is_read_and_a_stylized_image_keeps_what_it_says(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(heif(photo, exif=turned()))
    assert process_of_file(tmp_path / "a.jpg") == ""
    save_image(open_image(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (64, 96)
        assert image.getexif()[ExifTags.Base.Make] == "Camera"
        assert image.getexif()[ExifTags.Base.Orientation] == 1


def test_limits_of_heic_and_avif_are_checked_on_the_header(photo: Image.Image) -> None:
    for kind in ("HEIF", "AVIF"):
        with pytest.raises(ImageError, match=r"^the image: 96x64 is 0.006144 megapixels, over the limit of 0.006143"):
            open_image(io.BytesIO(encoded(photo, kind)), max_pixels=96 * 64 - 1)


def test_pillow_does_not_learn_heic_for_others(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heif(photo))
    code = (
        "import sys; from pathlib import Path; from PIL import Image; from nst_core.images import open_image\n"
        "assert 'pillow_heif' not in sys.modules\n"
        "open_image(Path(sys.argv[1])); Image.init(); assert 'HEIF' not in Image.OPEN\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.heic")], check=True, timeout=60)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".mpo", ".heic", ".heif", ".hif", ".avif", ".apng"])
def test_suffixes_of_formats_that_are_read(suffix: str) -> None:
    assert suffix in READABLE_SUFFIXES


def test_the_first_image_of_an_mpo(photo: Image.Image) -> None:
    """What stereo cameras and phones with depth write."""
    data = encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(180)], quality=95)
    opened = open_image(io.BytesIO(data))
    assert difference(opened.pixels, photo) < 6
    assert opened.metadata.kind == "JPEG"


# Raw files


def tags(**values: object) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A directory of TIFF's tags by their names."""
    numbers = {"DNGVersion": 50_706, "NewSubfileType": 254, "PhotometricInterpretation": 262}
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in values.items():
        directory[numbers[name]] = value
        if isinstance(value, bytes):
            directory.tagtype[numbers[name]] = 1
    return directory


def directory(entries: dict[int, int], following: int = 0, order: str = "<") -> bytes:
    """One directory of a classic TIFF with numbers of 32 bits."""
    table = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return struct.pack(f"{order}H", len(entries)) + table + struct.pack(f"{order}L", following)


def raw(order: str = "<", sensor: int = 32_803, subfile: int = 1, head: bytes = b"") -> bytes:
    """A thumbnail of 2x2 pixels in the first directory and a sensor's image in a directory below it, as NEF and ARW."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8 + len(head)) + head
    first = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 2, 279: 4, 254: subfile, 330: 0}
    below = len(head) + 2 + 12 * len(first) + 4
    second = {**{tag: value for tag, value in first.items() if tag != 330}, 254: 0, 262: sensor}
    pixels = below + 2 + 12 * len(second) + 4
    first |= {273: pixels, 330: below}
    second |= {273: pixels}
    return head + directory(first, 0, order) + directory(second, 0, order) + b"\0\x50\xa0\xff"


def refused(data: bytes, name: str, folder: Path) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        open_image(folder / name)
    return str(caught.value).removeprefix(f"{folder / name}: ")


WORDS = "which nst does not develop; export it as JPEG or TIFF"


def test_a_dng_is_refused_by_its_content(photo: Image.Image, tmp_path: Path) -> None:
    """Pillow reads it: as its thumbnail."""
    data = encoded(photo, "TIFF", tiffinfo=tags(DNGVersion=b"\1\4\0\0", NewSubfileType=1))
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == SIZE
        with pytest.raises(ImageError, match=r"the image: a raw camera file \(DNG\), which nst"):
            from_pillow(image)
    for name in ("a.dng", "a.tif"):
        assert refused(data, name, tmp_path) == f"a raw camera file (DNG), {WORDS}"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("sensor", [32_803, 34_892])
def test_a_sensors_image_below_the_thumbnail(order: str, sensor: int, tmp_path: Path) -> None:
    assert refused(raw(order, sensor), "a.nef", tmp_path) == f"a raw camera file (NEF), {WORDS}"
    assert refused(raw(order, sensor, subfile=0), "a.tif", tmp_path) == f"a raw camera file, {WORDS}"
    assert refused(raw(order, sensor=1), "a.arw", tmp_path) == f"a raw camera file (ARW), {WORDS}"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (raw(sensor=1, subfile=0, head=b"CR\2\0"), "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(50), "CR3"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(50), "RAF"),
        (b"IIRO\x08\0\0\0" + bytes(50), "ORF"),
        (b"IIU\0\x18\0\0\0" + bytes(50), "RW2"),
    ],
    ids=["CR2", "CR3", "RAF", "ORF", "RW2"],
)
def test_raw_files_that_begin_in_their_own_way(head: bytes, kind: str, tmp_path: Path) -> None:
    assert refused(head, "a.jpg", tmp_path) == f"a raw camera file ({kind}), {WORDS}"


def test_an_unknown_file_with_the_name_of_a_raw_file(tmp_path: Path) -> None:
    assert refused(b"what no one knows", "a.IIQ", tmp_path) == f"a raw camera file (IIQ), {WORDS}"
    assert "not an image in a supported format" in refused(b"what no one knows", "a.jpg", tmp_path)


def test_ordinary_tiffs_are_read(photo: Image.Image, tmp_path: Path) -> None:
    small = photo.resize((16, 8))
    files = {
        "pages": encoded(photo, "TIFF", save_all=True, append_images=[photo.rotate(180)]),
        "thumbnail second": encoded(photo, "TIFF", save_all=True, append_images=[small]),
        "called raw": encoded(photo, "TIFF"),
        "big": encoded(photo, "TIFF", big_tiff=True),
        "deflate": encoded(photo, "TIFF", compression="tiff_adobe_deflate"),
        "inks": encoded(photo.convert("CMYK"), "TIFF"),
    }
    for name, data in files.items():
        (tmp_path / "a.dng").write_bytes(data)
        assert difference(open_image(tmp_path / "a.dng").pixels, photo) < 6, name


def test_a_thumbnail_in_the_first_page_is_not_the_image(photo: Image.Image) -> None:
    small = photo.resize((16, 8))
    data = encoded(small, "TIFF", tiffinfo=tags(NewSubfileType=1), save_all=True, append_images=[photo])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (16, 8)
    if struct.pack("<HHLL", 254, 4, 1, 1) in data[200:]:  # Pillow gives every page the same tags
        data = data[:200] + data[200:].replace(struct.pack("<HHLL", 254, 4, 1, 1), struct.pack("<HHLL", 254, 4, 1, 0))
    assert open_image(io.BytesIO(data)).width == 96


def test_a_tiff_whose_pixels_are_not_read_says_what_they_are(tmp_path: Path) -> None:
    head = b"II*\0" + struct.pack("<L", 8)
    entries = {256: 2, 257: 1, 258: 32, 259: 1, 262: 2, 277: 3, 278: 1, 279: 24, 339: 3}
    data = head + directory({**entries, 273: 8 + 2 + 12 * 10 + 4}) + np.ones(6, "<f4").tobytes()
    assert refused(data, "a.tif", tmp_path) == (
        "a damaged or unsupported TIFF (channels: 3, bits per channel: 32, floating point); "
        "save it as RGB with 8 or 16 bits per channel"
    )


def test_directories_that_lead_in_circles_end() -> None:
    head = b"II*\0" + struct.pack("<L", 8)
    circle = head + directory({254: 1, 330: 8}, following=8)
    with pytest.raises(ImageError, match="raw camera file"):
        open_image(io.BytesIO(circle))
    with pytest.raises(ImageError, match="damaged or unsupported TIFF"):
        open_image(io.BytesIO(head + directory({256: 1}, following=8)))
    for data in (head, head + b"\xff\xff", b"II+\0" + b"\xff" * 60, b"MM\0*\xff\xff\xff\xff"):
        with pytest.raises(ImageError, match="damaged"):
            open_image(io.BytesIO(data))


# Pixels of unusual depth


@pytest.mark.parametrize("white", [1, 255, 65_535])
@pytest.mark.parametrize("depth", [np.float32, np.int32])
def test_the_white_of_32_bits_is_found_by_the_values(white: int, depth: type, tmp_path: Path) -> None:
    ramp = np.linspace(0, white, 256).reshape(16, 16)
    levels = ramp.round().astype(depth) if depth is np.int32 else ramp.astype(depth)
    Image.fromarray(levels).save(tmp_path / "a.tif")
    pixels = open_image(tmp_path / "a.tif").pixels
    expected = (levels.astype(float) * 255 / white + 0.5).astype(np.uint8)
    assert np.abs(pixels[..., 0].astype(int) - expected).max() <= 1
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)


def test_an_overshoot_of_floating_point_is_clipped() -> None:
    levels = np.array([[0, 0.5, 1, 1.4]], np.float32)
    assert from_pillow(Image.fromarray(levels)).pixels[0, :, 0].tolist() == [0, 128, 255, 255]
    assert from_pillow(Image.fromarray(levels * 255)).pixels[0, :, 0].tolist() == [0, 128, 255, 255]
    assert from_pillow(Image.fromarray(levels * np.nan)).pixels.max() == 0


@pytest.mark.parametrize("depth", [np.float32, np.int32])
def test_values_without_a_known_white_are_refused(depth: type) -> None:
    with pytest.raises(ImageError, match=r"^the image: its values go up to 1e\+06, so its white is unknown"):
        from_pillow(Image.fromarray(np.array([[0, 1_000_000]], depth)))


# Images of Pillow's


def kinds(photo: Image.Image) -> dict[str, tuple[Image.Image, str, dict[str, object]]]:
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    drawn = Image.new("P", SIZE)
    drawn.putpalette([200, 30, 10, 0, 90, 255])
    ImageDraw.Draw(drawn).rectangle((10, 10, 40, 40), 1)
    grey = np.asarray(photo.convert("L"))
    return {
        "plain": (photo, "PNG", {}),
        "turned jpeg": (photo, "JPEG", {"exif": turned(), "dpi": (300, 300)}),
        "turned png": (photo, "PNG", {"exif": turned()}),
        "turned tiff": (photo, "TIFF", {"exif": turned()}),
        "turned avif": (photo, "AVIF", {"exif": turned()}),
        "opacity": (clear, "WEBP", {"lossless": True}),
        "palette": (drawn, "GIF", {"transparency": 1}),
        "profile": (photo, "PNG", {"icc_profile": exchanged}),
        "inks": (photo.convert("CMYK"), "JPEG", {}),
        "16 bits": (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        "floats": (Image.fromarray(grey.astype(np.float32)), "TIFF", {}),
        "black and white": (photo.convert("1"), "PNG", {}),
    }


def test_lab_is_read_by_its_colours(photo: Image.Image) -> None:
    """What Photoshop writes into TIFFs."""
    convert = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(photo, convert)
    assert lab is not None
    assert difference(from_pillow(lab).pixels, photo) < 2
    assert difference(open_image(io.BytesIO(encoded(lab, "TIFF"))).pixels, photo) < 2


@pytest.mark.parametrize("loaded", [False, True])
def test_image_of_is_what_open_image_reads(photo: Image.Image, loaded: bool) -> None:
    for name, (source, kind, options) in kinds(photo).items():
        data = encoded(source, kind, **options)
        expected = open_image(io.BytesIO(data))
        with Image.open(io.BytesIO(data)) as image:
            if loaded:
                image.load()
            opened = from_pillow(image)
            size, mode = image.size, image.mode
            again = from_pillow(image)
            assert (image.size, image.mode) == (size, mode), f"{name}: the image was changed"
        for result in (opened, again):
            assert np.array_equal(result.pixels, expected.pixels), name
            assert (result.alpha is None) == (expected.alpha is None), name
            assert result.alpha is None or np.array_equal(result.alpha, expected.alpha), name
            assert result.metadata == expected.metadata, name


def test_image_of_an_image_that_cannot_be_decoded(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG")
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as image,
        pytest.raises(ImageError, match=r"^the image: damaged or unreadable"),
    ):
        from_pillow(image)
