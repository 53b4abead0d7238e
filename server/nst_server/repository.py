"""What a model repository asks of the server: its models, the device they are for, the plans they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.devices import Device
from nst_core.engines.plans import GRAPH, PLAN
from nst_core.errors import InputError
from nst_server.errors import ServerError

CPU, GPU = model_config_pb2.ModelInstanceGroup.KIND_CPU, model_config_pb2.ModelInstanceGroup.KIND_GPU


@dataclass(frozen=True)
class Engine:
    """The newest version of a model of the backend `tensorrt`, and the shapes that its plan is built for.

    `profile` is as `nst_core.engines.plans.Profile.parse` reads it, and empty where the config gives none.
    """

    model: str
    version: Path
    profile: str
    multiple: int

    @property
    def has_graph(self) -> bool:
        """Whether a plan can be built."""
        return bool(self.profile) and (self.version / GRAPH).is_file()

    @property
    def has_plan(self) -> bool:
        """Whether the version has a plan of its own."""
        return (self.version / PLAN).is_file()


def models(repository: Path) -> list[str]:
    """Names of the models in a repository; `ServerError` if it is missing or empty."""
    if not repository.is_dir():
        raise ServerError(f"{repository}: no such model repository; make one with nst-export style.pth -r {repository}")
    names = sorted(
        folder.name
        for folder in repository.iterdir()
        if (folder / "config.pbtxt").is_file() or any(folder.glob("[0-9]*/model.*"))
    )
    if not names:
        raise ServerError(f"{repository}: no model in it; export one with nst-export style.pth -r {repository}")
    return names


def check_device(repository: Path, device: Device, say: Callable[[str], None]) -> None:
    """Compare the device that the models are exported for with the server's.

    Raises `InputError` with both ways out if none of them is for `device`; `say` is told the same of some of them,
    and the others are served.
    """
    names = models(repository)
    configs = _configs(repository, names)
    others = [name for name, config in configs.items() if _exported_for(config) not in (None, device.kind)]
    if not others:
        return
    line = _mismatch([repository / name for name in others], device)
    if len(others) == len(names):
        raise InputError(line)
    say(line)


def tensorrt_engines(repository: Path) -> list[Engine]:
    """The models that run on TensorRT plans, by their configs."""
    found = []
    for name, config in _configs(repository, models(repository)).items():
        versions = [folder for folder in (repository / name).iterdir() if folder.name.isdigit()]
        if config.backend == "tensorrt" and versions:
            parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
            multiple = parameters.get("multiple", "")
            newest = max(versions, key=lambda folder: int(folder.name))
            found.append(
                Engine(name, newest, parameters.get("profile", ""), int(multiple) if multiple.isdigit() else 1)
            )
    return found


def _configs(repository: Path, names: list[str]) -> dict[str, Any]:
    """The configs that are there and can be read; of the others Triton itself says what is wrong."""
    return dict(_read(repository, names))


def _read(repository: Path, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        try:
            text = (repository / name / "config.pbtxt").read_text()
            # A newer Triton than the client's has fields that the client does not know.
            yield name, text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=True)
        except (OSError, UnicodeDecodeError, text_format.ParseError):
            continue


def _exported_for(config: Any) -> Literal["cpu", "gpu"] | None:
    """The device of a config's instances; None for a model that goes with either.

    A model for the CPU beside others on a GPU is right unless it is ours: those run on ONNX Runtime with OpenVINO,
    which the GPU's environment has not.
    """
    kinds = {group.kind for group in config.instance_group}
    if GPU in kinds:
        return "gpu"
    backend = config.backend or config.platform.partition("_")[0]
    return "cpu" if kinds == {CPU} and backend == "onnxruntime" else None


def _mismatch(folders: list[Path], device: Device) -> str:
    names = ", ".join(map(str, folders))
    was, them = ("was", "it") if len(folders) == 1 else ("were", "them")
    if device.kind == "cpu":
        return (
            f"{names} {was} exported for the GPU, and this server uses the CPU ({device.reason}): export {them} again "
            f"with nst-export --device cpu, or serve {them} on a machine with a GPU (--device gpu)"
        )
    return (
        f"{names} {was} exported for the CPU, and this server uses the GPU ({device.reason}): export {them} again "
        f"with nst-export --device gpu, or serve {them} with --device cpu"
    )
