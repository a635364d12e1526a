//! With the feature `cuda`: compiles `src/ops/cuda/kernels.cu`, which includes the other kernels, into one module. It holds
//! machine code for two generations of GPUs, and portable code that the driver compiles for later ones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const KERNELS: &str = "src/ops/cuda";
/// Ampere and Ada; Hopper; and what others translate.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_80,code=compute_80"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let sources = fs::read_dir(KERNELS).expect("the kernels are part of this crate");
    for source in sources.map(|entry| entry.expect("the folder is readable").path()) {
        if source.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
            println!("cargo::rerun-if-changed={}", source.display());
        }
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.fatbin");
    let mut command = Command::new(nvcc());
    command.args(["-fatbin", "-O3", "-std=c++17", "--threads=0", "-Werror=all-warnings", "--compress-mode=size"]);
    command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command.arg("-o").arg(&output).arg(Path::new(KERNELS).join("kernels.cu"));
    match command.status() {
        Ok(status) if status.success() && fs::exists(&output).unwrap_or(false) => {}
        Ok(status) => panic!("{command:?}: {status}"),
        Err(error) => {
            panic!("the feature `cuda` needs nvcc (docs/gpu.md): {}: {error}", command.get_program().display())
        }
    }
}

/// As other build scripts look for it.
fn nvcc() -> PathBuf {
    let in_toolkit = |variable| env::var_os(variable).map(|home| Path::new(&home).join("bin/nvcc"));
    let named = env::var_os("NVCC").map(PathBuf::from);
    named.or_else(|| in_toolkit("CUDA_HOME")).or_else(|| in_toolkit("CUDA_PATH")).unwrap_or_else(|| "nvcc".into())
}
