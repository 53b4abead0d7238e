"""`nst-serve` on a machine with a GPU: a real Triton, our real backend, and libraries named as CUDA and TensorRT.

They compute on the CPU (`tests/fakes/gpu`), so that the whole way from a graph to an image can be seen everywhere.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nst_client import StyleClient
from nst_core.devices import Device
from nst_server.endpoints import Endpoints
from nst_server.installation.environment import site_packages
from nst_server.installation.triton import install_triton

from .serving import ROOT, TRITON, Server, run, succeeded

FAKES = ROOT / "tests" / "fakes" / "gpu"
GPU = 'Gpu(0, "NVIDIA Fake GPU", "GPU-0", "9.0", 80 << 30, "580.65.06", (13, 0))'

SERVE = f"""
import sys
from pathlib import Path
from nst_core import devices
from nst_core.devices import Gpu
from nst_server import cli, service
from nst_server.installation.triton import Installation
devices.gpus = lambda: ([{GPU}], "")
binary, variables, folder = eval(sys.argv.pop())
service.find_triton = lambda environment, say, device: Installation(binary, variables, Path(folder))
cli.app()
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of TensorRT without a plan, and an environment of the server that has TensorRT."""
    folder = tmp_path_factory.mktemp("machine")
    model(folder / "models" / "inverted")
    found = install_triton(TRITON, print, Device("cpu", "its Triton does for both"))
    assert found.folder is not None
    gpu = environment(folder / "gpu", found.folder.resolve())
    variables = {**found.environment, "PATH": f"{gpu}/bin:{os.environ['PATH']}", "NST_CACHE": str(folder / "cache")}
    (folder / "installation").write_text(repr((found.binary, variables, str(gpu))))
    return folder


def environment(folder: Path, cpu: Path) -> Path:
    """The packages of the environment `cpu` and the fakes; Triton's processes of models take no PYTHONPATH."""
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to((cpu / "bin" / name).resolve())
    shutil.copy(cpu / "pyvenv.cfg", folder / "pyvenv.cfg")
    (folder / "backends").symlink_to(cpu / "backends")
    packages = site_packages(folder)
    record = packages / "tensorrt_cu13-10.99.0.1.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Name: tensorrt-cu13\nVersion: 10.99.0.1\n")
    (packages / "others.pth").write_text(f"{FAKES}\n{site_packages(cpu)}\n")
    return folder


def model(folder: Path) -> None:
    """`stylized` is the negative of `image`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3]) for name in ("image", "stylized")
    ]
    white = helper.make_tensor("white", TensorProto.FLOAT, [], [255.0])
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["white", "pixels"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["stylized"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(nodes, "graph", tensors[:1], tensors[1:], [white])
    (folder / "1").mkdir(parents=True)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "1" / "model.onnx")
    parameters = {"styles": "inverted", "profile": "16x16/64x64/2x128x128", "multiple": "4", "min_side": "16"}
    (folder / "config.pbtxt").write_text(
        'backend: "tensorrt"\nmax_batch_size: 2\ninstance_group { kind: KIND_MODEL count: 1 }\n'
        'input { name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }\n'
        'output { name: "stylized" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }\n'
        + "".join(
            f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}\n'
            for key, value in parameters.items()
        )
    )


def serve(machine: Path) -> Server:
    endpoints = Endpoints.free()
    ports = [f"--{kind}-port={getattr(endpoints, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")]
    options = ["-r", str(machine / "models"), "--log", str(machine / "log"), *ports]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options, (machine / "installation").read_text()],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NST_CACHE": str(machine / "cache")},
    )
    server = Server(process, endpoints, [])

    def listen() -> None:
        assert process.stderr is not None
        with process.stderr:
            server.messages.extend(line.rstrip() for line in process.stderr)

    threading.Thread(target=listen, daemon=True).start()
    server.started(1)
    return server


def test_the_plan_is_built_once_and_the_model_is_served(machine: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    for start in ("first", "second"):
        server = serve(machine)
        try:
            with StyleClient(server.endpoints.grpc) as client:
                assert np.array_equal(client.stylize(image, "inverted"), 255 - image)
            status = run("nst-serve", "status", "--http-port", server.endpoints.http_port)
            succeeded(status)
            assert "device gpu: NVIDIA Fake GPU (compute capability 9.0)\ninverted version 1: ready" in status.stdout
        finally:
            assert server.stop() == 130
        assert server.messages[0] == "device gpu: NVIDIA Fake GPU (compute capability 9.0)"
        built = [line for line in server.messages if line.startswith("the TensorRT plan of inverted is in ")]
        assert len(built) == (1 if start == "first" else 0), server.messages
    (plan,) = (machine / "cache" / "plans").glob("*.plan")
    assert sorted(path.name for path in (machine / "models" / "inverted" / "1").iterdir()) == ["model.onnx"]
    assert plan.stat().st_size > 0
