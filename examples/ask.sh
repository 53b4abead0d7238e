#!/usr/bin/env bash
# Ask a server whether it is ready, which models it has, and which sizes one of them accepts.
#
#     ask.sh http://127.0.0.1:8000 starry-night-fast
#
# NST_TOKEN holds the server's token, if it needs one; curl reads it from a file, since ps shows arguments to everyone.
set -euo pipefail
url=$1 model=$2
export no_proxy="localhost,127.0.0.1,::1,${no_proxy-${NO_PROXY-}}"  # no proxy for this machine

get() {
    curl --silent --show-error --fail-with-body -H @<(printf 'nst-token: %s\n' "${NST_TOKEN-}") "$url/v2/$1"
    echo
}

get health/ready            # status 200 without a body; needs no token
get models/stats            # .model_stats[].name: the models
get "models/$model/config"  # .parameters: styles, min_side, max_pixels; .max_batch_size: images per request
