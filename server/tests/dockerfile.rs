//! The Dockerfile says what this repository really has. Its build commands are executed by `.ci/dockerfile-build`; this
//! reads it, and runs the command that the image runs.

use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace")
}

/// `(instruction, rest)` of each line that is one.
fn instructions() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile is part of the repository");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs.map(|(word, rest)| (word.to_owned(), rest.trim().to_owned())).collect()
}

fn rest_of(instruction: &str) -> Vec<String> {
    instructions().into_iter().filter(|(word, _)| word == instruction).map(|(_, rest)| rest).collect()
}

#[test]
fn the_image_runs_as_a_user_without_rights() {
    let users = rest_of("USER");
    let user = users.last().expect("a USER line");
    assert!(user.parse::<u32>().is_ok_and(|id| id >= 1000), "USER {user} must be a number that is not a system user");
}

#[test]
fn the_build_uses_a_profile_and_a_package_of_this_workspace() {
    let build = rest_of("RUN").into_iter().find(|line| line.starts_with("cargo build")).expect("a build command");
    assert!(build.contains("--locked"), "{build}");
    assert!(build.contains(concat!("--package ", env!("CARGO_PKG_NAME"))), "{build}");
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    assert!(build.contains("--profile dist") && manifest.contains("[profile.dist]"), "{build}");
    assert!(rest_of("COPY").iter().any(|line| line.starts_with("--from=build /src/target/dist/passerelle ")));
}

#[test]
fn the_cuda_image_holds_a_build_with_the_feature_and_the_libraries_that_the_document_names() {
    let build = rest_of("RUN").into_iter().find(|line| line.contains("--features cuda")).expect("a build with CUDA");
    assert!(build.contains("eval \"$(.ci/cuda-toolkit ") && build.contains("--locked --profile dist"), "{build}");
    assert!(root().join(".ci/cuda-toolkit").exists());
    let copies = rest_of("COPY");
    assert!(copies.iter().any(|line| line.starts_with("--from=build-cuda /src/target/dist/passerelle ")), "{copies:?}");
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile is there");
    let document = std::fs::read_to_string(root().join("docs/gpu.md")).expect("the document is there");
    for package in ["nvidia-cublas==", "nvidia-curand==", "nvidia-cuda-runtime=="] {
        let version = dockerfile.split(package).nth(1).and_then(|rest| rest.split_whitespace().next());
        let pinned = format!("{package}{}", version.expect("a pinned version"));
        assert!(document.contains(&pinned), "docs/gpu.md does not say {pinned}");
    }
}

#[test]
fn the_compiler_of_the_image_is_the_oldest_that_is_supported() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let line = manifest.lines().find(|line| line.starts_with("rust-version")).expect("the manifest states a version");
    let version = line.split('"').nth(1).expect("a quoted version");
    assert!(rest_of("FROM")[0].starts_with(&format!("rust:{version}-")), "rust-version is {version}");
}

#[test]
fn the_images_command_refuses_to_start_without_a_key_and_says_what_to_do() {
    let command: Vec<String> = serde_json::from_str(&rest_of("CMD")[0]).expect("CMD is written as a list");
    let state = tempfile::tempdir().expect("a temporary folder");
    let command = command.iter().map(|word| word.replace(":8080", ":0"));
    let output = Command::new(env!("CARGO_BIN_EXE_passerelle"))
        .args(command)
        .env("HOME", state.path())
        .env("XDG_DATA_HOME", state.path())
        .env("HF_HOME", state.path())
        .output()
        .expect("the binary was built for this test");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("passerelle key create") && output.stdout.is_empty(), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
}
