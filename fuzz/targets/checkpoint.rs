//! A checkpoint of which one file is anything: it loads, or it is refused with a typed error.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The fuzzer has limits of its own (`-timeout`, `-rss_limit_mb`).
mod bounds {
    pub(crate) fn within_bounds<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
}

#[allow(dead_code)]
#[path = "../../models/tests/checkpoint/tiny.rs"]
mod tiny;

const FILES: [&str; 4] =
    ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"];

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, bytes) = input;
    let file = FILES[usize::from(choice) % FILES.len()];
    let mut tiny = tiny::Tiny::new().with_file(file, bytes);
    if file.ends_with(".index.json") {
        let shard = tiny.files.remove("model.safetensors").expect("it is part of the tiny checkpoint");
        tiny = tiny.with_file("one.safetensors", shard);
    }
    let _ = tiny.load();
});
