#!/bin/sh
# Run Triton on a model repository with the settings of nst serve; arguments are further options of tritonserver.
#
# NST_MODELS  model repository; default: /models
# NST_TOKEN   token that callers need; without it, everyone who reaches the ports may call the models
# NST_KEY     key that loading and unloading need; default: a random key that nobody knows
# NST_TLS     folder; default: /tls. With tls.crt and tls.key in it, gRPC uses TLS only; HTTP and metrics do not support it
set -eu

# Deep JSON and bodies in very many chunks need stack; with the usual 8 MiB they crash Triton.
ulimit -s 524288 2>/dev/null || true

models=${NST_MODELS:-/models} tls=${NST_TLS:-/tls}
key=${NST_KEY:-$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')}

restrict() {
    options="$options --http-restricted-api=$1:nst-token=$2 --grpc-restricted-protocol=$1:nst-token=$2"
}

options=
if [ -n "${NST_TOKEN:-}" ]; then
    case $NST_TOKEN in
    *[!A-Za-z0-9._~+/=-]*)
        echo "error: NST_TOKEN is not a token: use one word of letters, digits and ._~+/=-" >&2
        exit 1
        ;;
    esac
    restrict model-repository,trace,logging "$key"
    restrict metadata,inference,model-config,statistics,shared-memory "$NST_TOKEN"
else
    restrict model-repository,trace,logging,shared-memory "$key"
fi
if [ -e "$tls/tls.crt" ]; then
    options="$options --grpc-use-ssl=true --grpc-server-cert=$tls/tls.crt --grpc-server-key=$tls/tls.key"
fi

# Connections end after half a minute, so that callers resolve the servers' name again and notice new and removed servers.
# shellcheck disable=SC2086  # the options contain no spaces: tokens are checked above, and the key is hexadecimal
exec tritonserver --model-repository="$models" --exit-on-error=false --model-control-mode=explicit '--load-model=*' \
    --grpc-max-connection-age=30000 --grpc-max-connection-age-grace=60000 $options "$@"
