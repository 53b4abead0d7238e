"""Triton's environments, made by Pythons that install nothing and note what they are asked for."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import nst_server
from nst_core import devices, engines
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_server.cli import app
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation import interpreter
from nst_server.installation import triton as installation
from nst_server.installation.environment import CPU_PACKAGES, GPU_PACKAGES, TRITON, site_packages, tensorrt_version
from nst_server.installation.triton import Installation
from nst_server.triton_command import Launch

from .machines import CPU, H100, card, program

CPU_BY_HAND = "cpu: chosen with --device cpu"

VERSION = "3.12"
"""Of the Python that runs nst, as far as these tests are concerned."""

PYTHON = """
import json, os, shutil, sys, time
from pathlib import Path
folder, (isolated, *asked) = Path(__file__).parents[1], sys.argv[1:]
assert isolated == "-I"
if asked[0] == "-c":
    print(json.dumps({answer}))
    sys.exit()
if asked[:3] == ["-m", "venv", "--clear"]:
    new = Path(asked[-1])
    shutil.rmtree(new, ignore_errors=True)
    (new / "bin").mkdir(parents=True)
    shutil.copy(__file__, new / "bin" / "python")
    sys.exit()
with (folder.parent / "asked").open("a") as notes:
    notes.write(" ".join(asked) + chr(10))
if (says := folder.parent / "says").exists():
    sys.exit(says.read_text())
if "--no-deps" in asked:
    time.sleep(0.2)  # for others to come meanwhile
packages = folder / "lib" / "python{version}" / "site-packages"
triton = packages / "pytriton" / "tritonserver"
for file in (
    triton / "bin" / "tritonserver",
    triton / "backends" / "python" / "libtriton_python.so",
    triton / "backends" / "python" / "triton_python_backend_utils.py",
    *(triton / "python_backend_stubs" / f"3.{minor}" / "triton_python_backend_stub" for minor in range(8, 14)),
    packages / "nvidia" / "cu13" / "lib" / "libcudart.so.13",
    packages / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9",
    packages / "tensorrt_libs" / "libnvinfer.so.10",
):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(file))
for package in asked[3:]:
    name, _, version = package.partition("==")
    if not package.startswith("-"):
        record = packages / (name.partition("[")[0].replace("-", "_") + "-" + version + ".dist-info") / "METADATA"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("Name: " + name.partition("[")[0] + chr(10) + "Version: " + version + chr(10))
"""


def fake_python(path: Path, version: str, *, library: bool = True, threaded: bool = False, pip: bool = True) -> Path:
    """A Python that makes environments and installs nothing in them."""
    places = path.parent / "lib"
    places.mkdir(parents=True, exist_ok=True)
    if library:
        (places / f"libpython{version}.so.1.0").touch()
    answer = {"version": version, "threaded": threaded, "places": [None, str(places)], "pip": pip}
    return program(path, PYTHON.replace("{answer}", repr(answer)).replace("{version}", version))


@dataclass
class PyPI:
    """What was asked of pip, installation by installation, in the environments of a folder."""

    folder: Path

    @property
    def asked(self) -> list[tuple[str, ...]]:
        notes = self.folder / "asked"
        found: list[tuple[str, ...]] = []
        for line in notes.read_text().splitlines() if notes.exists() else []:
            _, packages = line.split(" --only-binary=numpy ")
            if packages == f"--no-deps {TRITON}":
                found.append((TRITON,))
            else:
                found[-1] += tuple(packages.split())
        return found

    def fail(self, output: str) -> None:
        (self.folder / "says").write_text(output)


def runs_nst(monkeypatch: pytest.MonkeyPatch, python: Path) -> None:
    monkeypatch.setattr(interpreter, "sys", SimpleNamespace(executable=str(python)))


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PyPI:
    running = fake_python(tmp_path / "running" / "python", VERSION)
    runs_nst(monkeypatch, running)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    return PyPI(tmp_path / "triton")


def test_the_environment_for_a_cpu(pypi: PyPI) -> None:
    messages: list[str] = []
    found = installation.find_triton(pypi.folder, messages.append, CPU)
    assert pypi.asked == [CPU_PACKAGES]
    assert found.folder == pypi.folder / "cpu"
    assert [line for line in messages if str(pypi.folder / "cpu") in line and "takes a minute" in line] == messages
    assert found.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "nvidia/" not in found.environment["LD_LIBRARY_PATH"]
    assert found.environment["PATH"] == f"{pypi.folder}/cpu/bin:/usr/bin:/bin"
    command = found.command(Launch(pypi.folder, Endpoints()))
    assert command[0] == f"{pypi.folder}/cpu/lib/python{VERSION}/site-packages/pytriton/tritonserver/bin/tritonserver"
    assert command[1:3] == ["--backend-directory", f"{pypi.folder}/cpu/backends"]
    assert f"--model-repository={pypi.folder}" in command


def test_the_environment_for_a_gpu(pypi: PyPI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    found = installation.install_triton(pypi.folder, print, H100)
    packages = pypi.folder / "gpu" / "lib" / f"python{VERSION}" / "site-packages"
    assert pypi.asked == [GPU_PACKAGES[13]]
    libraries = found.environment["LD_LIBRARY_PATH"].split(":")
    assert {str(packages / name) for name in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "tensorrt_libs")} < set(libraries)
    assert libraries[0] == str(packages / "nvidia_pytriton.libs") and libraries[-1] == "/own"
    assert found.environment["NST_CACHE"] == str(tmp_path / "cache")
    assert "CUDA_VISIBLE_DEVICES" not in found.environment, "the user's own choice stays"
    assert found.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert tensorrt_version(pypi.folder / "gpu") == "10.15.1.29"
    assert tensorrt_version(pypi.folder / "cpu") is None


@pytest.mark.parametrize(("cuda", "major"), [((12, 4), 12), ((13, 0), 13), ((14, 1), 13)])
def test_the_driver_decides_on_the_packages(pypi: PyPI, cuda: tuple[int, int], major: int) -> None:
    installation.install_triton(pypi.folder, print, card(cuda))
    assert pypi.asked == [GPU_PACKAGES[major]]


def test_a_driver_that_is_too_old(pypi: PyPI) -> None:
    with pytest.raises(InputError, match=r"the driver 470\.82 supports CUDA 11\.4, but Triton needs CUDA 12 or later"):
        installation.install_triton(pypi.folder, print, card((11, 4), "470.82"))
    assert not pypi.asked


@pytest.mark.parametrize("packages", [CPU_PACKAGES, *GPU_PACKAGES.values()])
def test_each_environment_has_a_single_onnxruntime_and_exact_versions(packages: tuple[str, ...]) -> None:
    assert sum(package.startswith("onnxruntime") for package in packages) == 1
    assert all("==" in package for package in packages)


def test_nothing_is_installed_twice(pypi: PyPI) -> None:
    messages: list[str] = []
    first = [installation.install_triton(pypi.folder, print, device) for device in (CPU, H100)]
    again = [installation.install_triton(pypi.folder, messages.append, device) for device in (CPU, H100)]
    assert first == again and messages == []
    assert pypi.asked == [CPU_PACKAGES, GPU_PACKAGES[13]]
    assert all(found.folder and (found.folder / "installed.txt").exists() for found in again)


def test_another_driver_gets_another_environment(pypi: PyPI) -> None:
    for device in (H100, card((12, 4)), card((12, 8)), H100):
        installation.install_triton(pypi.folder, print, device)
    assert pypi.asked == [GPU_PACKAGES[13], GPU_PACKAGES[12], GPU_PACKAGES[13]]
    packages = site_packages(pypi.folder / "gpu")
    assert [path.name for path in packages.glob("tensorrt_cu*")] == ["tensorrt_cu13-10.15.1.29.dist-info"]


def damage_by_a_second_onnxruntime(folder: Path) -> None:
    (site_packages(folder) / "onnxruntime_gpu-1.31.1.dist-info").mkdir()


def damage_by_a_python_that_is_gone(folder: Path) -> None:
    (folder / "bin" / "python").unlink()


def damage_by_another_python(folder: Path) -> None:
    (folder / "lib" / f"python{VERSION}").rename(folder / "lib" / "python3.8")


def damage_by_packages_of_an_older_version(folder: Path) -> None:
    (folder / "installed.txt").write_text("nvidia-pytriton==0.7.0\nonnxruntime-openvino==1.24.1")


def damage_by_an_installation_that_was_ended(folder: Path) -> None:
    (folder / "installed.txt").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_a_second_onnxruntime,
        damage_by_a_python_that_is_gone,
        damage_by_another_python,
        damage_by_packages_of_an_older_version,
        damage_by_an_installation_that_was_ended,
    ],
)
def test_a_damaged_environment_is_made_anew(pypi: PyPI, damage: object) -> None:
    installation.install_triton(pypi.folder, print, CPU)
    assert callable(damage)
    damage(pypi.folder / "cpu")
    installation.install_triton(pypi.folder, print, CPU)
    assert pypi.asked == [CPU_PACKAGES] * 2
    assert len(list(site_packages(pypi.folder / "cpu").glob("onnxruntime*.dist-info"))) == 1


def test_an_environment_without_a_folder_for_the_device_is_let_be(pypi: PyPI) -> None:
    """Packages right in the folder are not taken for those of a device."""
    program(pypi.folder / "bin" / "python", "")
    (pypi.folder / "installed.txt").write_text("\n".join(CPU_PACKAGES))
    found = installation.install_triton(pypi.folder, print, CPU)
    assert found.folder == pypi.folder / "cpu" and pypi.asked == [CPU_PACKAGES]
    assert (pypi.folder / "installed.txt").exists()


def test_two_processes_install_once(pypi: PyPI) -> None:
    messages: list[str] = []
    threads = [
        threading.Thread(target=installation.install_triton, args=(pypi.folder, messages.append, CPU)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pypi.asked == [CPU_PACKAGES]
    assert sum("waiting for another process that is installing Triton into" in line for line in messages) == 2


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("WARNING: a\nERROR: No matching distribution found for x==1\n", "ERROR: No matching distribution found for x"),
        ("note: b\nerror: metadata-generation-failed\n\nhint: c", "error: metadata-generation-failed"),
        (
            "a wheel from https://pypi.nvidia.com/. If\nerror: subprocess",
            "this machine cannot reach https://pypi.nvidia.com",
        ),
        ("Killed", "Killed"),
        ("", "no reason given"),
    ],
)
def test_a_pip_that_fails(pypi: PyPI, output: str, reason: str) -> None:
    pypi.folder.mkdir()
    pypi.fail(output)
    with pytest.raises(ServerError, match="pip could not install nvidia-pytriton==") as raised:
        installation.install_triton(pypi.folder, print, H100)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    (pypi.folder / "says").unlink()
    installation.install_triton(pypi.folder, print, H100)
    assert len(pypi.asked) == 2, "what was not finished is not taken for an installation"


def test_a_folder_that_cannot_be_made(pypi: PyPI) -> None:
    pypi.folder.write_text("a file")
    with pytest.raises(ServerError, match=r"cannot install Triton into .*; choose another folder with --triton"):
        installation.install_triton(pypi.folder, print, CPU)


def test_each_of_our_backends_has_the_engines_beside_it(pypi: PyPI) -> None:
    found = installation.install_triton(pypi.folder, print, CPU)
    backends = Path(found.binary[-1])
    ours = {path.parent.name: path for path in (Path(nst_server.__file__).parent / "backends").glob("*/model.py")}
    assert "onnxruntime" in ours
    assert {path.name for path in backends.iterdir()} == {"python", *ours}
    sources = {path.name: path.read_bytes() for path in Path(engines.__path__[0]).glob("*.py")}
    for name, source in ours.items():
        modules = [*source.parent.glob("*.py"), source.parents[1] / "backend_common.py"]
        assert {path.name: path.read_bytes() for path in (backends / name).glob("*.py")} == {
            path.name: path.read_bytes() for path in modules
        }
        copies = {path.name: path.read_bytes() for path in (backends / name / "engines").iterdir()}
        assert copies == sources
        # As Triton's process of a model imports it, where nothing of nst is.
        code = "import sys; sys.path.insert(0, sys.argv[1]); import engines.plans; assert 'nst_core' not in sys.modules"
        subprocess.run([sys.executable, "-I", "-c", code, str(backends / name)], check=True)
    stub = backends / "python" / "triton_python_backend_stub"
    (backends / "onnxruntime" / "engines" / "plans.py").write_text("of another version")
    assert stub.exists()
    installation.install_triton(pypi.folder, print, CPU)
    assert (backends / "onnxruntime" / "engines" / "plans.py").read_bytes() == sources["plans.py"]


def test_triton_in_path_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert installation.find_triton(tmp_path / "unused", print, CPU) == Installation((str(binary),), hidden)
    assert installation.find_triton(tmp_path / "unused", print, H100) == Installation((str(binary),))
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(("device", "kind"), [(CPU, "cpu"), (H100, "gpu")])
def test_without_a_device_the_machine_decides(
    pypi: PyPI, monkeypatch: pytest.MonkeyPatch, device: Device, kind: str
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([device.gpu], "") if device.gpu else ([], "no GPU here"))
    assert installation.find_triton(pypi.folder, print).folder == pypi.folder / kind


@pytest.mark.parametrize("wanted", ["auto", "gpu", "cpu"])
def test_installing_ahead_of_the_first_start(pypi: PyPI, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([H100.gpu], ""))
    options = ["--install-only", "--device", wanted, "--triton", str(pypi.folder)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.stderr
    device, message = result.stderr.splitlines()
    assert pypi.asked == [CPU_PACKAGES if wanted == "cpu" else GPU_PACKAGES[13]]
    assert device == f"device {CPU_BY_HAND if wanted == 'cpu' else H100}"
    assert message.startswith("installing Triton from PyPI into")
    assert len(CliRunner().invoke(app, options).stderr.splitlines()) == 1


def in_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", ":".join(map(str, [*folders, "/nowhere"])))


@pytest.fixture
def too_new(pypi: PyPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python 3.14, for which Triton has no stub, runs nst."""
    running = fake_python(tmp_path / "new" / "python3.14", "3.14")
    runs_nst(monkeypatch, running)
    in_path(monkeypatch, running.parent)
    return running


def test_the_running_python_is_taken_if_triton_can_embed_it(
    pypi: PyPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_path(monkeypatch, fake_python(tmp_path / "other" / "python3.13", "3.13").parent)
    found = interpreter.choose(tmp_path / "fetched", print)
    assert (found.program, found.version) == (tmp_path / "running" / "python", VERSION)


def test_a_python_that_triton_does_not_know_serves_with_another_of_the_path(
    pypi: PyPI, too_new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = program(tmp_path / "shims" / "python3.13", "import sys; sys.exit('pyenv: python3.13: command not found')")
    static = fake_python(tmp_path / "static" / "python3.13", "3.13", library=False)
    threaded = fake_python(tmp_path / "threaded" / "python3.13", "3.13", threaded=True)
    good = fake_python(tmp_path / "good" / "python3.13", "3.13")
    older = fake_python(tmp_path / "older" / "python3.11", "3.11")
    in_path(monkeypatch, *(each.parent for each in (older, shim, static, threaded, good)))
    messages: list[str] = []
    found = installation.install_triton(pypi.folder, messages.append, CPU)
    assert found.folder and f"(Python 3.13 of {good}, {TRITON}, numpy==2." in messages[0] and len(messages) == 1
    packages = found.folder / "lib" / "python3.13" / "site-packages"
    assert found.binary[0] == str(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver")
    assert site_packages(found.folder) == packages
    stub = found.folder / "backends" / "python" / "triton_python_backend_stub"
    assert "/python_backend_stubs/3.13/" in stub.read_text()
    assert str(good.parent / "lib") in found.environment["LD_LIBRARY_PATH"].split(":")
    good.unlink()
    assert installation.install_triton(pypi.folder, messages.append, CPU) == found and len(messages) == 1, (
        "nothing is looked for again"
    )


UV = """
import json, os, shutil, sys
from pathlib import Path
assert sys.argv[1:] == ["python", "install", "3.12"] and os.environ["UV_PYTHON_PREFERENCE"] == "only-managed"
new = Path(os.environ["UV_PYTHON_INSTALL_DIR"]) / "cpython-3.12.16-linux-x86_64-gnu" / "bin" / "python3.12"
new.parent.mkdir(parents=True)
shutil.copy("{python}", new)
"""

UV_OFFLINE = """
import sys
lines = ("error: Failed to install cpython-3.12.16", "  cause: Failed to download", "  cause: dns error")
sys.exit(chr(10).join(lines))
"""


def test_without_any_uv_fetches_one(pypi: PyPI, too_new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(tmp_path / "fetched" / "python3.12", "3.12")
    uv = program(tmp_path / "uv" / "uv", UV.replace("{python}", str(python)))
    in_path(monkeypatch, too_new.parent, uv.parent)
    messages: list[str] = []
    found = installation.install_triton(pypi.folder, messages.append, CPU)
    assert messages[0] == (
        f"Triton needs Python 3.11, 3.12 or 3.13 with its shared library, but {too_new} is Python 3.14; "
        f"fetching Python 3.12 into {pypi.folder}/python with uv"
    )
    assert f"(Python 3.12 of {pypi.folder}/python/cpython-3.12.16-linux-x86_64-gnu/bin/python3.12, " in messages[1]
    assert found.folder == pypi.folder / "cpu" and pypi.asked == [CPU_PACKAGES]


def test_where_uv_fetches_none_it_fails_before_anything_is_installed(
    pypi: PyPI, too_new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_path(monkeypatch, program(tmp_path / "uv" / "uv", UV_OFFLINE).parent)
    with pytest.raises(ServerError) as raised:
        installation.install_triton(pypi.folder, print, CPU)
    assert str(raised.value) == (
        f"Triton needs Python 3.11, 3.12 or 3.13 with its shared library: {too_new} is Python 3.14; "
        "uv cannot fetch Python 3.12 (error: Failed to install cpython-3.12.16: dns error). "
        "Install one of them, or serve with --docker"
    )
    assert pypi.asked == [] and not (pypi.folder / "cpu").exists()


def test_what_a_python_misses_is_named_with_the_package_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # nst is in an environment without pip
    static = fake_python(tmp_path / "static" / "python3", "3.11", library=False)
    with pytest.raises(ServerError, match=r"has no libpython3\.11\.so\.1\.0 \(apt-get install libpython3\.11\)"):
        interpreter.inspect(static)
    bare = fake_python(tmp_path / "bare" / "python3", "3.11", pip=False)
    with pytest.raises(ServerError, match=r"has no ensurepip \(apt-get install python3\.11-venv\)"):
        interpreter.inspect(bare)
    with pytest.raises(ServerError, match="python4 does not run"):
        interpreter.inspect(tmp_path / "python4")


def test_a_python_without_ensurepip_is_installed_into_by_the_pip_of_nst(tmp_path: Path) -> None:
    real = interpreter.inspect(Path(sys.executable))
    pip = replace(real, has_pip=False).create(tmp_path / "new")
    assert pip[:1] == [sys.executable]
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True)
    assert listed.stdout == "", "it is the new environment that is looked at"


def test_every_python_at_hand_is_seen_as_what_it_is() -> None:
    """Real ones: those of pyenv and the system's."""
    real = [sys.executable, *map(str, Path.home().glob(".pyenv/versions/3.*/bin/python3")), "/usr/bin/python3"]
    for each in filter(os.path.exists, real):
        version = subprocess.run([each, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        short = version.rpartition(".")[0]
        try:
            found = interpreter.inspect(Path(each))
        except ServerError as error:
            assert short not in interpreter.VERSIONS or "apt-get install" in str(error)
        else:
            assert found.version == short and found.library.name == f"libpython{short}.so.1.0"


def test_a_system_that_pypi_has_no_triton_for(pypi: PyPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.34"))
    with pytest.raises(ServerError, match=r"glibc 2\.35 or later, but this is Linux x86_64 glibc 2\.34; serve with"):
        installation.install_triton(pypi.folder, print, CPU)
    assert pypi.asked == []


def test_a_user_without_a_home_folder_serves_on_a_cpu(pypi: PyPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise InputError("user id 1000 has no home folder: set NST_CACHE")

    monkeypatch.setattr(installation, "cache_folder", missing)
    installation.install_triton(pypi.folder, print, CPU)
    with pytest.raises(InputError, match="set NST_CACHE"):
        installation.install_triton(pypi.folder, print, H100)
