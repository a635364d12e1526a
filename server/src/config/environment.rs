//! The environment variables Passerelle knows, read once.

use std::fmt;
use std::path::PathBuf;

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The few variables that mean something here. Tests build one by hand.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub home: Option<PathBuf>,
    pub xdg_data_home: Option<PathBuf>,
    /// The Hugging Face folder; the cache is its `hub`, the token its `token`.
    pub hf_home: Option<PathBuf>,
    /// Overrides `HF_HOME/hub`.
    pub hf_hub_cache: Option<PathBuf>,
    pub hf_hub_offline: bool,
    /// Another hub than the public one.
    pub hf_endpoint: Option<String>,
    /// `HF_TOKEN`, else the file named by `HF_TOKEN_PATH`, else `HF_HOME/token`.
    pub hf_token: Option<Secret>,
    /// The key `passerelle chat --url` presents.
    pub openai_api_key: Option<Secret>,
    /// Which GPUs this process may use, also where that is none.
    pub cuda_visible_devices: Option<String>,
    /// When the Slurm job that this process is part of ends, in seconds since 1970: as it is written.
    pub slurm_job_end: Option<String>,
    /// <https://no-color.org>
    pub no_color: bool,
}

/// Set by Slurm in its jobs.
pub const SLURM_JOB_END: &str = "SLURM_JOB_END_TIME";

impl Environment {
    pub fn read() -> Self {
        let home = path("HOME");
        let hf_home = path("HF_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache/huggingface")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|folder| folder.join("token")));
        Self {
            xdg_data_home: path("XDG_DATA_HOME").filter(|path| path.is_absolute()),
            hf_hub_cache: path("HF_HUB_CACHE"),
            hf_hub_offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: text("HF_TOKEN").or_else(|| first_line(&token_file?)).map(Secret),
            openai_api_key: text("OPENAI_API_KEY").map(Secret),
            cuda_visible_devices: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            slurm_job_end: text(SLURM_JOB_END),
            no_color: text("NO_COLOR").is_some(),
            home,
            hf_home,
        }
    }

    /// Where keys and the ledger live unless the configuration says otherwise.
    pub fn default_data_dir(&self) -> Option<PathBuf> {
        let share = self.xdg_data_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")))?;
        Some(share.join("passerelle"))
    }

    /// Where hub checkpoints are cached, in the layout that other Hugging Face tools share.
    pub fn hub_cache_dir(&self) -> Option<PathBuf> {
        self.hf_hub_cache.clone().or_else(|| Some(self.hf_home.as_ref()?.join("hub")))
    }
}

/// An empty variable counts as unset.
fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// A missing token file means no token; hubs answer public checkpoints without one.
fn first_line(file: &PathBuf) -> Option<String> {
    let content = std::fs::read_to_string(file).ok()?;
    content.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}
