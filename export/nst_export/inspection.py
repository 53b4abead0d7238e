"""What is in a model repository, as lines for a person."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package
from google.protobuf.message import DecodeError
from onnx import ModelProto, helper

from nst_core.errors import InputError
from nst_export import conversion as onnx
from nst_export import repository
from nst_export import verification as verify
from nst_export.modules import STATISTICS


def find(path: Path) -> list[Path]:
    """The newest version of every model that `path` holds, or `path` itself; raises `InputError` for anything else."""
    if path.suffix == ".onnx" and path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such model repository, model or ONNX file")
    if path.name.isdigit() and any(path.iterdir()):
        return [path]
    models = [path] if repository.versions(path) else [one for one in sorted(path.iterdir()) if one.is_dir()]
    newest = [one / str(repository.versions(one)[-1]) for one in models if repository.versions(one)]
    if not newest:
        raise InputError(f"{path}: nothing published in it; nst-export style.pth -r {path} does that")
    return newest


def describe(path: Path, size: int) -> Iterator[str]:
    """Lines about one version of a model, or an ONNX file; `size` is the side that arithmetic is counted for."""
    folder = path if path.is_dir() else None
    graphs = [path] if folder is None else [folder / name for name in ("model.onnx", "reference.onnx")]
    graph = next((one for one in graphs if one.is_file()), None)
    yield str(path)
    if folder:
        for file in sorted(folder.iterdir()):
            yield f"  {file.name}: {file.stat().st_size / 1e6:.2f} MB"
    if graph:
        yield from _graph(graph, size)
    report = (folder or path.parent) / "verification.json"
    if not report.is_file():
        yield "  verification: none beside it"
        return
    try:
        yield from _made(json.loads(report.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{report}: damaged, or not of this nst-export: export the model again") from error


def _graph(path: Path, size: int) -> Iterator[str]:
    yield f"  graph of {path.name}:"
    try:
        proto = onnx_package.load(path)
    except DecodeError as error:
        raise InputError(f"{path}: no ONNX file, or a damaged one") from error
    for direction, specs in (("in", onnx.tensors(proto)), ("out", [onnx.output(proto)])):
        yield from (f"  {direction}: {spec.shown()}" for spec in specs)
    kinds = Counter(onnx_package.TensorProto.DataType.Name(one.data_type) for one in proto.graph.initializer)
    numbers = sum(int(np.prod(one.dims)) for one in proto.graph.initializer)
    yield f"  constants: {numbers:,} numbers in {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
    operators = Counter(node.op_type for node in proto.graph.node)
    yield f"  operators: {', '.join(f'{count} {name}' for name, count in operators.most_common())}"
    opset = ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in proto.opset_import)
    yield f"  opset {opset}, IR {proto.ir_version}"
    yield f"  arithmetic: {arithmetic(proto, size) / 1e9:.1f} GFLOP for {size} x {size} pixels (convolutions)"
    yield f"  says of itself: {'; '.join(f'{one.key} {one.value}' for one in proto.metadata_props)}"


def arithmetic(proto: ModelProto, size: int) -> int:
    """Multiplications and additions of the convolutions for one picture of `size`^2 pixels.

    Found by running the graph with the shapes of its convolutions' results as outputs, so that what a rewrite
    adds or saves is counted.
    """
    kernels = {one.name: list(one.dims) for one in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    counted = ModelProto.FromString(proto.SerializeToString())
    del counted.graph.output[:]
    for node in convolutions:
        name = f"{node.output[0]}_shape"
        counted.graph.node.append(helper.make_node("Shape", [node.output[0]], [name]))
        counted.graph.output.append(helper.make_tensor_value_info(name, onnx_package.TensorProto.INT64, [4]))
    multiple = next((int(one.value) for one in proto.metadata_props if one.key == "multiple"), 1)
    shape = verify.on_grid((1, size, size), multiple)
    inputs = onnx.tensors(proto)
    feeds = verify.examples([spec for spec in inputs if spec.name != STATISTICS], [shape])[0]
    feeds |= {spec.name: np.ones((1, int(spec.axes[1])), np.float32) for spec in inputs if spec.name == STATISTICS}
    shapes = verify.session(counted.SerializeToString(), "CPUExecutionProvider").run(None, feeds)
    pairs = zip(convolutions, shapes, strict=True)
    return sum(2 * int(np.prod(result)) * int(np.prod(kernels[node.input[1]][1:])) for node, result in pairs)


def _made(document: dict[str, Any]) -> Iterator[str]:
    """How it was made, and what the gate found."""
    source, rewrites = document["checkpoint"], document["rewrites"]
    yield f"  made {document['date']} of {source['file']} (SHA-256 {source['sha256'][:16]}…)"
    changed = ", ".join(f"{name} {count}x" for name, count in rewrites.items() if count) or "none"
    yield f"  target {document['target']}, {document['precision']}, for {document['for']}; rewrites: {changed}"
    yield f"  with {', '.join(f'{name} {version}' for name, version in document['versions'].items())}"
    if engine := document["engine"]:
        capabilities = f" for {', '.join(engine['compute_capabilities'])}" if engine["compute_capabilities"] else ""
        library = f"{engine['library']}, " if engine["library"] else ""
        yield f"  engine{capabilities}: {library}shapes {engine['profile']}: {engine['status']}"
    yield from _gate(document["checks"], document["limits"])


def _gate(checks: list[dict[str, Any]], limits: dict[str, Any]) -> Iterator[str]:
    allowed = f"{limits['levels']} of 255" + (f", {limits['psnr']:g} dB" if limits["psnr"] else "")
    for engine in dict.fromkeys(one["engine"] for one in checks):
        own = [one for one in checks if one["engine"] == engine]
        judged = [one for one in own if one.get("judged", True)]  # older documents have none that is not
        worst = max(one["maximum"] for one in judged)
        least = min((one["psnr"] for one in judged if one["psnr"] is not None), default=None)
        psnr = "the same" if least is None else f"at least {least:.1f} dB"
        yield f"  verified on {engine}: {len(own)} shapes, at most {worst} of 255, {psnr} (allowed: {allowed})"
