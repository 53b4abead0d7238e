"""Ways to a model: Triton over gRPC or HTTP, or ONNX Runtime in this process.

A transport lists models, gives a model's config, and maps pixels to pixels. Each turns its
library's errors into ours.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from nst_client.errors import Rejected, ServiceError, TimedOut, Unreachable
from nst_core.errors import InputError, MissingExtra
from nst_core.images import Pixels

INPUT, STYLE_WEIGHTS, OUTPUT = "image", "style_weights", "stylized"
"""Contract 1's tensors: `uint8 [N, H, W, 3]`, `float32 [N, S]` of models of several styles, `uint8 [N, H, W, 3]`."""

Weights = npt.NDArray[np.float32]

Parameters = dict[str, str]


class Transport(Protocol):
    """What `StyleClient` needs of a server."""

    def models(self) -> list[str]:
        """Names of the models that are ready."""

    def parameters(self, model: str) -> Parameters:
        """The `parameters` of a model's config."""

    def infer(self, model: str, pixels: Pixels, weights: Weights | None = None) -> Pixels:
        """`uint8 [N, H, W, 3]` to the same; `weights` `[N, S]` of its styles for a model of several."""

    def close(self) -> None:
        """Give back what is held."""


def connect(url: str, timeout: float) -> Transport:
    """The transport of `grpc://host:port`, `http://host:port` or `local:FOLDER`.

    Raises `InputError` for any other URL. Nothing is sent yet.
    """
    if url.startswith("local:"):
        return Local(Path(url.removeprefix("local:")))
    scheme, separator, rest = url.partition("://")
    host = rest.rstrip("/")
    if separator and host and scheme in ("grpc", "http"):
        return Grpc(host, timeout) if scheme == "grpc" else Http(host, timeout)
    raise InputError(f"{url!r} is no address: use grpc://host:8001, http://host:8000 or local:model_repository")


class Grpc:
    """Triton's gRPC protocol."""

    def __init__(self, host: str, timeout: float) -> None:
        import tritonclient.grpc as triton

        self.address, self.timeout, self.triton = f"grpc://{host}", timeout, triton
        self.client = triton.InferenceServerClient(host)

    def models(self) -> list[str]:
        """See `Transport`."""
        with self._errors():
            index = self.client.get_model_repository_index(client_timeout=self.timeout)
            return [model.name for model in index.models if model.state == "READY"]

    def parameters(self, model: str) -> Parameters:
        """See `Transport`."""
        with self._errors():
            config = self.client.get_model_config(model, client_timeout=self.timeout).config
            return {name: entry.string_value for name, entry in config.parameters.items()}

    def infer(self, model: str, pixels: Pixels, weights: Weights | None = None) -> Pixels:
        """See `Transport`."""
        inputs = _inputs(self.triton.InferInput, pixels, weights)
        with self._errors():
            result = self.client.infer(
                model, inputs, outputs=[self.triton.InferRequestedOutput(OUTPUT)], client_timeout=self.timeout
            )
            return _checked(result.as_numpy(OUTPUT), pixels)

    def close(self) -> None:
        """See `Transport`."""
        self.client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            status = error.status() or ""
            if status.endswith("DEADLINE_EXCEEDED"):
                raise _too_slow(self.address, self.timeout) from error
            if status.endswith("UNAVAILABLE"):
                raise _nobody(self.address) from error
            raise Rejected(f"{self.address} answered: {error.message()}") from error


class Http:
    """Triton's HTTP protocol (KServe v2) with its binary extension."""

    def __init__(self, host: str, timeout: float) -> None:
        import tritonclient.http as triton

        self.address, self.timeout, self.triton = f"http://{host}", timeout, triton
        self.client = triton.InferenceServerClient(host, connection_timeout=timeout, network_timeout=timeout)

    def models(self) -> list[str]:
        """See `Transport`."""
        with self._errors():
            index = self.client.get_model_repository_index()
            return [model["name"] for model in index if model.get("state") == "READY"]

    def parameters(self, model: str) -> Parameters:
        """See `Transport`."""
        with self._errors():
            config = self.client.get_model_config(model)
            return {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}

    def infer(self, model: str, pixels: Pixels, weights: Weights | None = None) -> Pixels:
        """See `Transport`."""
        inputs = _inputs(self.triton.InferInput, pixels, weights)  # binary, as by default
        output = self.triton.InferRequestedOutput(OUTPUT, binary_data=True)
        with self._errors():
            return _checked(self.client.infer(model, inputs, outputs=[output]).as_numpy(OUTPUT), pixels)

    def close(self) -> None:
        """See `Transport`."""
        self.client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            raise Rejected(f"{self.address} answered: {error.message()}") from error
        except TimeoutError as error:
            raise _too_slow(self.address, self.timeout) from error
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                raise _too_slow(self.address, self.timeout) from error
            raise _nobody(self.address) from error
        except Exception as error:  # geventhttpclient's parser: the other side speaks no HTTP
            if type(error).__module__.startswith("geventhttpclient"):
                raise ServiceError(f"{self.address} does not speak HTTP: is it the gRPC port?") from error
            raise


class Local:
    """ONNX Runtime in this process, on the models of a repository: no server at all."""

    def __init__(self, repository: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtra("local", "onnxruntime") from error
        if not repository.is_dir():
            raise InputError(
                f"{repository}: no such model repository; make one with nst-export style.pth -r {repository}"
            )
        self.repository, self.onnxruntime = repository, onnxruntime
        self.sessions: dict[str, Any] = {}

    def models(self) -> list[str]:
        """See `Transport`."""
        return sorted(path.parent.name for path in self.repository.glob("*/config.pbtxt"))

    def parameters(self, model: str) -> Parameters:
        """See `Transport`."""
        return {name: entry.string_value for name, entry in self._config(model).parameters.items()}

    def infer(self, model: str, pixels: Pixels, weights: Weights | None = None) -> Pixels:
        """See `Transport`; through OpenVINO if the config asks for it and it is installed, else ONNX Runtime's own."""
        if model not in self.sessions:
            self.sessions[model] = self._session(model)
        feeds = {INPUT: pixels} if weights is None else {INPUT: pixels, STYLE_WEIGHTS: weights}
        return _checked(self.sessions[model].run([OUTPUT], feeds)[0], pixels)

    def close(self) -> None:
        """See `Transport`."""
        self.sessions.clear()

    def _config(self, model: str) -> model_config_pb2.ModelConfig:
        text = (self.repository / model / "config.pbtxt").read_text()
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    def _session(self, model: str) -> Any:
        versions = [path for path in (self.repository / model).glob("*") if path.name.isdigit()]
        if not versions:
            raise ServiceError(f"{self.repository / model} holds no version of the model")
        file = max(versions, key=lambda path: int(path.name)) / "model.onnx"
        config = self._config(model)
        threads = config.parameters["intra_op_thread_count"].string_value or str(os.cpu_count() or 1)
        options = self.onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(threads)
        provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
        wanted = [one.name for one in config.optimization.execution_accelerators.cpu_execution_accelerator]
        if "openvino" in wanted and "OpenVINOExecutionProvider" in self.onnxruntime.get_available_providers():
            provider = ("OpenVINOExecutionProvider", {"device_type": "CPU", "num_of_threads": threads})
        return self.onnxruntime.InferenceSession(str(file), options, providers=[provider])


def _inputs(make: Any, pixels: Pixels, weights: Weights | None) -> list[Any]:
    """Triton's input objects, made by the protocol's own `InferInput`."""
    given: list[tuple[str, npt.NDArray[Any], str]] = [(INPUT, pixels, "UINT8")]
    if weights is not None:
        given.append((STYLE_WEIGHTS, weights, "FP32"))
    inputs = []
    for name, values, kind in given:
        inputs.append(make(name, list(values.shape), kind))
        inputs[-1].set_data_from_numpy(values)
    return inputs


def _checked(answer: Any, pixels: Pixels) -> Pixels:
    if not isinstance(answer, np.ndarray) or answer.shape != pixels.shape or answer.dtype != np.uint8:
        got = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else "nothing"
        raise Rejected(f"the model answered {got} to uint8 {pixels.shape}: not a style model of contract 1")
    return answer


def _nobody(address: str) -> Unreachable:
    return Unreachable(f"no server answers at {address}; start one with nst-serve, or give its address with --url")


def _too_slow(address: str, timeout: float) -> TimedOut:
    return TimedOut(f"{address} did not answer within {timeout:g} s; allow more with --timeout")
