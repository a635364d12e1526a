# Shared by the programs of this folder. Sourced, not run.

export CARGO_TERM_COLOR=never

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# Not of a repository that this folder may lie in.
is_checkout() { [ -e .git ]; }

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    is_checkout || fail "this is no git checkout: say in SOURCE_DATE_EPOCH of when the files are to be"
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
export SOURCE_DATE_EPOCH

version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# newest_glibc BINARY: of what it asks the system's C library for.
newest_glibc() { objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1; }

# shipped PATH...: the files below that git knows, as they lie there, so that nobody's keys travel; without git, all of them.
shipped() {
    if is_checkout; then
        git ls-files -z -- "$@"
    else
        find "$@" -type f -print0
    fi
}

# fill FOLDER FEATURES BINARY...: everything but the checksums.
fill() {
    local folder=$1 features=$2 binary
    shift 2
    mkdir -p "$folder/bin"
    for binary in "$@"; do
        install -m 755 "$binary" "$folder/bin"
        strip --strip-debug "$folder/bin/$(basename "$binary")"
    done
    shipped configs docs models/demo README.md ARCHITECTURE.md CHANGELOG.md LICENSE \
        | tar --create --null --files-from=- | tar --extract --directory "$folder"
    python3 packaging/materials.py "$folder/sbom.cdx.json" "$folder/licences" "$features"
}

# checksums FOLDER: `sha256sum --check SHA256SUMS` in it tells whether a byte has changed on its way.
checksums() {
    (
        cd "$1"
        find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >SHA256SUMS
    )
}

# pack STAGE NAME FOLDER: the same bytes for the same files, whoever packs them and when.
pack() {
    local file="$3/$2.tar.gz"
    mkdir -p "$3"
    tar --create --directory "$1" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
        --mode='u+rw,go+r-w' "$2" | gzip --best --no-name >"$file"
    (cd "$3" && sha256sum "$2.tar.gz" >"$2.tar.gz.sha256")
    printf '%s: %s MiB\n' "$file" $(($(stat -c %s "$file") >> 20))
}
