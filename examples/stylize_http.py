"""Stylize an image over HTTP with Python's standard library; Pillow opens and saves it.

python stylize_http.py photo.jpg stylized.png http://127.0.0.1:8000 starry-night-fast
python stylize_http.py photo.jpg stylized.png http://127.0.0.1:8000 gallery 0.7 0.3  # weights of the model's two styles
"""

import json
import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from PIL import Image, ImageOps

source, target, url, model, *weights = sys.argv[1:]
image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
pixels = image.tobytes()  # rows from the top, one byte each for R, G and B

shape = [1, image.height, image.width, 3]
inputs = [{"name": "image", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": len(pixels)}}]
if weights:
    numbers = [float(weight) for weight in weights]
    inputs.append({"name": "style_weights", "datatype": "FP32", "shape": [1, len(numbers)], "data": numbers})
outputs = [{"name": "stylized", "parameters": {"binary_data": True}}]
header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()

headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
if token := os.environ.get("NST_TOKEN"):
    headers["nst-token"] = token
# No proxy for this machine.
os.environ["no_proxy"] = f"localhost,127.0.0.1,::1,{os.environ.get('no_proxy', '')}"
try:
    with urlopen(Request(f"{url}/v2/models/{model}/infer", header + pixels, headers), timeout=60) as answer:
        body, start = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
except HTTPError as error:
    sys.exit(f"{error}: {error.read().decode(errors='replace')}")
Image.frombytes("RGB", image.size, body[start:]).save(target)
