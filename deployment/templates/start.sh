#!/bin/sh
# Start this site's node: reads site.env, runs until it is stopped with Ctrl-C.
set -eu
cd "$(dirname "$0")"
. ./site.env
[ -n "$COHORT" ] || { echo "site.env: expected COHORT, the folder of the prepared cohort, found nothing" >&2; exit 1; }
for file in policy.yaml authority.pem client.pem client.key node.key loopback.pem loopback.key; do
    [ -r "$file" ] || { echo "$file: expected in this folder, found none; README.md says where it comes from" >&2; exit 1; }
done
COHORT=$(cd "$COHORT" && pwd)
mkdir -p "$STATE" run logs
STATE=$(cd "$STATE" && pwd)
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_HOME="$PWD/flower"
# Flower's node finds bin/flwr-clientapp first, which runs the bundles of approved/ alone.
export DIPRO_FED_KIT="$PWD" PATH="$PWD/bin:$PATH"
nginx -p "$PWD" -c nginx.conf &
sidecar=$!
trap 'kill "$sidecar" 2>/dev/null || true' EXIT
flower-supernode --superlink 127.0.0.1:{{ sidecar_port }} --root-certificates loopback.pem \
    --auth-supernode-private-key node.key --port "$NODE_PORT" \
    --node-config "site=\"{{ site }}\" cohort=\"$COHORT\" folder=\"$STATE\" device=\"$DEVICE\" withhold=\"$WITHHOLD\" policy=\"$PWD/policy.yaml\""
