"""The reference tables hold what the code reads and writes: a new name without a row fails."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nst_core import contract
from nst_server.triton_command import ALLOCATOR_VARIABLES

from ..deploy.queries import queries, series
from .pages import ROOT

SOURCES = ("core", "trainer", "export", "server", "client", "apps", "benchmarks")
BACKENDS = ROOT / "server" / "nst_server" / "backends"

BETWEEN_OWN_PROCESSES = {"PEER_MODEL", "PEER_THREADS"}
"""Variables by which a benchmark tells its own workers what to run."""

READ_BY_LIBRARIES = {"HOME", "XDG_STATE_HOME", "COLUMNS", "HTTP_PROXY"}
"""Variables on the page that a library reads for nst, or whose name is computed."""

VALUES = {"NONE", "ERROR", "CRITICAL", "PCI_BUS_ID"}
"""What variables are set to."""


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text()


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def constants(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named(path: Path, name: str) -> ast.AST:
    """The value of a module's constant."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return node.value
    raise AssertionError(f"{path} has no {name}")


def keys(path: Path, name: str) -> set[str]:
    """The strings of a set, or the keys of a dictionary."""
    value = named(path, name)
    if isinstance(value, ast.Dict):
        return {name for key in value.keys if key for name in constants(key)}
    return set(constants(value))


def variables_of_python() -> set[str]:
    patterns = (
        r"environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*\"(\w+)\"",
        r"\"(\w+)\" (?:not )?in os\.environ",
        r"envvar=\"(\w+)\"",
        r"default_variable\(\"(\w+)\"",
        r"\"(\w+_(?:proxy|PROXY))\"",
        r"\"((?:RAY|UV)_[A-Z_]+)\": ",
    )
    found = {variable for folder in SOURCES for path in (ROOT / folder).rglob("*.py") for pattern in patterns
             for variable in re.findall(pattern, path.read_text())}  # fmt: skip
    return found - BETWEEN_OWN_PROCESSES


def variables_of_deploy() -> set[str]:
    texts = [(ROOT / "deploy" / name).read_text() for name in ("compose.yaml", "triton.sh")]
    return {variable for text in texts for variable in re.findall(r"\$\{?([A-Z][A-Z_]+)\b", text)}


VARIABLES = {*contract.Variable, *variables_of_python(), *variables_of_deploy(), *ALLOCATOR_VARIABLES}


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_every_environment_variable_has_a_row(name: str) -> None:
    assert name in quoted(page("environment-variables"))


def test_the_page_names_no_other_environment_variable() -> None:
    shown = {name for name in quoted(page("environment-variables")) if re.fullmatch(r"[A-Z][A-Z_]{3,}", name)}
    assert shown - READ_BY_LIBRARIES - VALUES <= VARIABLES


def given_to(call: str, tree: ast.AST) -> Iterable[str]:
    """The parameters that a backend asks for by name: `call(parameters, "name", ...)` or `call("name", ...)`."""
    return re.findall(rf"{call}\((?:parameters, )?\"([\w.]+)\"", ast.unparse(tree).replace("'", '"'))


def parameters_of_backends() -> set[str]:
    settings = BACKENDS / "onnxruntime" / "session_settings.py"
    tree = ast.parse(settings.read_text())
    found = {"precision_mode", *given_to("number", tree), *given_to(r"parameters\.get", tree)}
    for name in ("OPENVINO", "TENSORRT", "TENSORRT_BOOLEANS", "CUDA", "CUDA_PARAMETERS"):
        found |= keys(settings, name)
    found |= set(re.findall(r"\bname = \"([\w.]+)\"", settings.read_text()))
    return found


def parameters_of_the_exporter() -> set[str]:
    text = (ROOT / "export" / "nst_export" / "repository" / "model_config.py").read_text()
    written = re.findall(
        r"parameters\[\"(\w+)\"\]|^        \"(\w+)\": |parameters = \{\"(\w+)\": [^,]*, \"(\w+)\"", text, re.M
    )
    return {name for names in written for name in names if name}


PARAMETERS = {*contract.Parameter, *parameters_of_backends(), *parameters_of_the_exporter()}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_every_config_parameter_has_a_row(name: str) -> None:
    assert name in quoted(page("config-parameters"))


def test_the_tables_name_no_other_config_parameter() -> None:
    rows = re.findall(r"^\| parameter \|.*\n\|[-| ]+\n((?:\|.*\n)+)", page("config-parameters"), re.MULTILINE)
    shown = {name for table in rows for row in table.splitlines() for name in quoted(row.split("|")[1])}
    assert shown and shown <= PARAMETERS


def test_the_parameters_were_found() -> None:
    some = {"precision", "intra_op_thread_count", "cudnn_conv_algo_search", "trt_engine_cache_enable", "execution_mode"}
    assert some | {"memory.enable_memory_arena_shrinkage", "num_streams", "use_tf32"} <= PARAMETERS


@pytest.mark.parametrize("purpose", contract.Purpose)
def test_every_purpose_is_named(purpose: str) -> None:
    assert purpose in quoted(page("config-parameters"))


@pytest.mark.parametrize("name", ["IMAGE", "STYLE_WEIGHTS", "STATISTICS", "STYLIZED", "TEXTURE", "TOKEN_HEADER"])
def test_every_tensor_and_header_is_described(name: str) -> None:
    assert getattr(contract, name) in quoted(page("served-model"))


def test_every_metric_has_a_row() -> None:
    own = set(re.findall(r"\"(nst_\w+)\"", "".join(path.read_text() for path in BACKENDS.rglob("*.py"))))
    read = {re.sub(r"^(nst_\w+)_(bucket|sum|count)$", r"\1", name) for query in queries() for name, _ in series(query)}
    assert own and read
    assert own | {name for name in read if name.startswith(("nst_", "nv_"))} <= quoted(page("metrics"))
