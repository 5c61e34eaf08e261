#!/bin/sh
# All tests but the soak campaigns, as four sessions at the same time: those with real agents (two sessions) and those with real
# mounts mostly wait, those in one process (unit, property, simulation) mostly compute. What the others printed follows when the
# first is done. Usage: scripts/test.sh PYTHON [pytest options]
python=$1
shift
told=$(mktemp -d) || exit 1
trap 'rm -rf "$told"' EXIT

session() { # MARKS [pytest options]
    marks=$1
    shift
    exec "$python" -m pytest -m "$marks" --durations=15 "$@"
}

session 'not soak and not fs and not e2e' "$@" >"$told/inside" 2>&1 &
inside=$!
session 'fs and not e2e and not soak' "$@" >"$told/mounts" 2>&1 &
mounts=$!
session 'e2e and not soak' --part 2/2 "$@" >"$told/agents" 2>&1 &
others=$!
trap 'kill "$inside" "$mounts" "$others" 2>/dev/null' INT TERM
(session 'e2e and not soak' --part 1/2 "$@")
failed=$?
for one in "$others:agents" "$mounts:mounts" "$inside:inside"; do
    wait "${one%%:*}" || failed=1
    cat "$told/${one#*:}"
done
[ "$failed" -eq 0 ]
