"""Results reuse the memory of earlier results, and never memory that somebody still looks at."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from nst_client import MockTransport, StyleClient
from nst_client.transports import buffers
from nst_client.transports.buffers import BufferPool, size_class
from nst_client.transports.triton.grpc_messages import decoded, encoded, outputs
from nst_client.transports.triton.tensors import array_of

SHAPE = (1, 512, 512, 3)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    first = buffers.empty(SHAPE, pool=pool)
    place, view = address(first), first[0, 8:, ::2]
    seen = memoryview(first)
    first[:] = 7
    assert first.flags.writeable and first.flags.c_contiguous and first.flags.aligned
    del first
    second = buffers.empty(SHAPE, pool=pool)
    assert address(second) != place
    second[:] = 8
    assert (view == 7).all()
    del view
    assert address(buffers.empty(SHAPE, pool=pool)) != place, "a memoryview holds it"
    assert seen[0, 0, 0, 0] == 7
    del seen
    assert address(buffers.empty(SHAPE, pool=pool)) == place


def test_memory_of_one_size_class_serves_its_sizes_and_types() -> None:
    pool = BufferPool()
    array = buffers.empty((1, 400, 400, 3), pool=pool)
    place = address(array)
    del array
    other = buffers.empty((1, 398, 401, 3), pool=pool)
    assert address(other) == place
    del other
    numbers = buffers.empty((120_000,), np.float32, pool=pool)
    assert address(numbers) == place
    assert numbers.dtype == np.float32
    assert address(buffers.empty((1, 800, 800, 3), pool=pool)) != place


def test_what_waits_is_bounded() -> None:
    size = size_class(int(np.prod(SHAPE)))
    pool = BufferPool(limit=3 * size)
    arrays = [buffers.empty(SHAPE, pool=pool) for _ in range(10)]
    assert pool.held == 0
    last = address(arrays[-1])
    del arrays
    assert pool.held == 3 * size
    large = buffers.empty((4, *SHAPE[1:]), pool=pool)
    del large
    assert pool.held <= 3 * size
    assert last


def test_small_arrays_are_ordinary() -> None:
    array = buffers.empty((10, 10))
    assert array.base is None


def test_a_block_that_comes_back_in_the_middle_of_a_call_or_a_fork_is_let_go() -> None:
    """Nobody waits for the pool's lock: its holder may be in this thread, or was in the parent's."""
    pool = BufferPool()
    array = buffers.empty(SHAPE, pool=pool)
    with pool.lock:
        del array
        gc.collect()
        other = buffers.empty(SHAPE, pool=pool)
    assert pool.held == 0
    del other
    assert pool.held > 0


def test_threads_never_share_memory() -> None:
    pool, wrong = BufferPool(), []

    def work(number: int) -> None:
        for step in range(200):
            array = buffers.empty((1, 256, 256 + 64 * (step % 3), 3), pool=pool)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_few_classes_hold_all_sizes() -> None:
    classes = {size_class(size) for size in range(1, 4_000_000, 1000)}
    assert len(classes) < 80
    for size in (1, 4096, 4097, 1_572_864, 123_456_789):
        assert size <= size_class(size) <= max(4096, size * 9 / 8 + 4096)
        assert size_class(size) % 4096 == 0


def test_a_batch_in_several_requests_is_put_together_in_one_array() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (5, 200, 300, 3), dtype=np.uint8)
    transport = MockTransport(lambda request: 255 - request.inputs["image"], {"style": {"max_pixels": "130000"}})
    stylized = StyleClient(transport=transport).stylize(batch, "style")
    assert [len(request.inputs["image"]) for request in transport.requests] == [2, 2, 1]
    assert np.array_equal(stylized, 255 - batch)


IMPORTING = """
import os, signal, threading
before = dict(os.environ), threading.active_count(), signal.getsignal(signal.SIGINT)
import nst_client
assert (dict(os.environ), threading.active_count(), signal.getsignal(signal.SIGINT)) == before
import ctypes, sys
assert not {"torch", "onnxruntime", "tensorrt", "cuda.bindings", "multiprocessing.resource_tracker"} & set(sys.modules)
assert "nst_core.process" not in sys.modules
"""


def test_importing_the_library_changes_nothing_in_the_process() -> None:
    subprocess.run([sys.executable, "-c", IMPORTING], check=True)


@pytest.mark.parametrize("sizes", [[], [1], [127, 128, 70_000]])
def test_messages_are_as_protobuf_makes_them(sizes: list[int]) -> None:
    from tritonclient.grpc import service_pb2

    tensors = [np.arange(size).astype(np.uint8) for size in sizes]
    request = service_pb2.ModelInferRequest(model_name="style")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 2, 3])
    request.outputs.add(name="stylized").parameters["shared_memory_byte_size"].int64_param = 2**40
    data = encoded(request, tensors)
    request.raw_input_contents.extend(tensor.tobytes() for tensor in tensors)
    assert service_pb2.ModelInferRequest.FromString(data) == request

    answer = service_pb2.ModelInferResponse(model_name="style", id="7")
    for number, tensor in enumerate(tensors):
        answer.outputs.add(name=f"tensor {number}", datatype="UINT8", shape=[len(tensor)])
    bare = answer.SerializeToString()
    answer.raw_output_contents.extend(tensor.tobytes() for tensor in tensors)
    message, contents = decoded(answer.SerializeToString())
    assert message.SerializeToString() == bare
    for tensor, (output, content) in zip(tensors, outputs(message, contents), strict=True):
        assert np.array_equal(array_of(content, output.datatype, output.shape), tensor)


@pytest.mark.parametrize("data", [b"\x32", b"\x32\x05abc", b"\x80\x80", b"\x09abc", b"\x07", b"\x0a\x02\xff\xff"])
def test_bytes_that_are_no_answer(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"protobuf|ModelInferResponse"):
        decoded(data)
