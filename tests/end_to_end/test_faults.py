"""What callers do to a real Triton: many at once, models taken away under them, and requests that mean harm."""

import asyncio
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tritonclient.grpc import service_pb2

from nst_client import StyleClient, TimedOut, Unavailable
from nst_core.files import state_folder
from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_server import state
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import install_triton
from nst_server.process.model_processes import model_processes
from nst_server.process.supervisor import run_triton, wait_for_failure
from nst_server.triton_command import Launch

from . import hostile
from .hostile import Hostile, chunked, http_request
from .serving import BIN, TRITON, Models, Server, alive, descendants, run, serve, settled, succeeded, triton_of

SEED = 20
HTTP_REQUESTS = 2000
GRPC_REQUESTS = 2000
AT_ONCE = 24
GROWTH = 1_000_000_000
"""Bytes that hostile requests may leave in the server's memory: the pools and stacks of its threads."""


@dataclass
class Shared:
    """A server of the models `starry` and `large`, whose repository is this module's own."""

    server: Server
    repository: Path
    models: Models

    @property
    def urls(self) -> list[str]:
        return [self.server.endpoints.grpc, self.server.endpoints.http]

    def processes(self) -> set[int]:
        return descendants(self.server.process.pid)

    def memory(self) -> int:
        """Bytes that Triton and its backend's processes hold; pages that they share count for each."""
        total = 0
        for pid in self.processes():
            with suppress(OSError, IndexError):  # a process that has ended, or that nobody has waited for yet
                fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")
                total += int(fields[1].split()[0]) * 1024
        return total

    def works(self) -> None:
        """A good request gets its right answer, over both protocols."""
        for url in self.urls:
            with StyleClient(url) as client:
                assert alike(client.stylize(CONTENT, "starry"), self.models.stylized(CONTENT[None])[0])


@pytest.fixture(scope="module")
def shared(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("faults")
    for name in ("starry", "large"):
        shutil.copytree(models.repository / name, folder / "repository" / name)
    server = serve(folder / "repository", folder / "triton.log")
    yield Shared(server, folder / "repository", models)
    offspring = descendants(server.process.pid)
    assert server.stop() == 130, server.messages
    assert not [pid for pid in offspring if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def unharmed(shared: Shared) -> Iterator[None]:
    """After the test the same processes run, they hold little more memory, and the next request works."""
    shared.works()
    deadline = time.monotonic() + 120
    while len(processes := settled(shared.processes)) != 3:  # that of a model which was replaced ends when it likes
        assert time.monotonic() < deadline, "not Triton and a process for each of the two models"
    memory = shared.memory()
    yield
    shared.works()
    assert settled(shared.processes) == processes, "a process of the server was replaced"
    assert shared.memory() - memory < GROWTH


def content(width: int, height: int, number: int = 0) -> Pixels:
    samples = sample_photographs()
    pixels = fit(open_image(samples[number % len(samples)]), width, height).pixels
    return np.roll(pixels, number, axis=0)


CONTENT = np.array(list(hostile.PIXELS), np.uint8).reshape(hostile.SHAPE[1:])


def alike(left: Pixels, right: Pixels) -> bool:
    """The same image; batches and threads may round a level the other way."""
    return left.shape == right.shape and bool(np.abs(left.astype(int) - right).max() <= 1)


def test_64_callers_at_once_each_get_their_own(shared: Shared) -> None:
    """Each a client of its own, half of them over HTTP, with images of four sizes that are all different."""
    contents = [content(40 + 8 * (number % 4), 50, number) for number in range(64)]
    assert len({image.tobytes() for image in contents}) == 64
    wanted = [shared.models.stylized(image[None])[0] for image in contents]
    together = threading.Barrier(64)
    failures: list[object] = []

    def call(number: int) -> None:
        try:
            with StyleClient(shared.urls[number % 2]) as client:
                together.wait(60)
                for _ in range(3):
                    if not alike(client.stylize(contents[number], "starry"), wanted[number]):
                        failures.append(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def knows_styles(client: StyleClient) -> bool:
    """Whether the server lists its styles within the client's timeout."""
    with suppress(TimedOut):
        return bool(client.styles())
    return False


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_answer_that_takes_too_long(shared: Shared, scheme: str) -> None:
    """The caller of a large image gives up; who waits behind it gets the answer to its own image."""
    url = getattr(shared.server.endpoints, scheme)
    large = np.tile(content(400, 300), (6, 6, 1))
    with StyleClient(url, timeout=0.1) as hasty, StyleClient(url) as patient:
        wait_for(lambda: knows_styles(hasty))  # the time is for the image alone
        with pytest.raises(TimedOut, match=r"within 0\.1 s; raise --timeout"):
            hasty.stylize(large, "starry")
        assert alike(patient.stylize(CONTENT, "starry"), shared.models.stylized(CONTENT[None])[0])


class Caller(threading.Thread):
    """Asks for one image after the other; counts the answers by the version that gives them, or by the error."""

    def __init__(self, url: str, versions: dict[str, Pixels], ended: threading.Event) -> None:
        super().__init__()
        self.url, self.versions, self.ended = url, versions, ended
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        with StyleClient(self.url, retries=0) as client:
            while not self.ended.is_set():
                try:
                    stylized = client.stylize(CONTENT, "starry")
                except Unavailable:
                    self.counts["unavailable"] += 1
                    time.sleep(0.01)
                except Exception as error:
                    self.counts[f"{type(error).__name__}: {error}"] += 1
                else:
                    names = [name for name, other in list(self.versions.items()) if alike(stylized, other)]
                    self.counts[names[0] if names else "nobody's"] += 1


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_model_unloaded_and_replaced_under_load(shared: Shared) -> None:
    """Callers who never pause and never retry: a right answer or `Unavailable`, and then the new version's answers."""
    folder = shared.repository / "starry"
    versions = {"old": shared.models.stylized(CONTENT[None])[0]}
    ended = threading.Event()
    callers = [Caller(url, versions, ended) for url in shared.urls * 2]

    def each_has(what: str) -> None:
        before = [caller.counts[what] for caller in callers]
        wait_for(lambda: all(caller.counts[what] > count + 2 for caller, count in zip(callers, before, strict=True)))

    def control(action: str) -> None:
        succeeded(run("nst-serve", action, "starry", "--http-port", shared.server.endpoints.http_port))

    for caller in callers:
        caller.start()
    try:
        each_has("old")
        control("unload")
        each_has("unavailable")
        control("load")
        each_has("old")
        (folder / "2").mkdir()
        publish_other_weights(folder / "1" / "model.onnx", folder / "2" / "model.onnx")
        with StyleClient(f"local:{shared.repository}") as local:
            versions["new"] = local.stylize(CONTENT, "starry")
        assert not alike(versions["old"], versions["new"])
        control("load")
        each_has("new")
        shutil.rmtree(folder / "2")
        control("load")
        each_has("old")
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    outcomes = set().union(*(caller.counts for caller in callers))
    assert outcomes == {"old", "unavailable", "new"}, outcomes
    shared.works()


def publish_other_weights(source: Path, target: Path) -> None:
    """A network of the same form that stylizes something else."""
    model = onnx.load(source)
    rng = np.random.default_rng(SEED)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim == 4:
            noisy = (values * rng.uniform(0.5, 1.5, values.shape)).astype(values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, target)


async def answer_to(request: Hostile, port: int, timeout_seconds: float = 0.2) -> bytes | None:
    """The whole answer; None where the server closes the connection, or rightly waits for more, until we do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.raw)
        async with asyncio.timeout(60 if request.whole else timeout_seconds):
            head = await reader.readuntil(b"\r\n\r\n")
            return head + await reader.readexactly(int(field(head, "content-length") or 0))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except TimeoutError:
        assert not request.whole, "no answer"
        return None
    finally:
        writer.close()


def field(head: bytes, name: str) -> str | None:
    """A field of an HTTP head."""
    found = re.search(rf"\r\n{name}: *([^\r]*)\r\n", head.decode("latin1"), re.IGNORECASE)
    return found and found[1]


def outcome(answer: bytes | None, stylized: Pixels) -> str:
    """What kind of answer it is; raises for one that is neither an error nor right."""
    if answer is None:
        return "none"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status != 200:
        assert 400 <= status < 600, head
        return "error" if b'"error"' in body else "error without a reason"
    start = int(field(head + b"\r\n", "inference-header-content-length") or len(body))
    (output,) = json.loads(body[:start])["outputs"]
    if output["datatype"] != "UINT8":
        return output["datatype"]
    values = np.array(output["data"], np.uint8) if "data" in output else np.frombuffer(body[start:], np.uint8)
    return outcome_of_pixels(values, output["shape"], stylized)


def outcome_of_pixels(values: Pixels, shape: list[int], stylized: Pixels) -> str:
    assert values.size == np.prod(shape)
    if shape != [1, *stylized.shape]:
        return "another shape"
    return "right" if alike(values.reshape(stylized.shape), stylized) else "another image"


def test_hostile_http(shared: Shared, unharmed: None) -> None:
    """Whole requests get an answer: an error with its reason, or what they asked for."""
    rng = random.Random(SEED)
    mutations = hostile.HTTP_MUTATIONS * (HTTP_REQUESTS // len(hostile.HTTP_MUTATIONS))
    rng.shuffle(mutations)
    stylized = shared.models.stylized(CONTENT[None])[0]
    kinds: Counter[str] = Counter()

    async def send(mutation: Callable[[random.Random], Hostile], gate: asyncio.Semaphore) -> None:
        async with gate:
            request = mutation(rng)
            try:
                kind = outcome(await answer_to(request, shared.server.endpoints.http_port), stylized)
                assert not request.whole or kind not in ("none", "error without a reason")
            except Exception as error:
                raise AssertionError(f"{mutation.__name__}: {request.raw[:2000]!r}") from error
            kinds[kind] += 1

    async def storm() -> None:
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for mutation in mutations:
                group.create_task(send(mutation, gate))

    asyncio.run(storm())
    assert kinds["error"] > HTTP_REQUESTS / 3
    assert kinds["right"] > 0 and kinds["another shape"] > 0


REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "RESOURCE_EXHAUSTED"}
"""What Triton says to a request that it does not run; the last where the reason itself is too long for gRPC."""

ANSWERED = {"right", "another image", "another shape", "BYTES"}
"""Another image where the pixels were others; BYTES where classes were asked for."""


def test_hostile_grpc(shared: Shared, unharmed: None) -> None:
    """Every request gets an answer: an error, or what it asked for."""
    rng = random.Random(SEED)
    mutations = hostile.GRPC_MUTATIONS * (GRPC_REQUESTS // len(hostile.GRPC_MUTATIONS))
    rng.shuffle(mutations)
    stylized = shared.models.stylized(CONTENT[None])[0]
    kinds: Counter[str] = Counter()
    with grpc.insecure_channel(shared.server.endpoints.grpc.removeprefix("grpc://")) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for start in range(0, len(mutations), AT_ONCE):
            requests = [mutation(rng) for mutation in mutations[start : start + AT_ONCE]]
            answers = [call.future(request, timeout=60) for request in requests]
            for request, answer in zip(requests, answers, strict=True):
                kind = grpc_outcome(answer, stylized)
                assert kind in REFUSED | ANSWERED, request[:2000]
                kinds[kind] += 1
    assert kinds["INVALID_ARGUMENT"] > GRPC_REQUESTS / 4
    assert kinds["right"] > 0 and kinds["another shape"] > 0


def grpc_outcome(answer: Any, stylized: Pixels) -> str:
    if answer.code() is not grpc.StatusCode.OK:
        return answer.code().name
    response = service_pb2.ModelInferResponse.FromString(answer.result())
    (output,) = response.outputs
    if output.datatype != "UINT8":
        return output.datatype
    return outcome_of_pixels(np.frombuffer(response.raw_output_contents[0], np.uint8), list(output.shape), stylized)


def test_requests_that_are_deep(shared: Shared, unharmed: None) -> None:
    """Brackets in brackets, and a body in very many chunks: both take stack, byte for byte."""
    deep = http_request(b'{"inputs":' + b"[" * 300_000, b"")
    data = http_request(b'{"inputs":[{"name":"image","data":' + b"[" * 300_000 + b"]" * 300_000 + b"}]}", b"")
    for raw in (deep, data, chunked([b" "] * 600_000)):
        answer = asyncio.run(answer_to(Hostile(raw), shared.server.endpoints.http_port))
        assert outcome(answer, CONTENT) == "error"


@pytest.fixture
def fragile(models: Models, tmp_path: Path) -> Iterator[Server]:
    """A server that a test may spoil."""
    shutil.copytree(models.repository / "starry", tmp_path / "repository" / "starry")
    server = serve(tmp_path / "repository", tmp_path / "triton.log")
    yield server
    if server.process.poll() is None:
        server.stop()


def by_http(server: Server, shape: list[int], data: list[int] | None = None) -> None:
    document: Any = copy.deepcopy(hostile.DOCUMENT)
    document["inputs"][0]["shape"] = shape
    if data is not None:
        document["inputs"][0]["data"] = data
        del document["inputs"][0]["parameters"]
    raw = http_request(json.dumps(document).encode(), b"" if data else hostile.PIXELS)
    asyncio.run(answer_to(Hostile(raw, whole=False), server.endpoints.http_port, timeout_seconds=15))


def by_grpc(server: Server, shape: list[int]) -> None:
    request = hostile.message()
    request.inputs[0].shape[:] = shape
    with grpc.insecure_channel(server.endpoints.grpc.removeprefix("grpc://")) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with suppress(grpc.RpcError):
            call(request.SerializeToString(), timeout=5)


DEAD_STUB = "the process of starry in Triton has died"
DEAD_TRITON = "Triton ended by itself with exit status -6"


def fragile_log(server: Server) -> str:
    found = state.read(state_folder(), server.endpoints.http_port)
    assert found is not None
    return found.log


def stubs_of(server: Server) -> set[int]:
    """The processes of models."""
    found = set()
    for pid in descendants(server.process.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("triton_python"):
                found.add(pid)
    return found


@pytest.mark.parametrize(
    ("send", "arguments", "reason"),
    [
        pytest.param(by_grpc, [[1, -20, -24, 3]], DEAD_STUB, id="negative axes by gRPC"),
        pytest.param(by_http, [[1, 2**63 + 20, 24, 3]], DEAD_STUB, id="negative axes by HTTP"),
        pytest.param(by_http, [[1, 2**31, 2**31, 3], [1, 2, 3]], DEAD_TRITON, id="many numbers declared, few sent"),
    ],
)
def test_shapes_that_triton_does_not_check(
    fragile: Server, models: Models, send: Callable[..., None], arguments: list[Any], reason: str
) -> None:
    """They end Triton or the model's process; the next good request works after the pauses of a client's retries."""
    before = descendants(fragile.process.pid)
    send(fragile, *arguments)  # and wait for its answer, or for the end of what should have made it
    for url in (fragile.endpoints.grpc, fragile.endpoints.http):
        with StyleClient(url, retries=10) as client:
            assert alike(client.stylize(CONTENT, "starry"), models.stylized(CONTENT[None])[0])
    assert [line for line in fragile.messages if "restarting" in line] == [
        f"{reason} (log: {fragile_log(fragile)}); restarting in 0.5 s"
    ]
    fragile.started(2)
    assert not alive(before)


def test_a_process_that_died_before_it_was_looked_at(models: Models, tmp_path: Path) -> None:
    """It is named as the model that is served without a process."""
    for name in ("starry", "large"):
        shutil.copytree(models.repository / name, tmp_path / "repository" / name)
    launch = Launch(tmp_path / "repository", Endpoints.free())
    installation = install_triton(TRITON)
    with run_triton(installation, launch.repository, launch.endpoints, tmp_path / "log") as process:
        (stub,) = (pid for pid, name in model_processes(process.pid).items() if name == "starry")
        os.kill(stub, signal.SIGKILL)
        wait_for(lambda: not model_processes(process.pid)[stub])
        assert wait_for_failure(process, launch, print) == DEAD_STUB


def test_an_unload_is_no_failure(fragile: Server) -> None:
    """A model's process that ends on purpose is no failure."""
    for action in ("unload", "load", "unload", "load"):
        succeeded(run("nst-serve", action, "starry", "--http-port", fragile.endpoints.http_port))
    with StyleClient(fragile.endpoints.grpc) as client:
        client.stylize(CONTENT, "starry")
    assert not [line for line in fragile.messages if "restarting" in line]


def test_a_process_that_dies_while_its_model_is_loaded(fragile: Server, models: Models, tmp_path: Path) -> None:
    """That load does not end; the other model is served, and watched."""
    shutil.copytree(models.repository / "large", tmp_path / "repository" / "large")
    first = stubs_of(fragile)
    ended = "the process of large ended during loading, and Triton still waits for it;"

    def killed_in_time() -> bool:
        """Kill each new process: the first, which completes the model's config, may have done its work already."""
        for stub in stubs_of(fragile) - first:
            with suppress(ProcessLookupError):
                os.kill(stub, signal.SIGKILL)
        return fragile.messages[-1].startswith(ended)

    loading = subprocess.Popen([BIN / "nst-serve", "load", "large", "--http-port", str(fragile.endpoints.http_port)])
    try:
        wait_for(killed_in_time)
        with StyleClient(fragile.endpoints.grpc) as client:
            assert alike(client.stylize(CONTENT, "starry"), models.stylized(CONTENT[None])[0])
        os.kill(first.pop(), signal.SIGKILL)
        fragile.started(2)
        assert f"{DEAD_STUB} (log: " in fragile.messages[-2]
        assert "large" in fragile.messages[-1], "which loads by now"
    finally:
        loading.kill()
        loading.wait()


def test_the_end_of_a_server_whose_triton_is_being_started_again(fragile: Server) -> None:
    """SIGTERM after Triton's death, before there is another: nothing is left."""
    os.kill(triton_of(fragile), signal.SIGKILL)
    wait_for(lambda: any("restarting" in line for line in fragile.messages))
    assert fragile.stop(signal.SIGTERM) == 130
    assert fragile.messages[-1] == "stopped"
    assert not state.read(state_folder(), fragile.endpoints.http_port)
