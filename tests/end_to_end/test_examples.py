"""The examples of docs/guides/call-from-anywhere.md, as a user runs them, against a real Triton."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nst_client import StyleClient
from nst_core.images import Pixels, fit, open_image, sample_photographs

from .serving import ROOT, Models, certificate, serve

EXAMPLES = ROOT / "examples"
TOKEN = "sesame"

TRUST = ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
"""Where each of the examples' tools looks for the file of a CA, as the page says."""


@dataclass(frozen=True)
class Example:
    """What runs a file of examples/, and the images that it takes and makes."""

    command: tuple[str, ...]
    kind: str
    scheme: str = "http"


EXAMPLE = {
    "stylize.sh": Example(("bash",), "ppm"),
    "stylize_http.py": Example((sys.executable,), "png"),
    "stylize_grpc.py": Example((sys.executable,), "png", "grpc"),
    "stylize.mjs": Example(("node",), "ppm"),
    "stylize.go": Example(("go",), "png"),
}


@dataclass(frozen=True)
class Served:
    """A server, its addresses by scheme, and what its callers need."""

    urls: dict[str, str]
    token: str | None = None
    ca: Path | None = None

    def run(self, *command: object, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command in an environment with what this server wants, and nothing of ours."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NST_")}
        if secret := token or self.token:
            environment["NST_TOKEN"] = secret
        if self.ca:
            environment |= dict.fromkeys(TRUST, str(self.ca))
        return subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def stylized(self, pixels: Pixels, model: str, weights: list[float]) -> Pixels:
        """By our own client."""
        with StyleClient(self.urls["grpc"], token=self.token, ca=self.ca) as client:
            styles = [style.name for style in client.styles() if style.model == model]
            return client.stylize(pixels, dict(zip(styles, weights or [1.0], strict=True)))


@pytest.fixture(scope="module", params=["plain", "TLS and a token"])
def served(
    request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("examples")
    if request.param == "plain":
        running = serve(models.repository, folder / "triton.log")
        yield Served({"http": running.endpoints.http, "grpc": running.endpoints.grpc})
    else:
        chain, key = certificate(folder)
        (folder / "token").write_text(TOKEN)
        options = ("--tls-cert", chain, "--tls-key", key, "--token-file", folder / "token")
        running = serve(models.repository, folder / "triton.log", *options)
        ports = running.endpoints
        urls = {"http": f"https://localhost:{ports.http_port}", "grpc": f"grpcs://localhost:{ports.grpc_port}"}
        yield Served(urls, TOKEN, chain)
    running.stop()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go example, built once."""
    needed("go")
    target = tmp_path_factory.mktemp("go") / "stylize"
    subprocess.run(["go", "build", "-o", target, EXAMPLES / "stylize.go"], check=True, timeout=300)
    return target


def needed(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine")


def command(name: str, request: pytest.FixtureRequest) -> list[object]:
    """What runs an example, without its arguments."""
    if name == "stylize.go":
        return [request.getfixturevalue("program")]
    for tool in (*EXAMPLE[name].command, *(["curl"] if name.endswith(".sh") else [])):
        needed(tool)
    return [*EXAMPLE[name].command, EXAMPLES / name]


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A photograph of odd sides, as PPM and PNG; without the suffix."""
    image = Image.fromarray(fit(open_image(sample_photographs()[0]), 121, 85).pixels)
    for kind in ("ppm", "png"):
        image.save(tmp_path / f"content.{kind}")
    return tmp_path / "content"


@pytest.mark.parametrize("name", EXAMPLE)
def test_an_example_stylizes_what_the_client_stylizes(
    served: Served, content: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """A model of one style, and an interpolation of the two of another; a wrong token and a missing model say so."""
    kind, url = EXAMPLE[name].kind, served.urls[EXAMPLE[name].scheme]
    source, target = content.with_suffix(f".{kind}"), content.with_name(f"stylized.{kind}")
    line = [*command(name, request), source, target, url]
    for model, weights in (("starry", []), ("large", [0.25, 0.75])):
        result = served.run(*line, model, *weights)
        assert result.returncode == 0, result.stderr
        pixels = np.asarray(Image.open(source))
        assert np.array_equal(np.asarray(Image.open(target)), served.stylized(pixels, model, weights))
        target.unlink()
    refused = served.run(*line, "nobody")
    assert refused.returncode != 0 and "unknown model: 'nobody'" in refused.stderr
    if served.token:
        refused = served.run(*line, "starry", token="wrong")
        assert refused.returncode != 0 and "is restricted, expecting header" in refused.stderr
    assert not target.exists()
    assert "Traceback" not in refused.stderr


def test_curl_asks_what_is_served(served: Served) -> None:
    needed("curl")
    result = served.run("bash", EXAMPLES / "ask.sh", served.urls["http"], "large")
    assert result.returncode == 0, result.stderr
    ready, models, config = result.stdout.splitlines()
    assert ready == ""
    assert {entry["name"] for entry in json.loads(models)["model_stats"]} >= {"starry", "large"}
    assert json.loads(config)["parameters"]["styles"] == {"string_value": "a,b"}
    assert served.run("bash", EXAMPLES / "ask.sh", served.urls["http"], "nobody").returncode != 0


def test_the_page_shows_the_examples() -> None:
    """Each file, whole and as it is."""
    page = (ROOT / "docs" / "guides" / "call-from-anywhere.md").read_text()
    languages = {".sh": "sh", ".py": "python", ".mjs": "js", ".go": "go"}
    files = sorted(EXAMPLES.iterdir())
    assert {file.name for file in files} == {"ask.sh", *EXAMPLE}
    for file in files:
        assert f"`examples/{file.name}`" in page
        assert f"\n```{languages[file.suffix]}\n{file.read_text()}```\n" in page, f"{file.name} is not as on the page"
    for variable in TRUST:
        assert variable in page
