//! Other servers as replicas, from what the configuration says about them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use passerelle::api::RemoteModel;
use passerelle::config::{self, Config, DEMO, RemoteModelConfig, RoutingConfig, Secret, UpstreamConfig};
use passerelle::gateway::breaker::BreakerBounds;
use passerelle::gateway::replica::UpstreamParts;
use passerelle::gateway::{Replica, ReplicaId};
use passerelle::upstream::{Timeouts, Upstream, UpstreamKind, UpstreamSettings, watch};
use passerelle_engine::clock::Clock;
use passerelle_models::CheckpointFiles;
use tokio::runtime::Handle;

use super::engines::random_seed;
use super::text;
use super::trusted::Inspector;

const MAX_KEY_FILE_BYTES: u64 = 16 << 10;

/// The upstreams that are served. What is configured as before keeps its replica, with its load and its health.
#[derive(Debug)]
pub(crate) struct Upstreams {
    clock: Arc<dyn Clock>,
    /// Runs the probes.
    runtime: Handle,
    served: Vec<ServedUpstream>,
    next_id: u32,
}

#[derive(Debug)]
struct ServedUpstream {
    settings: Settings,
    replica: Arc<Replica>,
}

/// Upstreams that are connected to, and not yet served.
#[derive(Debug)]
pub(crate) struct Planned {
    served: Vec<ServedUpstream>,
}

/// Everything that makes one upstream another one when it changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    config: UpstreamConfig,
    key: Option<Secret>,
    routing: RoutingConfig,
}

/// What is read and checked, and not yet served.
#[derive(Debug)]
pub(crate) struct Prepared {
    settings: Vec<Settings>,
    pub(crate) models: Vec<RemoteModel>,
}

/// Reads every file that the upstreams name. Models of `here` have a tokenizer already.
pub(crate) fn prepare(config: &Config, here: &[String]) -> Result<Prepared> {
    let settings = config.upstreams.iter().map(|upstream| read_settings(upstream, config.routing));
    let inspector = Inspector::new(config)?;
    let models = RemoteModelConfig::of_all(&config.upstreams);
    let models = models.iter().filter(|model| !here.contains(&model.name));
    let models = models.map(|model| remote_model(model, &inspector));
    Ok(Prepared { settings: settings.collect::<Result<_>>()?, models: models.collect::<Result<_>>()? })
}

impl Upstreams {
    /// `first_id`: that of the first upstream; engines have those below.
    pub(crate) fn new(clock: Arc<dyn Clock>, runtime: Handle, first_id: u32) -> Self {
        Self { clock, runtime, served: Vec::new(), next_id: first_id }
    }

    /// The replicas from then on, when it is adopted. Probes of those that nobody holds end by themselves.
    pub(crate) fn plan(&mut self, prepared: Vec<Settings>) -> Result<Planned> {
        let mut served = Vec::with_capacity(prepared.len());
        for settings in prepared {
            let same = self.served.iter().find(|upstream| upstream.settings == settings);
            let replica = match same {
                Some(upstream) => Arc::clone(&upstream.replica),
                None => self.begin(&settings)?,
            };
            served.push(ServedUpstream { settings, replica });
        }
        Ok(Planned { served })
    }

    pub(crate) fn adopt(&mut self, planned: Planned) {
        for ServedUpstream { settings, replica } in &planned.served {
            if !self.served.iter().any(|upstream| Arc::ptr_eq(&upstream.replica, replica)) {
                let config = &settings.config;
                tracing::info!(model = %config.model, upstream = %config.name, "serving through another server");
            }
        }
        self.served = planned.served;
    }

    /// Whether a key file that is named as before holds another key.
    pub(crate) fn have_other_keys(&self, prepared: &[Settings]) -> bool {
        let is_rotated = |new: &Settings| {
            self.served.iter().any(|old| old.settings.config == new.config && old.settings.key != new.key)
        };
        prepared.iter().any(is_rotated)
    }

    fn begin(&mut self, settings: &Settings) -> Result<Arc<Replica>> {
        let Settings { config, key, routing } = settings;
        let upstream = Upstream::new(&UpstreamSettings {
            kind: match config.kind {
                config::UpstreamKind::OpenAi => UpstreamKind::OpenAi,
                config::UpstreamKind::Passerelle => UpstreamKind::Passerelle,
            },
            url: &config.url,
            model: &config.upstream_model,
            key: key.as_ref().map(Secret::expose),
            health_path: &config.health_path,
            timeouts: Timeouts {
                connect: config.connect_timeout,
                first_byte: config.first_byte_timeout,
                idle: config.idle_timeout,
            },
        });
        let upstream = upstream.with_context(|| format!("upstream {}", config.url))?;
        let parts = UpstreamParts {
            name: config.name.clone(),
            door: Box::new(upstream.clone()),
            bounds: BreakerBounds {
                failures_to_open: routing.failures_to_rest,
                first_rest: routing.first_rest,
                longest_rest: routing.longest_rest,
            },
            clock: Arc::clone(&self.clock),
            seed: random_seed()?,
        };
        let replica = Arc::new(Replica::upstream(ReplicaId(self.next_id), config.model.clone(), parts));
        self.next_id += 1;
        self.runtime.spawn(watch(Arc::downgrade(&replica), upstream, config.health_interval));
        Ok(replica)
    }
}

impl Planned {
    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.served.iter().map(|upstream| Arc::clone(&upstream.replica)).collect()
    }
}

impl Prepared {
    pub(crate) fn split(self) -> (Vec<Settings>, Vec<RemoteModel>) {
        (self.settings, self.models)
    }
}

fn read_settings(config: &UpstreamConfig, routing: RoutingConfig) -> Result<Settings> {
    let of = &config.model;
    let read =
        |file: &Path| read_key(file).with_context(|| format!("upstreams.key_file of `{of}`: {}", file.display()));
    Ok(Settings { config: config.clone(), key: config.key_file.as_deref().map(read).transpose()?, routing })
}

/// The first line, which is the key.
fn read_key(file: &Path) -> Result<Secret> {
    let mut content = String::new();
    fs::File::open(file)?.take(MAX_KEY_FILE_BYTES).read_to_string(&mut content)?;
    let key = content.lines().next().unwrap_or_default().trim();
    ensure!(!key.is_empty(), "holds no key; write it alone on the first line");
    Ok(Secret::new(key))
}

fn remote_model(config: &RemoteModelConfig, inspector: &Inspector) -> Result<RemoteModel> {
    let read = |source: &Path| {
        let files = match source.to_str() {
            Some(DEMO) => passerelle_models::demo_checkpoint(),
            _ => {
                inspector.inspect_folder(source)?;
                CheckpointFiles::directory(source)?
            }
        };
        let of = &config.name;
        text::load_alone(&files).with_context(|| format!("upstreams.tokenizer of `{of}`: {}", source.display()))
    };
    Ok(RemoteModel {
        name: config.name.clone(),
        text: config.tokenizer.as_deref().map(read).transpose()?.map(Arc::new),
        max_model_len: config.max_model_len,
        default_max_tokens: config.default_max_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("key");
        fs::write(&file, " sk-1 \nnotes\n").expect("the folder is writable");
        assert_eq!(read_key(&file).expect("a key").expose(), "sk-1");
        fs::write(&file, "\n").expect("the folder is writable");
        read_key(&file).expect_err("there is none");
    }

    fn settings(text: &str) -> Vec<Settings> {
        let home = Some("/home/ada".into());
        let environment = config::Environment { hf_home: home.clone(), home, ..config::Environment::default() };
        let written: config::Written = toml::from_str(text).expect("the test's TOML is well formed");
        let config = Config::check(written, &environment).expect("the test's configuration is valid");
        prepare(&config, &[]).expect("it names no file").split().0
    }

    #[tokio::test]
    async fn what_is_planned_and_not_adopted_leaves_no_trace() {
        let clock = Arc::new(passerelle_engine::clock::ManualClock::default());
        let mut upstreams = Upstreams::new(clock, Handle::current(), 0);
        let upstream = |port: u16| format!("[[upstreams]]\nmodel = \"far\"\nurl = \"http://127.0.0.1:{port}\"\n");
        let first = upstreams.plan(settings(&upstream(9))).expect("an address");
        let served = first.replicas();
        upstreams.adopt(first);
        let planned = upstreams.plan(settings(&upstream(10))).expect("an address");
        let watched = Arc::downgrade(&planned.replicas()[0]);
        drop(planned);
        assert!(watched.upgrade().is_none(), "nobody probes it");
        let again = upstreams.plan(settings(&upstream(9))).expect("an address").replicas();
        assert!(Arc::ptr_eq(&again[0], &served[0]), "what is served keeps its health");
    }
}
