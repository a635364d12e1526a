//! Writes the wire's Rust code from its proto file, without a protoc.

use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let wire = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/workers/wire");
    let parsed = protox::compile([wire.join("worker.proto")], [&wire])?;
    tonic_prost_build::configure().out_dir(&wire).compile_fds(parsed)?;
    fs::rename(wire.join("passerelle.worker.v1.rs"), wire.join("generated.rs"))?;
    Ok(())
}
