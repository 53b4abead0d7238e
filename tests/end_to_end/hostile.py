"""Requests that mean harm, made of a good one by chance."""

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

MODEL, SHAPE = "starry", [1, 20, 24, 3]
PIXELS = bytes(index * 7 % 251 for index in range(20 * 24 * 3))
"""What the good request asks for."""


DOCUMENT = {
    "id": "1",
    "parameters": {"priority": 0},
    "inputs": [
        {
            "name": "image",
            "datatype": "UINT8",
            "shape": SHAPE,
            "parameters": {"binary_data_size": len(PIXELS)},
        }
    ],
    "outputs": [{"name": "stylized", "parameters": {"binary_data": True}}],
}

LARGE = [2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]
WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 15, 0.5, -0.0, 1e308, *LARGE, *(-number for number in LARGE)),
    *("", "image", "INT8", "UINT8", "FP32", "BYTES", "BOOL", "\0", "\ud83c\udfa8", "%s%n" * 20, "x" * 70_000),
    *([], {}, [[]], [{}], [1], ["1"], [None], {"": {}}, {"name": "image"}),
]
"""Values where others are expected."""

SHAPES: list[Any] = [
    *([], [1], [0], [1, 20, 24], [1, 20, 24, 3, 1], [1, 20, 24, 4], [1, 24, 20, 3], [2, 10, 24, 3], [20, 1, 24, 3]),
    *([1, 16, 30, 3], [1, 15, 32, 3], [1, 1, 480, 3], [1, 0, 24, 3], [0, 20, 24, 3], [9, 20, 24, 3], [1] * 10_000),
    *([2**31, 20, 24, 3], [1, 2**31, 2**31, 3], [1, 2**32, 2**32, 3], [1, 2**62, 4, 3], [1, 40_000, 40_000, 3]),
    *([1, 2**63 - 1, 2**63 - 1, 3], [1, 2**61, 8, 3]),
]
ODD_SHAPES: list[Any] = [
    *([1, -20, -24, 3], [2**64, 1, 1, 3], [1, 20.0, 24, 3], [1, "20", 24, 3], [[1, 20, 24, 3]], [1, None, 24, 3]),
]
"""Those that only JSON can say."""

DATATYPES = ["INT8", "FP32", "BYTES", "BOOL", "FP16", "UINT64", "TYPE_UINT8", ""]


@dataclass(frozen=True)
class Hostile:
    """The bytes of a request. One that is `whole` ends as its headers say, so that HTTP owes it an answer."""

    raw: bytes
    whole: bool = True


def http_request(header: bytes, pixels: bytes = PIXELS, path: str = f"models/{MODEL}", **headers: object) -> bytes:
    """A request; `headers` are in place of its own, with _ for -."""
    fields: dict[str, object] = {
        "Host": "localhost",
        "Connection": "close",
        "Content-Type": "application/octet-stream",
        "Content-Length": len(header) + len(pixels),
        "Inference-Header-Content-Length": len(header),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v2/{path}/infer HTTP/1.1\r\n{lines}\r\n".encode() + header + pixels


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a document."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


def garbled(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, put in or left out."""
    mutable = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(mutable))
        new = rng.choice([rng.randbytes(rng.randint(0, 4)), b'"', b"{[" * 3, b"\xff" * 4])
        mutable[at : at + rng.randint(0, 4)] = new
    return bytes(mutable)


def wrong_value(rng: random.Random) -> Hostile:
    document = copy.deepcopy(DOCUMENT)
    for _ in range(rng.randint(1, 2)):
        container, key = rng.choice(places(document))
        container[key] = rng.choice(WRONG)
    return Hostile(http_request(encoded(document)))


def wrong_key(rng: random.Random) -> Hostile:
    """Something left out, something twice, something that is nobody's."""
    document: dict[str, Any] = copy.deepcopy(DOCUMENT)
    container, key = rng.choice(places(document))
    if rng.random() < 0.5 or isinstance(container, list):
        del container[key]
    else:
        container[rng.choice(["data", "parameters", "shared_memory_region", "classification", "timeout", "x"])] = (
            rng.choice(WRONG)
        )
    if rng.random() < 0.3 and document.get("inputs"):
        document["inputs"] = document["inputs"] * 2
    return Hostile(http_request(encoded(document)))


def wrong_shape(rng: random.Random) -> Hostile:
    document: Any = copy.deepcopy(DOCUMENT)
    document["inputs"][0]["shape"] = rng.choice(SHAPES + ODD_SHAPES)
    if rng.random() < 0.3:
        document["inputs"][0]["datatype"] = rng.choice(DATATYPES)
    return Hostile(http_request(encoded(document)))


def wrong_numbers(rng: random.Random) -> Hostile:
    """Pixels in the JSON instead of behind it."""
    document: Any = copy.deepcopy(DOCUMENT)
    del document["inputs"][0]["parameters"]
    pixels = [
        [1, 2, 3],
        [[1], [2, 3]],
        [300] * 1440,
        ["a"],
        [-1] * 1440,
        [0.5] * 1440,
        [[[1] * 3] * 480],
        {},
        "a" * 1440,
    ]
    document["inputs"][0]["data"] = rng.choice([*pixels, [PIXELS[0]] * 1440])
    return Hostile(http_request(encoded(document), b""))


def wrong_region(rng: random.Random) -> Hostile:
    """Memory that nobody has registered."""
    document: Any = copy.deepcopy(DOCUMENT)
    place = rng.choice([document["inputs"][0], document["outputs"][0]])
    place["parameters"] = {
        "shared_memory_region": rng.choice(["none", "", "../../etc/passwd", 1]),
        "shared_memory_byte_size": rng.choice([1440, 0, -1, 2**63 - 1, 2**64, "1440"]),
        "shared_memory_offset": rng.choice([0, -1440, 2**63 - 1]),
    }
    return Hostile(http_request(encoded(document)))


def garbled_json(rng: random.Random) -> Hostile:
    return Hostile(http_request(garbled(encoded(DOCUMENT), rng)))


def wrong_header_length(rng: random.Random) -> Hostile:
    header = encoded(DOCUMENT)
    lengths = [0, -1, 1, len(header) - 1, len(header) + 1, len(header) + 1440, 10**6, 2**31, 2**63, 2**64, 10**30]
    return Hostile(http_request(header, Inference_Header_Content_Length=rng.choice([*lengths, "", "x", "0x10", "1e3"])))


def wrong_size(rng: random.Random) -> Hostile:
    """More pixels or fewer than the JSON says."""
    pixels = rng.randbytes(rng.choice([0, 1, 1439, 1441, 2880, 100_000]))
    document: Any = copy.deepcopy(DOCUMENT)
    if rng.random() < 0.5:
        document["inputs"][0]["parameters"]["binary_data_size"] = len(pixels)
    return Hostile(http_request(encoded(document), pixels))


BOMB = gzip.compress(bytes(20_000_000))


def wrong_encoding(rng: random.Random) -> Hostile:
    """A body that is compressed, or says so."""
    body = rng.choice([gzip.compress(encoded(DOCUMENT) + PIXELS), BOMB, rng.randbytes(500)])
    body = body if rng.random() < 0.5 else body[: rng.randrange(1, len(body))]
    encoding = rng.choice(["gzip", "deflate", "br", "identity", "x" * 1000])
    return Hostile(http_request(body, b"", Content_Encoding=encoding))


def wrong_path(rng: random.Random) -> Hostile:
    versions = [f"{MODEL}/versions/{version}" for version in (1, 99, -1, 10**30, "x", "")]
    name = rng.choice([*versions, "none", "%00%0a", "%s%n", "a" * 500, "", "../health", f"{MODEL}/.."])
    return Hostile(http_request(encoded(DOCUMENT), path=f"models/{name}"))


def wrong_content_length(rng: random.Random) -> Hostile:
    lengths = [0, 1, 100, 1e3, -1, 10**9, 2**63, 10**30, "x", "", "12, 13"]
    return Hostile(http_request(encoded(DOCUMENT), Content_Length=rng.choice(lengths)), whole=False)


def cut_off(rng: random.Random) -> Hostile:
    raw = http_request(encoded(DOCUMENT))
    return Hostile(raw[: rng.randrange(1, len(raw))], whole=False)


def garbled_http(rng: random.Random) -> Hostile:
    raw = http_request(encoded(DOCUMENT))
    start = raw.index(b"\r\n\r\n")
    return Hostile(garbled(raw[:start], rng) + raw[start:], whole=False)


def noise(rng: random.Random) -> Hostile:
    start = rng.choice(
        [b"", b"POST ", b"POST /v2/models/starry/infer HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    )
    return Hostile(start + rng.randbytes(rng.randint(1, 3000)), whole=False)


def chunked(parts: Iterable[bytes]) -> bytes:
    """A request whose body comes in chunks."""
    raw = http_request(b"", b"", Transfer_Encoding="chunked", Inference_Header_Content_Length=len(encoded(DOCUMENT)))
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return raw.replace(b"\r\nContent-Length: 0", b"", 1) + body + b"0\r\n\r\n"


def wrong_chunks(rng: random.Random) -> Hostile:
    body = encoded(DOCUMENT) + PIXELS
    size = rng.choice([1, 7, 500])
    chunks = chunked(body[at : at + size] for at in range(0, len(body), size))
    return Hostile(garbled(chunks, rng) if rng.random() < 0.7 else chunks, whole=False)


HTTP_MUTATIONS: list[Callable[[random.Random], Hostile]] = [
    *(
        wrong_value,
        wrong_key,
        wrong_shape,
        wrong_numbers,
        wrong_region,
        garbled_json,
        wrong_header_length,
        wrong_size,
        wrong_encoding,
    ),
    *(wrong_path, wrong_content_length, cut_off, garbled_http, noise, wrong_chunks),
]


def message() -> Any:
    """The good request for gRPC."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, id="1", raw_input_contents=[PIXELS])
    request.inputs.add(name="image", datatype="UINT8", shape=SHAPE)
    request.outputs.add(name="stylized")
    return request


def of_other_shape(rng: random.Random) -> bytes:
    request = message()
    request.inputs[0].shape[:] = rng.choice(SHAPES)
    if rng.random() < 0.3:
        request.inputs[0].datatype = rng.choice(DATATYPES)
    return bytes(request.SerializeToString())


def of_other_size(rng: random.Random) -> bytes:
    """More pixels or fewer than the shape says, in one part, in several, or as numbers."""
    request = message()
    del request.raw_input_contents[:]
    contents = request.inputs[0].contents
    for _ in range(rng.randint(0, 3)):
        request.raw_input_contents.append(rng.randbytes(rng.choice([0, 1, 1439, 1440, 1441, 100_000])))
    if rng.random() < 0.5:
        contents.uint_contents.extend(rng.choice([[1], [2**32 - 1] * 1440, list(PIXELS)]))
    if rng.random() < 0.2:
        contents.fp32_contents.extend([0.5] * 1440)
        contents.bytes_contents.append(PIXELS)
    return bytes(request.SerializeToString())


def of_other_names(rng: random.Random) -> bytes:
    request = message()
    name = rng.choice(["", "image", "stylized", "none", "\0", "\U0001f3a8", "../" * 20, "%s%n" * 20, "x" * 100_000])
    places = [(request, "model_name"), (request, "model_version"), (request, "id")]
    places += [(request.inputs[0], "name"), (request.inputs[0], "datatype"), (request.outputs[0], "name")]
    place, field = rng.choice(places)
    setattr(place, field, name)
    for many in (request.inputs, request.outputs):
        if rng.random() < 0.3:
            many.add(name=name)
        elif rng.random() < 0.2:
            del many[:]
    return bytes(request.SerializeToString())


def with_parameters(rng: random.Random) -> bytes:
    request = message()
    names = ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "classification", "priority"]
    names += ["binary_data_size", "sequence_id", "sequence_start", "timeout", "triton_enable_empty_final_response", "x"]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice([request, request.inputs[0], request.outputs[0]])
        parameter = place.parameters[rng.choice(names)]
        number = rng.choice([0, 1, -1, 1440, 2**31, 2**63 - 1, -(2**63)])
        choices = {"int64_param": number, "bool_param": number > 0, "string_param": str(number), "double_param": 1e308}
        field = rng.choice([*choices, ""])
        if field:
            setattr(parameter, field, choices[field])
    return bytes(request.SerializeToString())


def garbled_message(rng: random.Random) -> bytes:
    return garbled(message().SerializeToString(), rng)


def cut_message(rng: random.Random) -> bytes:
    whole = message().SerializeToString()
    return bytes(whole[: rng.randrange(len(whole))])


def noisy_message(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 3000))


GRPC_MUTATIONS: list[Callable[[random.Random], bytes]] = [
    *(of_other_shape, of_other_size, of_other_names, with_parameters, garbled_message, cut_message, noisy_message),
]
"""Each makes a serialized ModelInferRequest, or what is none."""
