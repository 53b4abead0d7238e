"""Read a model repository: its models, the device that they are for, and the plans that they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from nst_core.contract import Parameter
from nst_core.devices import Device
from nst_core.engines.plans import GRAPH, PLAN
from nst_core.errors import InputError
from nst_server.errors import ServerError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A model's name. It is part of file names and URLs, and Triton 2.51 puts it into a command line for bash."""

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
"""Placeholder that Triton replaces in `EXECUTION_ENV_PATH`."""

CPU, GPU = model_config_pb2.ModelInstanceGroup.KIND_CPU, model_config_pb2.ModelInstanceGroup.KIND_GPU


@dataclass(frozen=True)
class EngineFile:
    """The newest version of a `tensorrt` model, and the shapes that its plan is built for.

    `profile` is as `nst_core.engines.plans.Profile.parse` reads it, and empty if the config has none.
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
        """Whether the version has its own plan."""
        return (self.version / PLAN).is_file()


@dataclass(frozen=True)
class RepositoryContents:
    """The config of each model that can be served, and the fault of each of the others.

    A config is None if the model has none and Triton completes it from the graph.
    """

    configs: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def read_repository(repository: Path) -> RepositoryContents:
    """Read the config of every model of a repository; `ServerError` if it is missing or cannot be read.

    Folders whose names begin with a dot, and those without a config and a version, are not models.
    """
    try:
        folders = sorted(entry for entry in repository.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        if repository.is_dir():
            raise ServerError(f"cannot read the model repository {repository}: {error.strerror}") from error
        raise ServerError(
            f"{repository}: no such model repository; create it with nst export style.pth -r {repository}"
        ) from error
    contents = RepositoryContents()
    for folder in folders:
        try:
            if _is_model(folder):
                contents.configs[folder.name] = read_config(folder)
        except InputError as error:
            contents.faults[folder.name] = str(error)
        except OSError as error:
            contents.faults[folder.name] = f"{_shown(folder)} is not served: it cannot be read ({error.strerror})"
    return contents


def model_names(repository: Path) -> list[str]:
    """Return the names of the models that can be served; `ServerError` with the reason if there is none."""
    found = read_repository(repository)
    if found.configs:
        return list(found.configs)
    if found.faults:
        raise ServerError(f"{repository}: no model can be served: {'; '.join(found.faults.values())}")
    raise ServerError(f"{repository}: no models found; export one with nst export style.pth -r {repository}")


def check_device(repository: Path, device: Device, on_message: Callable[[str], None]) -> None:
    """Compare the device that the models were exported for with the server's.

    Raises `InputError` with both remedies if no model is for `device`. If some are, `on_message` receives the same line
    about the rest, and those that fit are served.
    """
    configs = read_repository(repository).configs
    others = [name for name, config in configs.items() if config and _exported_for(config) not in (None, device.kind)]
    if not others:
        return
    line = _mismatch([repository / name for name in others], device)
    if len(others) == len(configs):
        raise InputError(line)
    on_message(line)


def tensorrt_engines(repository: Path) -> list[EngineFile]:
    """Return the models that run on TensorRT plans, by their configs."""
    found = []
    for name, config in read_repository(repository).configs.items():
        newest = newest_version(repository / name)
        if config and config.backend == "tensorrt" and newest:
            parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
            multiple = parameters.get(Parameter.MULTIPLE, "")
            found.append(
                EngineFile(
                    name, newest, parameters.get(Parameter.PROFILE, ""), int(multiple) if multiple.isdigit() else 1
                )
            )
    return found


def newest_version(folder: Path) -> Path | None:
    """Return the folder of a model's newest version, which is served; None if it has no version."""
    versions = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    return max(versions, key=lambda entry: int(entry.name), default=None)


def read_config(folder: Path) -> Any:
    """Return a model's config, or None if it has none; `InputError` for a model that must not be served.

    Triton 2.51 starts the process of a model in its Python backend with an unquoted command line of bash that contains
    the model's name and some values of its config. A config that is not a file ends Triton.
    """
    if not NAME.fullmatch(folder.name):
        raise InputError(
            f"{_shown(folder)} is not served: rename the folder; use letters, digits, _, - and . only, and "
            "neither - nor . first"
        )
    file = folder / "config.pbtxt"
    if not file.exists() and not file.is_symlink():
        return None
    if file.exists() and not file.is_file():
        raise InputError(f"{folder.name} is not served: {file} is not a file")
    try:
        # A newer Triton than the client's has fields that the client does not know.
        config = text_format.Parse(file.read_text("utf-8"), model_config_pb2.ModelConfig(), allow_unknown_field=True)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{folder.name} is not served: cannot read {file}: {reason}") from error
    for what, value in _shell_words(config):
        if not re.fullmatch(r"[A-Za-z0-9_./-]*", value):
            raise InputError(
                f"{folder.name} is not served: {what} in {file} is {value!r}, but may have "
                "letters, digits, _, -, . and / only"
            )
    return config


def _is_model(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    return any(
        entry.name == "config.pbtxt" or (entry.name.isdecimal() and any(entry.glob("model.*"))) for entry in entries
    )


def _shell_words(config: Any) -> list[tuple[str, str]]:
    environment = (
        config.parameters["EXECUTION_ENV_PATH"].string_value if "EXECUTION_ENV_PATH" in config.parameters else ""
    )
    return [
        ("name", config.name),
        ("backend", config.backend),
        ("platform", config.platform),
        ("runtime", config.runtime),
        ("default_model_filename", config.default_model_filename),
        ("EXECUTION_ENV_PATH", environment.removeprefix(MODEL_DIRECTORY)),
    ] + [("the name of an instance group", group.name) for group in config.instance_group]


def _shown(folder: Path) -> str:
    """Format a path for a message; a name may contain line breaks and terminal codes."""
    return str(folder) if str(folder).isprintable() else ascii(str(folder))


def _exported_for(config: Any) -> Literal["cpu", "gpu"] | None:
    """Return the device of a config's instances; None for a model that runs on either.

    A CPU model beside others on a GPU is right unless it is ours: ours need ONNX Runtime with OpenVINO, which the GPU's
    environment lacks.
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
            f"{names} {was} exported for the GPU, but this server uses the CPU ({device.reason}); export {them} again "
            f"with nst export --device cpu, or serve {them} on a machine with a GPU (--device gpu)"
        )
    return (
        f"{names} {was} exported for the CPU, but this server uses the GPU ({device.reason}); export {them} again "
        f"with nst export --device gpu, or serve {them} with --device cpu"
    )
