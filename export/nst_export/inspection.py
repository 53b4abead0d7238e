"""Describe what is in a model repository, as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, helper

from nst_core.contract import STATISTICS
from nst_core.engines import plans
from nst_core.errors import InputError
from nst_export.gpu_engine import REFERENCE
from nst_export.graph.conversion import input_specs, output_spec
from nst_export.report import REPORT_NAME, read_report
from nst_export.repository.publishing import versions
from nst_export.verification.cpu import open_session
from nst_export.verification.examples import example_feeds, round_up_to_grid


def find_versions(path: Path) -> list[Path]:
    """Return the newest version of every model at `path`, or `path` itself if it is a version or an ONNX file.

    Raises `InputError` for anything else.
    """
    if path.suffix == ".onnx" and path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such model repository, model or ONNX file; create it with nst export style.pth")
    if path.name.isdigit() and any(path.iterdir()):
        return [path]
    models = [path] if versions(path) else [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    newest = [model / str(versions(model)[-1]) for model in models if versions(model)]
    if not newest:
        raise InputError(f"{path} has no published model; create one with nst export style.pth -r {path}")
    return newest


def describe(path: Path, size: int) -> Iterator[str]:
    """Yield lines about a version of a model, or an ONNX file; FLOP are counted for `size` x `size` pixels."""
    folder = path if path.is_dir() else None
    graphs = [path] if folder is None else [folder / name for name in (plans.GRAPH, REFERENCE)]
    graph = next((file for file in graphs if file.is_file()), None)
    yield str(path)
    if folder:
        for file in sorted(folder.iterdir()):
            yield f"  {file.name}: {file.stat().st_size / 1e6:.2f} MB"
    if graph:
        yield from _describe_graph(graph, size)
    report = (folder or path.parent) / REPORT_NAME
    if not report.is_file():
        yield f"  verification: no {REPORT_NAME} in the folder"
        return
    try:
        yield from _describe_report(read_report(report))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{report} is damaged, or of another version of nst; export the model again") from error


def _describe_graph(path: Path, size: int) -> Iterator[str]:
    yield f"  graph of {path.name}:"
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX file, or damaged; export the model again") from error
    for direction, specs in (("in", input_specs(proto)), ("out", [output_spec(proto)])):
        yield from (f"  {direction}: {spec.shown()}" for spec in specs)
    constants = proto.graph.initializer
    kinds = Counter(onnx.TensorProto.DataType.Name(constant.data_type) for constant in constants)
    numbers = sum(int(np.prod(constant.dims)) for constant in constants)
    yield f"  constants: {numbers:,} numbers in {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
    operators = Counter(node.op_type for node in proto.graph.node)
    yield f"  operators: {', '.join(f'{count} {name}' for name, count in operators.most_common())}"
    opset = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in proto.opset_import)
    yield f"  opset {opset}, IR {proto.ir_version}"
    yield f"  arithmetic: {arithmetic(proto, size) / 1e9:.1f} GFLOP for {size} x {size} pixels (convolutions)"
    yield f"  metadata: {'; '.join(f'{entry.key} {entry.value}' for entry in proto.metadata_props)}"


def arithmetic(proto: ModelProto, size: int) -> int:
    """Count the multiplications and additions of the convolutions for an image of `size` x `size` pixels.

    It runs the graph with the shapes of its convolutions' results as outputs, so it includes what a rewrite adds or
    saves.
    """
    kernels = {constant.name: list(constant.dims) for constant in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    counted = ModelProto.FromString(proto.SerializeToString())
    del counted.graph.output[:]
    for node in convolutions:
        name = f"{node.output[0]}_shape"
        counted.graph.node.append(helper.make_node("Shape", [node.output[0]], [name]))
        counted.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [4]))
    multiple = next((int(entry.value) for entry in proto.metadata_props if entry.key == "multiple"), 1)
    shape = round_up_to_grid((1, size, size), multiple)
    inputs = input_specs(proto)
    feeds = example_feeds([spec for spec in inputs if spec.name != STATISTICS], [shape])[0]
    feeds |= {spec.name: np.ones((1, int(spec.axes[1])), np.float32) for spec in inputs if spec.name == STATISTICS}
    shapes = open_session(counted.SerializeToString(), "CPUExecutionProvider").run(None, feeds)
    pairs = zip(convolutions, shapes, strict=True)
    return sum(2 * int(np.prod(result)) * int(np.prod(kernels[node.input[1]][1:])) for node, result in pairs)


def _describe_report(document: dict[str, Any]) -> Iterator[str]:
    """Yield how the version was made and verified."""
    source, rewrites = document["checkpoint"], document["rewrites"]
    yield f"  exported {document['date']} from {source['file']} (SHA-256 {source['sha256'][:16]}…)"
    changed = ", ".join(f"{name} {count}x" for name, count in rewrites.items() if count) or "none"
    yield f"  target {document['target']}, {document['precision']}, for {document['for']}; rewrites: {changed}"
    yield f"  with {', '.join(f'{name} {version}' for name, version in document['versions'].items())}"
    if engine := document["engine"]:
        capabilities = f" for {', '.join(engine['compute_capabilities'])}" if engine["compute_capabilities"] else ""
        library = f"{engine['library']}, " if engine["library"] else ""
        yield f"  engine{capabilities}: {library}shapes {engine['profile']}: {engine['status']}"
    yield from _describe_checks(document["checks"], document["tolerance"])


def _describe_checks(checks: list[dict[str, Any]], tolerance: dict[str, Any]) -> Iterator[str]:
    allowed = f"{tolerance['max_difference']} of 255" + (f", {tolerance['psnr']:g} dB" if tolerance["psnr"] else "")
    for engine in dict.fromkeys(check["engine"] for check in checks):
        own = [check for check in checks if check["engine"] == engine]
        judged = [check for check in own if check["judged"]]
        maximum = max(check["max_difference"] for check in judged)
        minimum = min((check["psnr"] for check in judged if check["psnr"] is not None), default=None)
        psnr = "identical" if minimum is None else f"PSNR at least {minimum:.1f} dB"
        yield (
            f"  verified on {engine}: {len(own)} shapes, maximum difference {maximum} of 255, {psnr} "
            f"(allowed: {allowed})"
        )
