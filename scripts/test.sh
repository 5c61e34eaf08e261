#!/bin/sh
# All tests but the soak campaigns, as two sessions at the same time: those with real mounts and agents mostly wait, those in
# one process (unit, property, simulation) mostly compute. What the second one printed follows when the first is done.
# Usage: scripts/test.sh PYTHON [pytest options]
python=$1
shift
told=$(mktemp) || exit 1
trap 'rm -f "$told"' EXIT
"$python" -m pytest -m 'not soak and not fs and not e2e' --durations=15 "$@" >"$told" 2>&1 &
inside=$!
trap 'kill "$inside" 2>/dev/null' INT TERM
"$python" -m pytest -m '(fs or e2e) and not soak' --durations=15 "$@"
real=$?
wait "$inside"
simulated=$?
cat "$told"
[ "$real" -eq 0 ] && [ "$simulated" -eq 0 ]
