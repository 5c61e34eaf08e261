#!/bin/sh
# All tests but the soak campaigns, as three sessions at the same time: those with real agents and those with real mounts mostly
# wait, those in one process (unit, property, simulation) mostly compute. What the others printed follows when the first is done.
# Usage: scripts/test.sh PYTHON [pytest options]
python=$1
shift
told=$(mktemp -d) || exit 1
trap 'rm -rf "$told"' EXIT

"$python" -m pytest -m 'not soak and not fs and not e2e' --durations=15 "$@" >"$told/inside" 2>&1 &
inside=$!
"$python" -m pytest -m 'fs and not e2e and not soak' --durations=15 "$@" >"$told/mounts" 2>&1 &
mounts=$!
trap 'kill "$inside" "$mounts" 2>/dev/null' INT TERM
"$python" -m pytest -m 'e2e and not soak' --durations=15 "$@"
agents=$?
wait "$mounts"
mounts=$?
cat "$told/mounts"
wait "$inside"
inside=$?
cat "$told/inside"
[ "$agents" -eq 0 ] && [ "$mounts" -eq 0 ] && [ "$inside" -eq 0 ]
