#!/usr/bin/env bash
# Ask a server whether it is ready, which models it has, and what one of them takes.
#
#     ask.sh http://127.0.0.1:8000 starry-night-fast
#
# The token, if the server wants one, is in NST_TOKEN; curl gets it in a file, since everybody's ps shows arguments.
set -euo pipefail
url=$1 model=$2
export no_proxy="localhost,127.0.0.1,::1,${no_proxy-${NO_PROXY-}}"  # a proxy is not for a server on this machine

get() {
    curl --silent --show-error --fail-with-body -H @<(printf 'nst-token: %s\n' "${NST_TOKEN-}") "$url/v2/$1"
    echo
}

get health/ready            # status 200 and nothing else, needs no token
get models/stats            # .model_stats[].name are the models
get "models/$model/config"  # .parameters: styles, min_side and max_pixels; .max_batch_size: images in a request
