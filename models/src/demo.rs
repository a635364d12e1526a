//! The demo checkpoint that is compiled into the program, so that `passerelle serve` works from any folder.

use crate::CheckpointFiles;

/// The last checkpoint of the demo's training run; `models/demo/README.md` says what it can do.
pub fn demo_checkpoint() -> CheckpointFiles {
    CheckpointFiles::embedded(
        "the bundled demo",
        &[
            ("config.json", include_bytes!("../demo/final/config.json")),
            ("generation_config.json", include_bytes!("../demo/final/generation_config.json")),
            ("model.safetensors", include_bytes!("../demo/final/model.safetensors")),
            ("tokenizer.json", include_bytes!("../demo/final/tokenizer.json")),
            ("tokenizer_config.json", include_bytes!("../demo/final/tokenizer_config.json")),
        ],
    )
}
