"""Stylize an image over gRPC with NVIDIA's client: pip install tritonclient[grpc] pillow.

python stylize_grpc.py photo.jpg stylized.png grpc://127.0.0.1:8001 starry-night-fast
python stylize_grpc.py photo.jpg stylized.png grpc://127.0.0.1:8001 gallery 0.7 0.3  # weights of the model's two styles
"""

import os
import sys
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as triton
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

source, target, url, model, *weights = sys.argv[1:]
image = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
arrays = {"image": np.asarray(image)[None]}  # uint8 [1, H, W, 3]
if weights:
    arrays["style_weights"] = np.array([weights], np.float32)  # [1, S]

inputs = []
for name, array in arrays.items():
    inputs.append(triton.InferInput(name, array.shape, "UINT8" if array.dtype == np.uint8 else "FP32"))
    inputs[-1].set_data_from_numpy(array)
headers = {}
if token := os.environ.get("NST_TOKEN"):
    headers["triton-grpc-protocol-nst-token"] = token
server = urlsplit(url)
# No proxy for this machine.
os.environ["no_proxy"] = f"localhost,127.0.0.1,::1,{os.environ.get('no_proxy', '')}"
try:
    with triton.InferenceServerClient(server.netloc, ssl=server.scheme == "grpcs") as client:
        stylized = client.infer(model, inputs, headers=headers, client_timeout=60).as_numpy("stylized")
except InferenceServerException as error:
    sys.exit(str(error))
Image.fromarray(stylized[0]).save(target)
