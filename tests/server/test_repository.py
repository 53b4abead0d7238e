"""What a repository asks of the server, and what it says to one with another device."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core import devices
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_server.cli import app
from nst_server.errors import ServerError
from nst_server.repository.models import check_device, model_names, read_repository, tensorrt_engines

from .machines import CPU, H100, config, tensorrt

ONNX = 'backend: "onnxruntime"\n'
FOR = {"cpu": ONNX + "instance_group { kind: KIND_CPU count: 1 }", "gpu": ONNX + "instance_group { kind: KIND_GPU }"}
AGAIN = {"cpu": "export it again with nst export --device gpu, or serve it with --device cpu"}
AGAIN["gpu"] = "export it again with nst export --device cpu, or serve it on a machine with a GPU (--device gpu)"
USES = {"cpu": "the GPU (NVIDIA H100", "gpu": "the CPU (no NVIDIA GPU"}


def silent(line: str) -> None:
    raise AssertionError(line)


@pytest.mark.parametrize("device", [CPU, H100], ids=["cpu", "gpu"])
@pytest.mark.parametrize("exported", ["cpu", "gpu"])
def test_a_repository_for_the_other_device_is_refused_with_both_ways_out(
    tmp_path: Path, device: Device, exported: str
) -> None:
    config(tmp_path / "starry-night", FOR[exported])
    if exported == device.kind:
        check_device(tmp_path, device, silent)
        return
    with pytest.raises(InputError) as raised:
        check_device(tmp_path, device, silent)
    line = str(raised.value)
    assert line.startswith(f"{tmp_path / 'starry-night'} was exported for the {exported.upper()}, but this server uses")
    assert USES[exported] in line and line.endswith(AGAIN[exported])


def test_several_are_named_in_one_line(tmp_path: Path) -> None:
    config(tmp_path / "a", FOR["gpu"])
    tensorrt(tmp_path / "b")
    with pytest.raises(InputError, match=f"^{tmp_path}/a, {tmp_path}/b were exported .* export them again"):
        check_device(tmp_path, CPU, silent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ONNX,
        ONNX + "instance_group { count: 2 }",
        ONNX + "instance_group { kind: KIND_MODEL }",
        "instance_group [ { kind: KIND_AUTO } ]",
        "this is { no config",
        ONNX + "a_field_of_a_newer_triton: 7",
    ],
)
@pytest.mark.parametrize("device", [CPU, H100], ids=["cpu", "gpu"])
def test_models_that_name_no_device_go_with_both(tmp_path: Path, device: Device, text: str) -> None:
    config(tmp_path / "a", text)
    (tmp_path / "b" / "1").mkdir(parents=True)
    (tmp_path / "b" / "1" / "model.onnx").write_bytes(b"without a config")
    check_device(tmp_path, device, silent)


def test_what_newer_tritons_say_is_read_past(tmp_path: Path) -> None:
    config(tmp_path / "a", f"{FOR['gpu']}\na_field_of_a_newer_triton: 7")
    with pytest.raises(InputError, match="exported for the GPU"):
        check_device(tmp_path, CPU, silent)


@pytest.mark.parametrize("device", [CPU, H100], ids=["cpu", "gpu"])
def test_some_of_several_are_named_and_the_others_served(tmp_path: Path, device: Device) -> None:
    messages: list[str] = []
    for kind, text in FOR.items():
        config(tmp_path / kind, text)
    check_device(tmp_path, device, messages.append)
    other = "gpu" if device.kind == "cpu" else "cpu"
    (line,) = messages
    assert line.startswith(f"{tmp_path / other} was exported for the {other.upper()}") and line.endswith(AGAIN[other])


def test_another_backends_model_on_the_cpu_is_right_beside_a_gpu(tmp_path: Path) -> None:
    config(tmp_path / "resize", 'backend: "python"\ninstance_group { kind: KIND_CPU }')
    config(tmp_path / "both", ONNX + "instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU } ]")
    check_device(tmp_path, H100, silent)


def test_an_old_configs_platform_is_a_backend(tmp_path: Path) -> None:
    config(tmp_path / "a", 'platform: "onnxruntime_onnx"\ninstance_group { kind: KIND_CPU }')
    with pytest.raises(InputError, match="exported for the CPU"):
        check_device(tmp_path, H100, silent)


def test_the_newest_version_of_a_model_of_tensorrt(tmp_path: Path) -> None:
    tensorrt(tmp_path / "a", version=9)
    (tmp_path / "a" / "10").mkdir()
    (tmp_path / "a" / "10" / "model.plan").write_bytes(b"plan")
    (tmp_path / "a" / "notes").mkdir()
    config(tmp_path / "b", 'backend: "tensorrt"')
    config(tmp_path / "c", FOR["gpu"])
    newest, other = tensorrt_engines(tmp_path)
    assert newest.version == tmp_path / "a" / "10" and newest.has_plan and not newest.has_graph
    assert (newest.profile, newest.multiple) == ("16x16/512x512/4x1920x1920", 4)
    assert (other.profile, other.multiple, other.has_graph) == ("", 1, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "this server uses the CPU (no NVIDIA GPU (NVML: Driver Not Loaded)); "),
        (("--device", "cpu"), "this server uses the CPU (chosen with --device cpu); "),
        (("--docker",), "this server uses the CPU (no NVIDIA GPU (NVML: Driver Not Loaded)); "),
        (
            ("--device", "gpu"),
            "--device gpu: no NVIDIA GPU (NVML: Driver Not Loaded); use --device cpu or --device auto",
        ),
    ],
)
def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ([], "no NVIDIA GPU (NVML: Driver Not Loaded)"))
    config(tmp_path / "a", FOR["gpu"])
    result = CliRunner().invoke(app, ["-r", str(tmp_path), "--triton", str(tmp_path / "none"), *options])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "none").exists(), "it is refused before anything is installed"


@pytest.mark.parametrize(
    "name",
    [
        "my copy",
        "x$(touch${IFS}pwned)",
        "a;b",
        "a'b",
        'a"b',
        "a\\b",
        "mödel",
        "-a",
        "a&b",
        "a|b",
        "a\nb",
        "a\x1b[2J",
        "*",
    ],
)
def test_a_name_that_a_shell_would_read_is_named_and_the_others_are_served(tmp_path: Path, name: str) -> None:
    config(tmp_path / name, ONNX)
    config(tmp_path / "wave-2_b.v1", ONNX)
    found = read_repository(tmp_path)
    assert model_names(tmp_path) == list(found.configs) == ["wave-2_b.v1"]
    (line,) = found.faults.values()
    assert "rename the folder" in line and line.isprintable() and (name in line or not name.isprintable())
    with pytest.raises(ServerError, match=r"no model can be served: .*rename the folder"):
        (tmp_path / "wave-2_b.v1").rename(tmp_path / ".hidden")
        model_names(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("this is { no config", "cannot read {file}: 1:6"),
        ('instance_group { name: "x;touch pwned" }', "the name of an instance group in {file} is 'x;touch pwned'"),
        ('default_model_filename: "model.onnx $(id)"', "default_model_filename in {file} is 'model.onnx $(id)'"),
        ('name: "x$(id)"', "name in {file} is"),
        ('backend: "../x y"', "backend in {file} is"),
        ('runtime: "`id`"', "runtime in {file} is"),
        ('parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/a;id" } }', "EXECUTION_ENV_PATH in {file} is"),
    ],
)
def test_a_config_that_must_not_reach_triton_is_named(tmp_path: Path, text: str, words: str) -> None:
    config(tmp_path / "bad", text)
    config(
        tmp_path / "good",
        'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/e.tar" } }',
    )
    found = read_repository(tmp_path)
    assert list(found.configs) == ["good"]
    assert found.faults["bad"].startswith("bad is not served: " + words.format(file=tmp_path / "bad" / "config.pbtxt"))


@pytest.mark.parametrize("kind", ["folder", "fifo", "latin-1", "nowhere", "loop", "folder without rights"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    file = config(tmp_path / "bad", ONNX).parent / "config.pbtxt"
    config(tmp_path / "good", ONNX)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "latin-1":
        file.write_bytes(b'name: "b\xe9d"')
    elif kind in ("nowhere", "loop"):
        file.symlink_to(file if kind == "loop" else tmp_path / "none")
    elif os.getuid() == 0:
        pytest.skip("root reads everything")
    else:
        file.parent.chmod(0)
    found = read_repository(tmp_path)
    assert list(found.configs) == ["good"]
    assert found.faults["bad"].count("\n") == 0 and "is not served" in found.faults["bad"]
