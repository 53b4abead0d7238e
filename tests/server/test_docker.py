"""NVIDIA's container: which GPUs it gets, and what a repository must have for its backends."""

import csv
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core import devices
from nst_core.devices import DeviceChoice
from nst_core.errors import InputError
from nst_server.access import Access
from nst_server.cli import app
from nst_server.endpoints import Endpoints
from nst_server.installation.docker import Container, device_for
from nst_server.repository.plans import missing
from nst_server.tls import Certificate
from nst_server.triton_command import Launch

from .machines import CPU, H100, config, tensorrt


@pytest.mark.parametrize(
    ("wanted", "gpus", "here", "kind", "given"),
    [
        ("auto", None, CPU, "cpu", None),
        ("auto", None, H100, "gpu", "all"),
        ("gpu", None, H100, "gpu", "all"),
        ("cpu", None, H100, "cpu", None),
        ("auto", "device=1", H100, "gpu", "device=1"),
        ("auto", "all", CPU, "gpu", "all"),  # the command may be for another machine
        ("gpu", "all", CPU, "gpu", "all"),
    ],
)
def test_the_gpus_of_a_container(
    monkeypatch: pytest.MonkeyPatch,
    wanted: DeviceChoice,
    gpus: str | None,
    here: devices.Device,
    kind: str,
    given: str | None,
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([here.gpu], "") if here.gpu else ([], "no GPU"))
    device, options = device_for(wanted, gpus)
    assert (device.kind, options) == (kind, given) and device.reason


def test_gpus_for_a_cpu() -> None:
    with pytest.raises(InputError, match="--gpus all needs --device gpu or auto, not cpu"):
        device_for("cpu", "all")


@pytest.mark.parametrize("options", [(), ("--gpus", "all"), ("--device", "cpu")])
def test_the_printed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([H100.gpu], ""))
    kind = "cpu" if options[:1] == ("--device",) else "gpu"
    config(tmp_path / "a", f'backend: "onnxruntime"\ninstance_group {{ kind: KIND_{kind.upper()} }}')
    result = CliRunner().invoke(app, ["-r", str(tmp_path), "--docker", "--dry-run", *options])
    assert result.exit_code == 0, result.stderr
    assert ("--gpus=all" in shlex.split(result.stdout)) == (kind == "gpu")


@pytest.mark.parametrize("name", ["My Projects", "a:b", "a,b", 'a"b', "mödel"])
def test_any_path_is_mounted(tmp_path: Path, name: str) -> None:
    """Docker reads the fields of `--mount` as CSV."""
    repository = tmp_path / name
    repository.mkdir()
    certificate = Certificate(repository / "cert.pem", repository / "key.pem")
    launch = Launch(repository, Endpoints("::1"), access=Access("key"), certificate=certificate, models=("a",))
    command = Container.of("image", None, Access("key")).command(launch)
    mounts = [next(csv.reader([word.removeprefix("--mount=")])) for word in command if word.startswith("--mount=")]
    assert mounts == [
        ["type=bind", f"source={source}", f"target={target}", "readonly"]
        for source, target in (
            (repository, "/models"),
            (certificate.chain, "/tls/chain.pem"),
            (certificate.key, "/tls/key.pem"),
        )
    ]
    assert "--publish=[::1]:8000:8000" in command
    assert '"--load-model=a"' in command[-1]


def test_a_printed_command_looks_for_new_versions_itself_and_so_takes_no_bad_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([], "no GPU"))
    config(tmp_path / "a", "")
    options = ["-r", str(tmp_path), "--docker", "--dry-run", "--poll", "5"]
    result = CliRunner().invoke(app, options)
    assert '"--model-control-mode=poll" "--repository-poll-secs=5"' in result.stdout
    config(tmp_path / "x$(id)", "")
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 1 and "rename the folder" in " ".join(result.stderr.split())


def test_a_version_without_a_plan_is_none_for_nvidias_backend(tmp_path: Path) -> None:
    tensorrt(tmp_path / "without")
    tensorrt(tmp_path / "with", files=("model.onnx", "model.plan"))
    (line,) = missing(tmp_path)
    assert line.startswith(f"{tmp_path / 'without' / '1'} has no model.plan") and "nst export --device gpu" in line
