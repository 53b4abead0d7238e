"""What a file says beside its pixels, and the kinds of pixels that files have."""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from nst_core.images import ImageData, open_image, process_of_file, save_image, with_pixels
from nst_core.images.metadata import Metadata

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3
DEEP = RAMP.astype(np.uint16) * 257
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:title>A town</dc:title></x:xmpmeta>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXCHANGED = SRGB.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
"""sRGB with the primaries of red and blue exchanged: a space of RGB that is surely another."""


def exif(thumbnail: bytes = b"", orientation: int = 6) -> bytes:
    """EXIF data of a camera with GPS, a maker's note and, if given, a thumbnail in the second directory."""
    data = Image.Exif()
    data[ExifTags.Base.Make] = "Camera"
    data[ExifTags.Base.Orientation] = orientation
    inner = data.get_ifd(ExifTags.IFD.Exif)
    inner[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight] = 4000, 3000
    inner[ExifTags.Base.MakerNote] = b"the maker's own"
    data.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    tiff = bytearray(data.tobytes()[6:])
    order = "<" if tiff[:2] == b"II" else ">"
    end = 10 + 12 * struct.unpack_from(order + "H", tiff, 8)[0]
    if thumbnail:
        struct.pack_into(order + "I", tiff, end, len(tiff))
        entries = ((0x0103, 3, 1, 6), (0x0201, 4, 1, len(tiff) + 2 + 36 + 4), (0x0202, 4, 1, len(thumbnail)))
        tiff += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            tiff += struct.pack(order + ("HHIHxx" if kind == 3 else "HHII"), tag, kind, count, value)
        tiff += struct.pack(order + "I", 0) + thumbnail
    return b"Exif\0\0" + bytes(tiff)


def restyled(path: Path, target: Path) -> Image.Image:
    """What `nst stylize` does, with a stylized image that is the content image."""
    opened = open_image(path)
    save_image(with_pixels(opened, opened.pixels), target, quality=100)
    with Image.open(target) as image:
        image.load()
        return image


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_metadata_goes_from_every_format_to_every_format(tmp_path: Path, source: str, suffix: str) -> None:
    path = tmp_path / f"photo.{source}"
    if source == "png":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        Image.fromarray(RAMP).save(path, exif=exif(), dpi=(300, 300), pnginfo=texts)
    elif source == "tif":
        data = Image.Exif()
        data.load(exif())
        data[700] = XMP
        Image.fromarray(RAMP).save(path, exif=data, dpi=(300, 300))
    else:
        Image.fromarray(RAMP).save(path, exif=exif(), dpi=(300, 300), xmp=XMP)
    image = restyled(path, tmp_path / f"stylized.{suffix}")
    assert image.size == (6, 4), "upright: the stored rows are columns"
    tags = image.getexif()
    assert tags.get(ExifTags.Base.Orientation, 1) == 1
    assert tags[ExifTags.Base.Make] == "Camera"
    inner = tags.get_ifd(ExifTags.IFD.Exif)
    assert inner[ExifTags.Base.DateTimeOriginal] == "2020:02:03 04:05:06"
    assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == (6, 4)
    assert inner[ExifTags.Base.MakerNote] == b"the maker's own"
    assert tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert not {256, 257, 258, 259, 262, 273, 277, 278, 279, 700} & set(tags), "how the old file stored its pixels"
    assert b"A town" in bytes(image.info["xmp"])
    if suffix != "webp" and source != "webp":  # which has no resolution
        assert [round(float(value)) for value in image.info["dpi"]] == [300, 300]


def test_a_thumbnail_of_the_old_image_is_left_behind(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(thumbnail, "JPEG")
    path = tmp_path / "photo.jpg"
    Image.fromarray(RAMP).save(path, exif=exif(thumbnail.getvalue()))
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(thumbnail.getvalue())
    restyled(path, tmp_path / "stylized.jpg")
    written = (tmp_path / "stylized.jpg").read_bytes()
    assert thumbnail.getvalue() not in written
    assert b"Camera" in written


def test_a_thumbnail_in_xmp_is_left_behind(tmp_path: Path) -> None:
    xmp = XMP.replace(b"</x:", b"<xmp:Thumbnails><xmpGImg:image>\nOLD</xmpGImg:image></xmp:Thumbnails></x:")
    Image.fromarray(RAMP).save(tmp_path / "photo.jpg", xmp=xmp)
    assert restyled(tmp_path / "photo.jpg", tmp_path / "a.jpg").info["xmp"] == XMP


def test_what_a_jpeg_cannot_hold_is_left_out(tmp_path: Path) -> None:
    """PNG holds any amount, JPEG 64 KiB."""
    data = Image.Exif()
    data.load(exif())
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(100_000)
    opened = ImageData(RAMP, metadata=Metadata(data.tobytes(), XMP + b" " * 100_000, process="by nst"))
    save_image(opened, tmp_path / "a.jpg")
    assert process_of_file(tmp_path / "a.jpg") == "by nst"
    assert (tmp_path / "a.jpg").stat().st_size < 10_000
    save_image(opened, tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").metadata.xmp == opened.metadata.xmp
    assert len(open_image(tmp_path / "a.png").metadata.exif) > 100_000


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_process_is_in_the_file(tmp_path: Path, suffix: str) -> None:
    for metadata in (Metadata(), Metadata(exif=exif())):
        save_image(ImageData(RAMP, metadata=replace(metadata, process="nst, like this")), tmp_path / f"a.{suffix}")
        assert process_of_file(tmp_path / f"a.{suffix}") == "nst, like this"
    save_image(ImageData(RAMP), tmp_path / f"a.{suffix}")
    assert process_of_file(tmp_path / f"a.{suffix}") == ""


def test_files_without_a_process(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    assert process_of_file(tmp_path / "text.jpg") == ""
    assert process_of_file(tmp_path / "none.jpg") == ""


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "damaged", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif()[:60], exif()[:20] + b"\xff" * 60]
)
def test_damaged_metadata_is_no_damaged_image(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(RAMP).save(path, exif=damaged)
    image = restyled(path, tmp_path / "stylized.png")
    assert np.array_equal(np.asarray(image), RAMP)


@pytest.mark.parametrize("dpi", [(0, 0), (-1, 72), (float("inf"), 72), (float("nan"), 72), (1e9, 72), ("a", 72), 72])
def test_resolutions_that_cannot_be(dpi: object) -> None:
    from nst_core.images.metadata import read_metadata

    image = Image.fromarray(RAMP)
    image.info["dpi"] = dpi
    assert read_metadata(image).dpi is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_profile_of_rgb_is_converted_back_to_and_embedded(tmp_path: Path, suffix: str) -> None:
    """The stored levels are those of the photograph again, so the file looks the same in its own space."""
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", icc_profile=EXCHANGED)
    opened = open_image(tmp_path / "photo.png")
    assert np.abs(opened.pixels[0, 0].astype(int) - (50, 100, 200)).max() <= 2
    image = restyled(tmp_path / "photo.png", tmp_path / f"stylized.{suffix}")
    assert image.info["icc_profile"] == EXCHANGED
    assert np.abs(np.asarray(image.convert("RGB"))[8, 8].astype(int) - (200, 100, 50)).max() <= 4
    again = open_image(tmp_path / f"stylized.{suffix}")
    assert np.abs(again.pixels[8, 8].astype(int) - (50, 100, 200)).max() <= 4


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 that leads from a space to Lab or XYZ."""
    pcs = b"Lab " if b"A2B0" in tags else b"XYZ "
    body, table = b"", struct.pack(">I", len(tags))
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02400000, b"prtr", space, pcs, bytes(12), b"acsp")
    illuminant = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return (header + bytes(28) + illuminant).ljust(128, b"\0") + table + body


WHITE = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
TEXT = b"text\0\0\0\0none\0"
LINEAR_GREY = icc(b"GRAY", {b"wtpt": WHITE, b"kTRC": b"curv" + bytes(8), b"cprt": TEXT, b"desc": TEXT})
"""Level 128 is half of the light."""


def inks() -> bytes:
    """A profile of CMYK whose magenta is the red of sRGB: Lab (54, 81, 70) in its table of 2x2x2x2 corners."""
    identity = bytes(range(256))
    corners = b""
    for corner in np.ndindex(2, 2, 2, 2):
        lab = (0, 128, 128) if corner[3] else (255, 128, 128) if not any(corner) else (138, 128 + 81, 128 + 70)
        corners += bytes(lab)
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0\x04\x03\x02\0" + matrix + identity * 4 + corners + identity * 3
    return icc(b"CMYK", {b"wtpt": WHITE, b"A2B0": table, b"cprt": TEXT, b"desc": TEXT})


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_with_a_profile_becomes_srgb_that_says_so(tmp_path: Path, suffix: str) -> None:
    image = Image.new("CMYK", (24, 8), (0, 0, 0, 0))
    image.paste((0, 255, 0, 0), (8, 0, 16, 8))
    image.paste((0, 0, 0, 255), (16, 0, 24, 8))
    image.save(tmp_path / f"photo.{suffix}", icc_profile=inks(), quality=100)
    white, magenta, black = open_image(tmp_path / f"photo.{suffix}").pixels[4, [4, 12, 20]].astype(int)
    assert white.min() >= 250
    assert np.abs(magenta - (255, 0, 0)).max() <= 12, "the profile says what magenta is"
    assert black.max() <= 5
    written = restyled(tmp_path / f"photo.{suffix}", tmp_path / "stylized.png")
    assert written.mode == "RGB"
    profile = ImageCms.ImageCmsProfile(io.BytesIO(written.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_with_a_profile_becomes_srgb_that_says_so(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (8, 8), 128)
    if mode == "LA":
        image.putalpha(100)
    image.save(tmp_path / "photo.png", icc_profile=LINEAR_GREY)
    opened = open_image(tmp_path / "photo.png")
    assert np.abs(opened.pixels.astype(int) - 188).max() <= 1, "half of the light is level 188 of sRGB"
    assert (opened.alpha is None) == (mode == "L")
    written = restyled(tmp_path / "photo.png", tmp_path / "stylized.png")
    assert written.info["icc_profile"] != LINEAR_GREY
    assert np.array_equal(open_image(tmp_path / "stylized.png").pixels, opened.pixels)


def test_a_palette_with_a_profile(tmp_path: Path) -> None:
    Image.fromarray(RAMP).quantize(16).save(tmp_path / "photo.png", icc_profile=EXCHANGED)
    with Image.open(tmp_path / "photo.png") as image:
        stored = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(open_image(tmp_path / "photo.png").pixels - stored[..., ::-1]).max() <= 2


def test_a_broken_profile_is_replaced_by_srgbs(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "photo.png", icc_profile=b"no profile at all")
    image = restyled(tmp_path / "photo.png", tmp_path / "stylized.png")
    assert np.array_equal(np.asarray(image), RAMP)
    assert image.info["icc_profile"][36:40] == b"acsp"


def test_without_a_profile_none_is_embedded(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "photo.png")
    assert "icc_profile" not in restyled(tmp_path / "photo.png", tmp_path / "stylized.png").info


def test_a_profile_and_opacity(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 24, dtype=np.uint8).reshape(6, 4)
    Image.fromarray(np.dstack([RAMP, alpha])).save(tmp_path / "photo.png", icc_profile=EXCHANGED)
    image = restyled(tmp_path / "photo.png", tmp_path / "stylized.webp")
    assert image.info["icc_profile"] == EXCHANGED
    assert np.abs(np.asarray(image)[..., 3].astype(int) - alpha).max() <= 2


def png(pixels: npt.NDArray[np.uint16], color_type: int) -> bytes:
    """A PNG of 16 bits a channel, written by hand since Pillow writes none of colours."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: npt.NDArray[np.uint16], photometric: int, extra: Sequence[int] = (), order: str = "<") -> bytes:
    """A TIFF of 16 bits a channel, in one strip, not compressed; `extra` is the meaning of the last channels."""
    height, width, channels = pixels.shape
    data = pixels.astype(order + "u2").tobytes()
    tags = {256: (width,), 257: (height,), 258: (16,) * channels, 259: (1,), 262: (photometric,)}
    tags |= {277: (channels,), 278: (height,), 279: (len(data),), **({338: tuple(extra)} if extra else {})}
    offset = 8 + 2 + 12 * (len(tags) + 1) + 4
    outside, table = b"", b""
    for tag, values in sorted((tags | {273: (offset + 2 * channels,)}).items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            outside, packed = packed, struct.pack(order + "I", offset)
        table += struct.pack(order + "HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags) + 1)
    return head + table + bytes(4) + outside.ljust(2 * channels, b"\0") + data


ALPHA = np.linspace(0, 65_535, 24).astype(np.uint16).reshape(6, 4, 1)


# Pillow reads no TIFF of grey and opacity of 16 bits.
@pytest.mark.parametrize(
    ("suffix", "channels"),
    [("png", 1), ("png", 2), ("png", 3), ("png", 4)]
    + [(suffix, channels) for suffix in ("tif", "big-endian.tif") for channels in (1, 3, 4)],
)
def test_sixteen_bits_a_channel(tmp_path: Path, suffix: str, channels: int) -> None:
    grey = channels < 3
    colors = DEEP[..., :1] if grey else DEEP
    deep = np.dstack([colors, ALPHA]) if channels in (2, 4) else colors
    path = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        path.write_bytes(png(deep, {1: 0, 2: 4, 3: 2, 4: 6}[channels]))
    else:
        order = ">" if suffix.startswith("big") else "<"
        path.write_bytes(tiff(deep, 1 if grey else 2, (2,) * (channels in (2, 4)), order))
    opened = open_image(path)
    assert np.array_equal(opened.pixels, np.broadcast_to(RAMP[..., :1], RAMP.shape) if grey else RAMP)
    if channels in (2, 4):
        assert opened.alpha is not None
        assert np.abs(opened.alpha[..., None] - ALPHA / 257.0).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_cmyk_of_sixteen_bits(tmp_path: Path, order: str) -> None:
    inked = np.zeros((6, 4, 4), np.uint16)
    inked[..., 1] = inked[..., 2] = 65_535
    (tmp_path / "deep.tif").write_bytes(tiff(inked, 5, order=order))
    red, green, blue = open_image(tmp_path / "deep.tif").pixels[3, 2].tolist()
    assert (red, green, blue) == (255, 0, 0)


def test_cmyk_of_a_jpeg_with_and_without_adobes_marker(tmp_path: Path) -> None:
    """Adobe stores its inks inverted, and so does everybody who stores inks in a JPEG."""
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    data = buffer.getvalue()
    marker = data.index(b"\xff\xee")
    length = int.from_bytes(data[marker + 2 : marker + 4], "big")
    assert data[marker + 4 : marker + 9] == b"Adobe"
    (tmp_path / "adobe.jpg").write_bytes(data)
    (tmp_path / "plain.jpg").write_bytes(data[:marker] + data[marker + 2 + length :])
    for name in ("adobe.jpg", "plain.jpg"):
        assert np.abs(open_image(tmp_path / name).pixels[8, 8].astype(int) - (255, 0, 0)).max() <= 6, name


def test_grey_of_floating_point(tmp_path: Path) -> None:
    levels = np.array([[0.0, 0.5, 1.0], [np.nan, np.inf, -np.inf], [1.5, -1.0, 2.0]], np.float32)
    Image.fromarray(levels).save(tmp_path / "deep.tif")
    expected = [[0, 128, 255], [0, 255, 0], [255, 0, 255]]
    assert open_image(tmp_path / "deep.tif").pixels[..., 0].tolist() == expected


def test_xmp_that_a_png_cannot_hold_is_left_out(tmp_path: Path) -> None:
    """Pillow takes a PNG with so long a text as damaged."""
    opened = replace(ImageData(RAMP), metadata=Metadata(xmp=b"<x>" + b"y" * 2_000_000 + b"</x>"))
    save_image(opened, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert "xmp" not in image.info
    save_image(opened, tmp_path / "a.webp")
    assert open_image(tmp_path / "a.webp").metadata.xmp == opened.metadata.xmp
