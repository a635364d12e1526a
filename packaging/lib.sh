# Shared by packaging/tarball and packaging/sources. Sourced, not run.

export CARGO_TERM_COLOR=never
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
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
