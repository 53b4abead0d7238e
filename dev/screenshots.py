"""Take the documentation's screenshots of the web page, with models/gallery.pth on a real server.

Usage: python dev/screenshots.py; needs .triton (see make demo) and Chromium.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from nst_core.images import ImageData, open_image, sample_photographs, save_image
from nst_export.export_plan import ExportPlan
from nst_export.pipeline import export_and_publish
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import find_triton
from nst_server.process.supervisor import run_triton

GALLERY = Path("models/gallery.pth")
PICTURES = Path("docs/pictures")
PHOTOGRAPHS = {path.stem: path for path in sample_photographs()}
TIMEOUT_MILLISECONDS = 120_000
"""Generous: each step takes a second or two on an idle machine."""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve the page with the gallery, and yield its address."""
    gallery, repository = folder / GALLERY.name, folder / "model_repository"
    shutil.copy(GALLERY, gallery)
    export_and_publish(gallery, gallery.stem, repository, ExportPlan(cores=os.cpu_count() or 1), on_progress=print)
    endpoints = Endpoints.free()
    with run_triton(find_triton(Path(".triton"), print), repository, endpoints, folder / "triton.log"):
        nst = str(Path(sys.executable).parent / "nst")
        options = ("--url", endpoints.grpc, "--port", "0", "--gallery", str(gallery), "--repository", str(repository))
        process = subprocess.Popen([nst, "web", *options], stderr=subprocess.PIPE, text=True)
        try:
            yield next(found[1] for line in process.stderr if (found := re.match(r"ready: (http://\S+)", line)))
        finally:
            process.terminate()
            process.communicate()


def opened(browser: Browser, url: str, photo: str, width: int, height: int) -> Page:
    """Open the page, wait for its thumbnails, and choose a photograph and a style."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(TIMEOUT_MILLISECONDS)
    page.goto(url)
    page.wait_for_function(
        """() => {
          const images = [...document.querySelectorAll("#styles button img")];
          return images.length && images.length === document.querySelectorAll("#styles button").length
            && images.every((image) => image.complete && image.naturalWidth);
        }"""
    )
    page.set_input_files("#file", PHOTOGRAPHS[photo])
    page.click("[data-style='great-wave']")
    return page


def stylize(page: Page, count: int, divider: int) -> None:
    """Stylize, wait for `count` results, and show `divider` percent of the content image beside the result."""
    page.click("#stylize")
    page.wait_for_function(
        """(count) => {
          const images = [...document.querySelectorAll("#queue img")];
          return images.length === count && images.every((image) => image.complete && image.naturalWidth)
            && document.getElementById("busy").hidden && document.getElementById("after").dataset.ready;
        }""",
        arg=count,
    )
    page.locator("#compare").fill(str(divider))
    page.evaluate("document.activeElement.blur()")


def taken(page: Page, name: str, **options: bool) -> None:
    """Write a screenshot as JPEG, since its images are too large as PNG."""
    with tempfile.TemporaryDirectory() as scratch:
        page.screenshot(path=f"{scratch}/page.png", **options)
        image = ImageData(open_image(Path(scratch) / "page.png").pixels)
    save_image(image, PICTURES / f"{name}.jpg", quality=88)
    print(f"wrote {PICTURES / name}.jpg: {image.width}x{image.height}")


def desktop(browser: Browser, url: str) -> None:
    """Take the desktop screenshot: one style, then an interpolation of two."""
    page = opened(browser, url, "coffee", 1180, 900)
    stylize(page, 1, 0)
    page.check("#interpolate")
    page.click("[data-style='composition-vii']")
    for style, percent in (("great-wave", 100), ("composition-vii", 35)):
        page.locator(f"[aria-label='Weight of {style}']").fill(str(percent))
    stylize(page, 2, 42)
    taken(page, "web-desktop", full_page=True)


def phone(browser: Browser, url: str) -> None:
    """Take the phone screenshot: what a phone shows without scrolling."""
    page = opened(browser, url, "astronaut", 390, 844)
    stylize(page, 1, 42)
    page.evaluate("scrollTo(0, 0)")
    taken(page, "web-phone")


def main() -> None:
    """Take both screenshots, each in a new page."""
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as url, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags) as browser:
            desktop(browser, url)
            phone(browser, url)


main()
