"""Triton's environments, with a pip that installs nothing and notes what it is asked for."""

import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core import devices, engines
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_server import installation
from nst_server.cli import app
from nst_server.command import Launch
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation import CPU_PACKAGES, GPU_PACKAGES, Installation

from .machines import CPU, H100, card, program

CPU_BY_HAND = "cpu: asked for with --device cpu"

VERSION = sysconfig.get_python_version()

PIP = """
import sys, time
from pathlib import Path
folder, asked = Path(__file__).parents[1], sys.argv[5:]
with (folder.parent / "asked").open("a") as notes:
    notes.write(" ".join(asked) + chr(10))
assert sys.argv[1:5] == ["-m", "pip", "install", "--quiet"]
if (says := folder.parent / "says").exists():
    sys.exit(says.read_text())
time.sleep(0.2)
packages = folder / "lib" / "python{version}" / "site-packages"
triton = packages / "pytriton" / "tritonserver"
for file in (
    triton / "bin" / "tritonserver",
    triton / "backends" / "python" / "libtriton_python.so",
    triton / "backends" / "python" / "triton_python_backend_utils.py",
    triton / "python_backend_stubs" / "{version}" / "triton_python_backend_stub",
    packages / "nvidia" / "cu13" / "lib" / "libcudart.so.13",
    packages / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9",
    packages / "tensorrt_libs" / "libnvinfer.so.10",
):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.name)
for package in asked[1:]:
    name, _, version = package.partition("==")
    record = packages / (name.partition("[")[0].replace("-", "_") + "-" + version + ".dist-info") / "METADATA"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("Name: " + name.partition("[")[0] + chr(10) + "Version: " + version + chr(10))
"""


@dataclass
class PyPI:
    """What was asked of pip, installation by installation, in the environments of a folder."""

    folder: Path

    @property
    def asked(self) -> list[tuple[str, ...]]:
        notes = self.folder / "asked"
        lines = notes.read_text().splitlines() if notes.exists() else []
        assert all(line.startswith("--disable-pip-version-check ") for line in lines)
        return [tuple(line.split()[1:]) for line in lines]

    def fail(self, said: str) -> None:
        (self.folder / "says").write_text(said)


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PyPI:
    def create(folder: Path, *, with_pip: bool, clear: bool) -> None:
        assert with_pip and clear
        if folder.exists():
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        program(folder / "bin" / "python", PIP.replace("{version}", VERSION))

    monkeypatch.setattr(installation.venv, "create", create)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    return PyPI(tmp_path / "triton")


def test_the_environment_for_a_cpu(pypi: PyPI) -> None:
    said: list[str] = []
    found = installation.find(pypi.folder, said.append, CPU)
    assert pypi.asked == [CPU_PACKAGES]
    assert found.folder == pypi.folder / "cpu"
    assert [line for line in said if str(pypi.folder / "cpu") in line and "takes a minute" in line] == said
    assert found.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "nvidia/" not in found.environment["LD_LIBRARY_PATH"]
    assert found.environment["PATH"] == f"{pypi.folder}/cpu/bin:/usr/bin:/bin"
    command = found.command(Launch(pypi.folder, Endpoints()))
    assert command[0] == f"{pypi.folder}/cpu/lib/python{VERSION}/site-packages/pytriton/tritonserver/bin/tritonserver"
    assert command[1:3] == ["--backend-directory", f"{pypi.folder}/cpu/backends"]
    assert f"--model-repository={pypi.folder}" in command


def test_the_environment_for_a_gpu(pypi: PyPI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    found = installation.install(pypi.folder, print, H100)
    packages = pypi.folder / "gpu" / "lib" / f"python{VERSION}" / "site-packages"
    assert pypi.asked == [GPU_PACKAGES[13]]
    libraries = found.environment["LD_LIBRARY_PATH"].split(":")
    assert {str(packages / name) for name in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt_libs")} < set(libraries)
    assert libraries[0] == str(packages / "nvidia_pytriton.libs") and libraries[-1] == "/own"
    assert found.environment["NST_CACHE"] == str(tmp_path / "cache")
    assert "CUDA_VISIBLE_DEVICES" not in found.environment, "the user's own choice stays"
    assert found.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert installation.tensorrt_version(pypi.folder / "gpu") == "10.15.1.29"
    assert installation.tensorrt_version(pypi.folder / "cpu") is None


@pytest.mark.parametrize(("cuda", "major"), [((12, 4), 12), ((13, 0), 13), ((14, 1), 13)])
def test_the_driver_decides_on_the_packages(pypi: PyPI, cuda: tuple[int, int], major: int) -> None:
    installation.install(pypi.folder, print, card(cuda))
    assert pypi.asked == [GPU_PACKAGES[major]]


def test_a_driver_that_is_too_old(pypi: PyPI) -> None:
    with pytest.raises(InputError, match=r"the driver 470\.82 runs CUDA 11\.4, and Triton needs CUDA 12 or later"):
        installation.install(pypi.folder, print, card((11, 4), "470.82"))
    assert not pypi.asked


@pytest.mark.parametrize("packages", [CPU_PACKAGES, *GPU_PACKAGES.values()])
def test_each_environment_has_a_single_onnxruntime_and_exact_versions(packages: tuple[str, ...]) -> None:
    assert sum(package.startswith("onnxruntime") for package in packages) == 1
    assert all("==" in package for package in packages)


def test_nothing_is_installed_twice(pypi: PyPI) -> None:
    said: list[str] = []
    first = [installation.install(pypi.folder, print, device) for device in (CPU, H100)]
    again = [installation.install(pypi.folder, said.append, device) for device in (CPU, H100)]
    assert first == again and said == []
    assert pypi.asked == [CPU_PACKAGES, GPU_PACKAGES[13]]
    assert all(found.folder and (found.folder / "installed.txt").exists() for found in again)


def test_another_driver_gets_another_environment(pypi: PyPI) -> None:
    for device in (H100, card((12, 4)), card((12, 8)), H100):
        installation.install(pypi.folder, print, device)
    assert pypi.asked == [GPU_PACKAGES[13], GPU_PACKAGES[12], GPU_PACKAGES[13]]
    packages = installation.site_packages(pypi.folder / "gpu")
    assert [path.name for path in packages.glob("tensorrt_cu*")] == ["tensorrt_cu13-10.15.1.29.dist-info"]


def damage_by_a_second_onnxruntime(folder: Path) -> None:
    (installation.site_packages(folder) / "onnxruntime_gpu-1.31.1.dist-info").mkdir()


def damage_by_a_python_that_is_gone(folder: Path) -> None:
    (folder / "bin" / "python").unlink()


def damage_by_another_python(folder: Path) -> None:
    (folder / "lib" / f"python{VERSION}").rename(folder / "lib" / "python3.8")


def damage_by_an_installation_that_was_ended(folder: Path) -> None:
    (folder / "installed.txt").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_a_second_onnxruntime,
        damage_by_a_python_that_is_gone,
        damage_by_another_python,
        damage_by_an_installation_that_was_ended,
    ],
)
def test_a_damaged_environment_is_made_anew(pypi: PyPI, damage: object) -> None:
    installation.install(pypi.folder, print, CPU)
    assert callable(damage)
    damage(pypi.folder / "cpu")
    installation.install(pypi.folder, print, CPU)
    assert pypi.asked == [CPU_PACKAGES] * 2
    assert len(list(installation.site_packages(pypi.folder / "cpu").glob("onnxruntime*.dist-info"))) == 1


def test_an_environment_without_a_folder_for_the_device_is_let_be(pypi: PyPI) -> None:
    """Packages right in the folder are not taken for those of a device."""
    program(pypi.folder / "bin" / "python", "")
    (pypi.folder / "installed.txt").write_text("\n".join(CPU_PACKAGES))
    found = installation.install(pypi.folder, print, CPU)
    assert found.folder == pypi.folder / "cpu" and pypi.asked == [CPU_PACKAGES]
    assert (pypi.folder / "installed.txt").exists()


def test_two_processes_install_once(pypi: PyPI) -> None:
    said: list[str] = []
    threads = [threading.Thread(target=installation.install, args=(pypi.folder, said.append, CPU)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pypi.asked == [CPU_PACKAGES]
    assert sum("another process installs Triton into" in line for line in said) == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: a\nERROR: No matching distribution found for x==1\n", "ERROR: No matching distribution found for x"),
        ("note: b\nerror: metadata-generation-failed\n\nhint: c", "error: metadata-generation-failed"),
        ("a wheel from https://pypi.nvidia.com/. If\nerror: subprocess", "https://pypi.nvidia.com, which this machine"),
        ("Killed", "no reason given"),
    ],
)
def test_a_pip_that_fails(pypi: PyPI, said: str, reason: str) -> None:
    pypi.folder.mkdir()
    pypi.fail(said)
    with pytest.raises(ServerError, match="pip could not install nvidia-pytriton==") as raised:
        installation.install(pypi.folder, print, H100)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    (pypi.folder / "says").unlink()
    installation.install(pypi.folder, print, H100)
    assert len(pypi.asked) == 2, "what was not finished is not taken for an installation"


def test_a_folder_that_cannot_be_made(pypi: PyPI) -> None:
    pypi.folder.write_text("a file")
    with pytest.raises(ServerError, match=r"cannot install Triton into .*; name another folder with --triton"):
        installation.install(pypi.folder, print, CPU)


def test_each_of_our_backends_has_the_engines_beside_it(pypi: PyPI) -> None:
    found = installation.install(pypi.folder, print, CPU)
    backends = Path(found.binary[-1])
    ours = {path.parent.name: path for path in (Path(installation.__file__).parent / "backends").glob("*/model.py")}
    assert "onnxruntime" in ours
    assert {path.name for path in backends.iterdir()} == {"python", *ours}
    sources = {path.name: path.read_bytes() for path in Path(engines.__path__[0]).glob("*.py")}
    for name, source in ours.items():
        assert (backends / name / "model.py").read_bytes() == source.read_bytes()
        common = source.parents[1] / "backend_common.py"
        assert (backends / name / common.name).read_bytes() == common.read_bytes()
        copies = {path.name: path.read_bytes() for path in (backends / name / "engines").iterdir()}
        assert copies == sources
        # As Triton's process of a model imports it, where nothing of nst is.
        code = "import sys; sys.path.insert(0, sys.argv[1]); import engines.plans; assert 'nst_core' not in sys.modules"
        subprocess.run([sys.executable, "-I", "-c", code, str(backends / name)], check=True)
    stub = backends / "python" / "triton_python_backend_stub"
    (backends / "onnxruntime" / "engines" / "plans.py").write_text("of another version")
    assert stub.exists()
    installation.install(pypi.folder, print, CPU)
    assert (backends / "onnxruntime" / "engines" / "plans.py").read_bytes() == sources["plans.py"]


def test_triton_in_path_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert installation.find(tmp_path / "unused", print, CPU) == Installation((str(binary),), hidden)
    assert installation.find(tmp_path / "unused", print, H100) == Installation((str(binary),))
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(("device", "kind"), [(CPU, "cpu"), (H100, "gpu")])
def test_without_a_device_the_machine_decides(
    pypi: PyPI, monkeypatch: pytest.MonkeyPatch, device: Device, kind: str
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([device.gpu], "") if device.gpu else ([], "no GPU here"))
    assert installation.find(pypi.folder, print).folder == pypi.folder / kind


@pytest.mark.parametrize("wanted", ["auto", "gpu", "cpu"])
def test_installing_ahead_of_the_first_start(pypi: PyPI, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([H100.gpu], ""))
    options = ["--install-only", "--device", wanted, "--triton", str(pypi.folder)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.stderr
    device, said = result.stderr.splitlines()
    assert pypi.asked == [CPU_PACKAGES if wanted == "cpu" else GPU_PACKAGES[13]]
    assert device == f"device {CPU_BY_HAND if wanted == 'cpu' else H100}"
    assert said.startswith("installing Triton from PyPI into")
    assert len(CliRunner().invoke(app, options).stderr.splitlines()) == 1
