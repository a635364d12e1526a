//! Gives the linker something to find for the CUDA libraries that other crates name. The functions themselves are in
//! `src/names.rs`.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// What cudarc links with. Their archives are empty.
const LAZY: [&str; 5] = ["cuda", "cublas", "cublasLt", "curand", "nvrtc"];
/// An archive without members.
const EMPTY_ARCHIVE: &[u8] = b"!<arch>\n";
/// Where toolkits are installed, as other build scripts look for them.
const TOOLKIT_VARIABLES: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];

fn main() {
    for variable in TOOLKIT_VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in LAZY {
        fs::write(folder.join(format!("lib{name}.a")), EMPTY_ARCHIVE).expect("the output folder is writable");
    }
    // The runtime's static library finds the driver itself, when it is first used.
    match static_runtime() {
        Some(runtime) => drop(fs::copy(runtime, folder.join("libcudart.a")).expect("the toolkit is readable")),
        None => fs::write(folder.join("libcudart.a"), EMPTY_ARCHIVE).expect("the output folder is writable"),
    }
    println!("cargo::rustc-link-search=native={}", folder.display());
}

fn static_runtime() -> Option<PathBuf> {
    let homes = TOOLKIT_VARIABLES.iter().filter_map(env::var_os);
    let places = homes.flat_map(|home| ["lib", "lib64"].map(|folder| Path::new(&home).join(folder)));
    places.map(|folder| folder.join("libcudart_static.a")).find(|archive| archive.exists())
}
