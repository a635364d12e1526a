# Shared by .ci/run and .ci/full. Sourced, not run.

# What fails inside $(...) fails outside, too.
shopt -s inherit_errexit

export CARGO_TERM_COLOR=never
# Nothing is built twice, and what it takes to build a part again costs time and disk.
export CARGO_INCREMENTAL=0
summary=()
# Of the stages only those whose names match this regular expression; all of them where it is empty.
only=

# stage NAME COMMAND...: runs the command and notes how long it took. A failure ends the run.
stage() {
    local name=$1 started=$SECONDS status
    shift
    [[ $name =~ $only ]] || return 0
    printf '\n=== %s\n' "$name"
    # Not `if ! "$@"`: inside a condition, a function would go on after its first failing command.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if [ $status -ne 0 ]; then
        [ ${#summary[@]} -eq 0 ] || printf '\n%s' "${summary[@]}"
        printf '\nFAILED: %s, after %d s\n' "$name" $((SECONDS - started))
        exit 1
    fi
    summary+=("$(printf '%6d s  %s' $((SECONDS - started)) "$name")")
}

# skip NAME REASON: what could not be checked here, said aloud.
skip() {
    printf '\n=== %s: skipped: %s\n' "$1" "$2"
    summary+=("$(printf '%8s  %s (skipped: %s)' '-' "$1" "$2")")
}

finish() {
    [ ${#summary[@]} -gt 0 ] || { printf 'no stage is called %s\n' "$only" >&2; exit 1; }
    printf '\n'
    printf '%s\n' "${summary[@]}"
    printf '%s%s passed in %d s\n' "$1" "${only:+ (only: $only)}" $SECONDS
}

# Installs Debian packages that are missing, as root or through sudo.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -qq --yes --no-install-recommends "${missing[@]}"
}

# Node.js, from Debian unless it is there already: another packager's nodejs brings its own npm.
need_node() { command -v node >/dev/null && command -v npm >/dev/null || need_packages nodejs npm; }

# Installs what the clients of server/tests/clients need from npm, beside the build's outputs, and prints where.
node_clients() {
    local folder
    need_node >&2
    folder="$(target_dir)/ci-node"
    mkdir -p "$folder"
    cp server/tests/clients/*.mjs server/tests/clients/package.json "$folder"
    npm install --silent --no-audit --no-fund --prefix "$folder" >/dev/null
    printf '%s\n' "$folder"
}

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}
