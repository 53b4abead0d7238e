#!/usr/bin/env bash
# Stylize an image with curl. A PPM is three short lines of text, then the raw RGB bytes that the model takes. Most
# image tools read and write it: ffmpeg -i photo.jpg photo.ppm.
#
#     stylize.sh photo.ppm stylized.ppm http://127.0.0.1:8000 starry-night-fast
#     stylize.sh photo.ppm stylized.ppm http://127.0.0.1:8000 gallery 0.7 0.3     # weights of the model's two styles
#
# NST_TOKEN holds the server's token, if it needs one; curl reads it from a file, since ps shows arguments to everyone.
set -euo pipefail
source=$1 target=$2 url=$3 model=$4
weights=("${@:5}")
export no_proxy="localhost,127.0.0.1,::1,${no_proxy-${NO_PROXY-}}"  # no proxy for this machine

{ read -r kind && read -r width height && read -r depth; } < "$source"
[[ $kind == P6 && $depth == 255 ]] || { echo "$source: not a PPM of 8 bits (P6, 255)" >&2; exit 1; }
size=$((width * height * 3))

binary='"parameters": {"binary_data'
inputs='{"name": "image", "datatype": "UINT8", "shape": [1, '$height', '$width', 3], '$binary'_size": '$size'}}'
if ((${#weights[@]})); then
    numbers=$(IFS=,; echo "${weights[*]}")
    inputs+=', {"name": "style_weights", "datatype": "FP32", "shape": [1, '${#weights[@]}'], "data": ['$numbers']}'
fi
header='{"inputs": ['$inputs'], "outputs": [{"name": "stylized", '$binary'": true}}]}'

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
# Request and answer: the JSON header, then the pixels.
{ printf '%s' "$header"; tail -c "$size" "$source"; } |
    curl --silent --show-error --fail-with-body --output "$answer" --data-binary @- \
        -H "Content-Type: application/octet-stream" \
        -H "Inference-Header-Content-Length: ${#header}" \
        -H @<(printf 'nst-token: %s\n' "${NST_TOKEN-}") \
        "$url/v2/models/$model/infer" || { cat "$answer" >&2; exit 1; }
{ printf 'P6\n%d %d\n255\n' "$width" "$height"; tail -c "$size" "$answer"; } > "$target"
