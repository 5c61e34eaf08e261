# shellcheck shell=sh
# What the sample scripts share. A sample defines `check`, and a function for each kind of script it has something to do
# in; then `main "$@"`. It has to bear being run again: an agent may ask twice.
#
# Without REPLICATOR_SCRIPT a sample takes the kind as its argument: `postgresql post-failover`.
# `postgresql --check` says what is missing here, and changes nothing. With REPLICATOR_TEST=1 nothing is changed either,
# except in a drill (REPLICATOR_DRILL=1), where all changes vanish.
#
# Settings are environment variables; /etc/default/replicator-NAME may set them.

name=$(basename "$0")
missing=

say() { printf '%s: %s\n' "$name" "$*"; }

fail() {
    printf '%s: %s\n' "$name" "$*" >&2
    exit 1
}

# A program that has to be here.
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $1"
}

is_dry() { [ "${REPLICATOR_TEST:-}" = 1 ] && [ "${REPLICATOR_DRILL:-}" != 1 ]; }

# What changes something goes through this.
run() {
    if is_dry; then
        say "would run: $*"
    else
        "$@"
    fi
}

# Directories of the copies, one a line: where they are on this host.
roots() {
    number=1
    while [ "$number" -le "${REPLICATOR_ROOTS:-0}" ]; do
        eval "printf '%s\n' \"\$REPLICATOR_ROOT_$number\""
        number=$((number + 1))
    done
}

# Addresses that this host has taken, without prefix, one a line.
addresses() {
    number=1
    while [ "$number" -le "${REPLICATOR_ADDRESSES:-0}" ]; do
        eval "address=\$REPLICATOR_ADDRESS_$number"
        # shellcheck disable=SC2154
        printf '%s\n' "${address%%/*}"
        number=$((number + 1))
    done
}

has_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    seconds=$1
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$seconds" -gt 0 ] || return 1
        seconds=$((seconds - 1))
        sleep 1
    done
}

question() { say "nothing to do when a person is asked"; }
pre_failover() { say "nothing to do before a failover"; }
post_failover() { say "nothing to do after a failover"; }
pre_failback() { say "nothing to do before a failback"; }
post_failback() { say "nothing to do after a failback"; }
source_post_failback() { say "nothing to do on the source after a failback"; }

main() {
    if [ "${1:-}" = --check ]; then
        check
        [ -z "$missing" ] || fail "missing here:$missing"
        say "all that is needed is here"
        return
    fi
    kind=${REPLICATOR_SCRIPT:-${1:-}}
    case $kind in
    question | pre-failover | post-failover | pre-failback | post-failback | source-post-failback) ;;
    *) fail "usage: $name --check, or the kind of script: pre-failover, post-failover, pre-failback, …" ;;
    esac
    check
    [ -z "$missing" ] || fail "missing here:$missing"
    "$(printf %s "$kind" | tr - _)"
}
