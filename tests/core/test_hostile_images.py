"""Files that are made to hurt: each is an `ImageError` or an image, soon, and in bounded memory."""

import io
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from nst_core.errors import ImageError
from nst_core.images import (
    ImageData,
    encode_image,
    open_image,
    process_of_file,
    sample_photographs,
    save_image,
)
from nst_core.process import settings_of_a_command


@pytest.fixture(autouse=True)
def as_in_a_command() -> Iterator[None]:
    """What Pillow and libtiff say of a damaged file goes nowhere."""
    with settings_of_a_command():
        yield


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_files() -> dict[str, bytes]:
    """Small files of every format, with every coding that Pillow writes."""
    with Image.open(sample_photographs()[2]) as image:
        photo = image.resize((24, 16))
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = 6
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2020:02:03 04:05:06"
    data.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    metadata = {"exif": data.tobytes(), "icc_profile": profile}
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    palette = photo.quantize(16)
    return {
        "jpeg": encoded(photo, "JPEG", dpi=(300, 300), xmp=b"<x/>", **metadata),
        "jpeg progressive": encoded(photo, "JPEG", progressive=True),
        "jpeg of inks": encoded(photo.convert("CMYK"), "JPEG"),
        "png": encoded(photo, "PNG", **metadata),
        "png palette": encoded(palette, "PNG", transparency=0),
        "png deep": encoded(deep, "PNG"),
        "png opacity": encoded(photo.convert("RGBA"), "PNG"),
        "webp": encoded(photo, "WEBP", **metadata),
        "webp lossless": encoded(photo.convert("RGBA"), "WEBP", lossless=True),
        "gif": encoded(palette, "GIF", transparency=1),
        "gif of two": encoded(palette, "GIF", save_all=True, append_images=[photo.quantize(8).rotate(90)]),
        "bmp": encoded(photo, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "tiff": encoded(photo, "TIFF", **metadata),
        "tiff lzw": encoded(photo, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(photo, "TIFF", compression="jpeg"),
        "tiff of inks": encoded(photo.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
        "tiff fax": encoded(photo.convert("1"), "TIFF", compression="group4"),
        "tiff deep": encoded(deep, "TIFF"),
        "tiff floats": encoded(photo.convert("F"), "TIFF"),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out or doubled, in half of the cases in the header."""
    file = bytearray(data)
    way = chance.random()
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(file) if chance.random() < 0.5 else min(len(file), 200))
        if way < 0.6:
            file[at] = chance.choice((0, 255, 127, 128, chance.randrange(256)))
        elif way < 0.8:
            file[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"))
        elif way < 0.9:
            del file[at : at + chance.randrange(1, 20)]
        else:
            file[at:at] = file[at : at + chance.randrange(1, 40)]
        file = file or bytearray(b"\0")
    return bytes(file)


def test_ten_thousand_mutated_files(capfd: pytest.CaptureFixture[str]) -> None:
    """Each is an image, which can be written again, or an `ImageError` of a line; nothing is printed."""
    chance = random.Random(2016)
    files = list(valid_files().values())
    read = refused = 0
    for number in range(10_000):
        try:
            opened = open_image(io.BytesIO(mutated(files[number % len(files)], chance)), max_pixels=1_000_000)
        except ImageError as error:
            assert str(error).startswith("the image: ")
            assert "\n" not in str(error)
            refused += 1
            continue
        read += 1
        assert opened.pixels.dtype == np.uint8
        assert opened.pixels.shape[2:] == (3,)
        if read % 10 == 0 and opened.pixels.size < 100_000:
            for kind in ("JPEG", "PNG", "WEBP"):
                encode_image(opened, kind)
    assert read > 1000
    assert refused > 1000
    assert capfd.readouterr() == ("", "")


def boxed_files() -> dict[str, bytes]:
    """Small files of the formats whose decoders are whole video decoders."""
    with Image.open(sample_photographs()[2]) as image:
        photo = image.resize((24, 16))
    deep = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", photo.size, (np.asarray(photo).astype(np.uint16) * 257).tobytes()).save(deep)
    files = {"heic deep": deep.getvalue()}
    for name, variant in (("", photo), (" opacity", photo.convert("RGBA")), (" grey", photo.convert("L"))):
        buffer = io.BytesIO()
        pillow_heif.from_pillow(variant).save(buffer)
        files |= {f"heic{name}": buffer.getvalue(), f"avif{name}": encoded(variant, "AVIF")}
    return files


def test_mutated_files_of_video_decoders(tmp_path: Path) -> None:
    """Cut at every twentieth and mutated; in a process of its own, as a decoder could end it."""
    chance = random.Random(2026)
    files = list(boxed_files().values())
    hurt = [file[: len(file) * part // 20] for file in files for part in range(20)]
    hurt += [mutated(files[number % len(files)], chance) for number in range(1000)]
    for number, data in enumerate(hurt):
        (tmp_path / f"{number:04}").write_bytes(data)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from nst_core.errors import ImageError\n"
        "from nst_core.images import open_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: print('read', open_image(path, max_pixels=1_000_000).width)\n"
        "    except ImageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == len(hurt)
    for line, path in zip(lines, sorted(tmp_path.iterdir()), strict=True):
        assert line.startswith(("read ", f"{path}: "))
    cut = lines[: 20 * len(files)]
    assert not [line for line in cut if line.startswith("read ")]
    assert any(line.startswith("read ") for line in lines)


def test_every_valid_file_is_read() -> None:
    for name, data in (valid_files() | boxed_files()).items():
        assert open_image(io.BytesIO(data)).pixels.size == 24 * 16 * 3, name


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "tiff lzw", "tiff jpeg"])
def test_a_file_cut_short_is_refused(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = valid_files()[kind]
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            open_image(io.BytesIO(data[: int(len(data) * share)]))
    assert capfd.readouterr() == ("", ""), "libtiff must not write to stderr"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(extra: bytes, side: int = 4) -> bytes:
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * side) for _ in range(min(side, 4))))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiled_tiff(side: int) -> bytes:
    """64x64 pixels in one tile of `side` x `side`, which are all that the file makes libtiff decode."""
    data = zlib.compress(bytes(3 * side * side), 9)
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 2, 277: 3, 284: 1, 322: side, 323: side, 325: len(data)}
    offset = 8 + 2 + 12 * (len(tags) + 1) + 4
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted({**tags, 324: offset}.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + table + bytes(4) + data


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan stands in it `count` times more."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


BOMB = zlib.compress(bytes(300_000_000), 9)


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files, and a word of why each is refused."""
    gif = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = b"\xff" * 4
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + (16_382).to_bytes(3, "little") * 2
    webp += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    return {
        "png": (png_with(b"", 60_000), "megapixels"),
        "gif": (bytes(gif), "megapixels"),
        "webp": (b"RIFF" + struct.pack("<I", len(webp)) + webp, ""),
        "bmp": (bytes(bmp), "megapixels"),
        "tiff": (tiled_tiff(16_000), "tiles of 16000x16000"),
        "jpeg of many scans": (scans(4000, 2000), "2006 scans"),
        "profile": (png_with(chunk(b"iCCP", b"x\0\0" + BOMB)), "too large"),
        "heic": (heif_that_lies(), "damaged"),
    }


def heif_that_lies() -> bytes:
    """Its header says 64x64 and its stream 6000x6000, which would take 160 MB to decode."""
    buffer = io.BytesIO()
    large = pillow_heif.from_pillow(Image.new("RGB", (6000, 6000), "red"))
    large.save(buffer, quality=1, chroma="420", enc_params={"preset": "ultrafast"})
    return buffer.getvalue().replace(struct.pack(">II", 6000, 6000), struct.pack(">II", 64, 64))


def long_texts() -> dict[str, bytes]:
    """Whole PNGs that Pillow takes as damaged for what stands in their texts."""
    text = b"x\0\0" + zlib.compress(bytes(900_000), 9)
    workflow = b'{"class_type": "KSampler"}' * 60_000
    xmp = b"XML:com.adobe.xmp\0"
    return {
        "tEXt": png_with(chunk(b"tEXt", b"prompt\0" + workflow)),
        "zTXt": png_with(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(workflow))),
        "iTXt": png_with(chunk(b"iTXt", b"parameters\0\0\0\0\0" + workflow)),
        "iTXt expanding": png_with(chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB)),
        "zTXt expanding": png_with(chunk(b"zTXt", b"x\0\0" + BOMB)),
        "xmp": png_with(chunk(b"iTXt", xmp + b"\0\0\0\0" + workflow)),
        "xmp expanding": png_with(chunk(b"iTXt", xmp + b"\1\0\0\0" + BOMB)),
        "xmp damaged": png_with(chunk(b"iTXt", xmp + b"\1\0\0\0" + b"no stream")),
        "xmp often": png_with(chunk(b"iTXt", xmp + b"\0\0\0\0" + workflow[:900_000]) * 80),
        "exif expanding": png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)),
        "many": png_with(chunk(b"zTXt", text) * 200),
        "at the end": png_with(b"").replace(
            chunk(b"IEND", b""), chunk(b"tEXt", b"x\0" + workflow) + chunk(b"IEND", b"")
        ),
    }


def test_a_png_is_read_whatever_its_texts_are(tmp_path: Path) -> None:
    """Image generators write the whole graph into a text."""
    for name, data in long_texts().items():
        (tmp_path / "a.png").write_bytes(data)
        opened = open_image(tmp_path / "a.png")
        assert opened.pixels.shape == (4, 4, 3), name
        save_image(opened, tmp_path / "b.png")
        assert process_of_file(tmp_path / "a.png") == ""
        with Image.open(tmp_path / "b.png") as image:
            image.load()


def test_texts_beside_long_ones_keep_what_is_carried(tmp_path: Path) -> None:
    metadata = Image.Exif()
    metadata[ExifTags.Base.ProcessingSoftware] = "nst"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_000_000)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=texts, exif=metadata)
    opened = open_image(tmp_path / "a.png")
    assert np.array_equal(opened.pixels, pixels)
    assert opened.metadata.xmp == b"<x/>"
    assert process_of_file(tmp_path / "a.png") == opened.metadata.process == "nst"


def test_a_png_that_is_cut_in_its_text_is_damaged() -> None:
    data = long_texts()["tEXt"]
    for end in (40, 60, 1000, len(data) - 40):
        with pytest.raises(ImageError, match=r"damaged|not an image"):
            open_image(io.BytesIO(data[:end]))


def test_bombs_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    """In a process of its own, whose highest use of memory is what a bomb needed."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from nst_core.errors import ImageError\n"
        "from nst_core.images import open_image\n"
        "highest = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "for name in sys.argv[1:]:\n"
        "    before = highest()\n"
        "    try: open_image(Path(name)); print(highest() - before, 'read')\n"
        "    except ImageError as error: print(highest() - before, error)\n"
    )
    texts = {f"text {name}": (data, "read") for name, data in long_texts().items()}
    files = bombs() | texts
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in files)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stderr == ""
    for line, (name, (_, word)) in zip(result.stdout.splitlines(), files.items(), strict=True):
        mebibytes, _, error = line.partition(" ")
        assert word in error, (name, error)
        assert int(mebibytes) < 150, (name, mebibytes)


def test_an_ordinary_progressive_jpeg_is_no_bomb() -> None:
    assert open_image(io.BytesIO(scans(64, 90))).width == 64
    # Behind the image anything may stand: a video, other images.
    assert open_image(io.BytesIO(scans(64, 0) + b"\xff\xda\0\2" * 1000)).width == 64


def test_threads_leave_pillows_settings_as_they_were(
    monkeypatch: pytest.MonkeyPatch, photographs: dict[str, Path]
) -> None:
    """The limit and the filters of warnings are the process's own: threads come and go in any order."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow itself would refuse them all
    filters = list(warnings.filters)
    failures: list[object] = []

    def read(number: int) -> None:
        time.sleep(0.005 * (number % 3))
        try:
            for path in photographs.values():
                open_image(path, max_side=64 * (1 + number % 4))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert warnings.filters == filters


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX"])
def test_what_is_read_is_what_is_listed(kind: str) -> None:
    """Pillow knows more formats, and starts Ghostscript for one of them."""
    with pytest.raises(ImageError, match=r"supported format \(AVIF, BMP, GIF, HEIF, JPEG, PNG, TIFF, WEBP\)"):
        open_image(io.BytesIO(encoded(Image.new("RGB", (16, 16)), kind)))


def test_an_image_of_no_metadata_is_written_without(tmp_path: Path) -> None:
    data = encode_image(ImageData(np.zeros((4, 4, 3), np.uint8)), "PNG")
    assert {data[at + 4 : at + 8] for at in (8, 33)} == {b"IHDR", b"IDAT"}
