# Shared by the programs of this folder. Sourced, not run.

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

# newest_glibc BINARY: of what it asks the system's C library for.
newest_glibc() { objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1; }

# fill FOLDER FEATURES BINARY...: everything but the checksums.
fill() {
    local folder=$1 features=$2 binary
    shift 2
    mkdir -p "$folder/bin" "$folder/models"
    for binary in "$@"; do
        install -m 755 "$binary" "$folder/bin"
        strip --strip-debug "$folder/bin/$(basename "$binary")"
    done
    cp -r configs docs README.md ARCHITECTURE.md CHANGELOG.md LICENSE "$folder"
    cp -r models/demo "$folder/models/demo"
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
