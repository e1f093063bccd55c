#!/bin/sh
# Lints the contract by two linters, each finding of which is a failure. Needs Node with npm, and fetches the linters, as
# openapi/lint/package-lock.json pins them, into a folder that is kept: TOOLS, else one of the system's temporary ones.
#
#   sh openapi/lint.sh [FILE]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
contract=${1:-$here/openapi.json}
tools=${TOOLS:-${TMPDIR:-/tmp}/keyturn-contract}/lint
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true

mkdir -p "$tools"
if ! cmp -s "$here/lint/package-lock.json" "$tools/node_modules/installed"; then
    cp "$here/lint/package.json" "$here/lint/package-lock.json" "$tools"
    (cd "$tools" && npm ci --silent --no-audit --no-fund --ignore-scripts)
    cp "$here/lint/package-lock.json" "$tools/node_modules/installed"
fi
bin=$tools/node_modules/.bin
"$bin/redocly" lint --config "$here/redocly.yaml" --max-problems 20 "$contract"
"$bin/spectral" lint --ruleset "$here/.spectral.yaml" --fail-severity hint "$contract"
