//! A configuration that changes while the server runs. Everything that can be wrong with the new one is found out before
//! anything of it is in force, and what is in force changes at once; what runs goes on where it is.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use anyhow::{Context, Result, bail};
use passerelle::api::{
    AppState, BrowserGuard, ReloadOrder, ReloadOutcome, Reloaded, Reloader, RemoteModel, Serving, Tls,
};
use passerelle::config::{self, Candidate, Candidates, Config, ModelConfig, ServerConfig, ShadowConfig};
use passerelle::gateway::directory::Snapshot;
use passerelle::gateway::quota::UnixSeconds;
use passerelle::gateway::tariff::Price;
use passerelle::gateway::{AccountPath, Administration, Alias, RetryBounds, Router, Shadow, Shelf, Tariff};
use passerelle::placement::{Device, DeviceChoice};
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use super::bounds::api_config;
use super::devices;
use super::door;
use super::engines;
use super::ledger as ledgers;
use super::memory;
use super::placed::kind_of_device;
use super::tariff::{self as tariffs, StartPrices};
use super::trusted::Inspector;
use super::upstreams::{self, Upstreams};

/// The configuration as it is written now, checked.
pub(crate) type ReadAgain = Box<dyn Fn() -> Result<Config> + Send>;

/// What a changed configuration works on.
pub(super) struct Reloading {
    /// In force.
    pub(super) config: Config,
    /// What clients are shown over TLS.
    pub(super) proof: Option<Tls>,
    pub(super) orders: mpsc::Receiver<ReloadOrder>,
    pub(super) reloader: Reloader,
    /// The models that stay in memory.
    pub(super) staying: Vec<String>,
    /// Those that come and go.
    pub(super) shelf: Option<Shelf>,
    pub(super) upstreams: Upstreams,
    pub(super) prices: StartPrices,
    pub(super) state: AppState,
}

/// Every model that runs on this server, or could.
pub(super) fn models_here(staying: &[String], shelf: Option<&Shelf>) -> Vec<String> {
    let shelved = shelf.into_iter().flat_map(Shelf::rows).map(|row| row.model);
    staying.iter().cloned().chain(shelved).collect()
}

/// What the configuration says of who serves what, checked.
pub(super) struct Directions {
    aliases: Vec<(String, Alias)>,
    shadows: Vec<Shadow>,
    owners: BTreeMap<String, AccountPath>,
    retry: RetryBounds,
    remote: Vec<RemoteModel>,
}

impl Directions {
    /// `here`: see [`models_here`].
    pub(super) fn of(
        config: &Config,
        administration: Option<&Administration>,
        here: &[String],
        remote: Vec<RemoteModel>,
    ) -> Result<Self> {
        let elsewhere = remote.iter().map(|model| model.name.as_str());
        let served: Vec<&str> = here.iter().map(String::as_str).chain(elsewhere).collect();
        check_names(config, &served, here)?;
        if let Some(administration) = administration.filter(|_| !config.aliases.is_empty()) {
            require_unlimited(&administration.directory.snapshot()?, |name| config.aliases.contains_key(name))?;
        }
        let aliases =
            config.aliases.iter().map(|(name, targets)| (name.clone(), Alias::new(targets.clone()))).collect();
        let retry = RetryBounds { max_tries: config.routing.max_tries, max_broken: config.routing.max_broken };
        Ok(Self { aliases, shadows: shadows(&config.shadow.aliases)?, owners: owners(config)?, retry, remote })
    }

    pub(super) fn serve(self, router: Router) -> Serving {
        let serving = Serving::new(router, self.remote).with_aliases(self.aliases).with_shadows(self.shadows);
        serving.with_owners(self.owners).with_retry(self.retry)
    }
}

impl Reloading {
    /// On a thread of its own, since files are read. Inside the runtime.
    pub(super) fn start(mut self, again: ReadAgain, mut hangups: Signal) -> Result<()> {
        let reloader = self.reloader.clone();
        tokio::spawn(
            async move { while hangups.recv().await.is_some() && reloader.reload("SIGHUP").await.is_some() {} },
        );
        let follow = move || {
            while let Some(ReloadOrder { actor, outcome: answer }) = self.orders.blocking_recv() {
                let outcome = outcome_of(|| self.reload(&again));
                self.write_down(&actor, &outcome);
                match &outcome {
                    Ok(Reloaded { changed, needs_restart }) => {
                        tracing::info!(?changed, ?needs_restart, "the configuration was read again");
                    }
                    Err(error) => tracing::error!(error, "the configuration stays as it was"),
                }
                // Whoever asked may have left.
                let _ = answer.send(outcome);
            }
        };
        thread::Builder::new().name("configuration".to_owned()).spawn(follow).context("cannot start a thread")?;
        Ok(())
    }

    /// In the audit log, which does not quote what is wrong with a configuration.
    fn write_down(&self, actor: &str, outcome: &ReloadOutcome) {
        let Some(administration) = self.state.administration() else { return };
        let detail = match outcome {
            Ok(Reloaded { changed, .. }) if changed.is_empty() => "done: nothing changed".to_owned(),
            Ok(Reloaded { changed, .. }) => format!("done: {}", changed.join(", ")),
            Err(_) => "failed: the server's log says why".to_owned(),
        };
        let written = administration.directory.acting_as(actor).note("reload", "configuration", &detail);
        if let Err(error) = written {
            tracing::error!(%error, "a reload is missing in the audit log");
        }
    }

    fn reload(&mut self, again: &ReadAgain) -> Result<Reloaded> {
        let new = again()?;
        self.check_for_restart(&new)?;
        let proof_after_restart = new.server.tls.as_ref().map(super::load_tls).transpose()?;
        let after_restart = self.tariff_after_restart(&new)?;
        let ring = self.state.authenticator().ring();
        let mut reloaded = compare(&self.config, &new, ring.is_some());
        if proof_after_restart != self.proof {
            reloaded.needs_restart.push("server.tls_certificate");
        }
        let is_same_file = self.config.ledger == new.ledger;
        let config = in_force(&self.config, new, ring.is_some());
        let here = models_here(&self.staying, self.shelf.as_ref());
        // What is elsewhere from now on is not taken from the folder any more.
        let (settings, remote) = upstreams::prepare(&config, &self.staying)?.split();
        let prices = self.prices_of_newcomers(&remote)?;
        let (fixed, limits) = (door::fixed_keys(&config)?, door::default_limits(&config)?);
        reloaded.note(self.upstreams.have_other_keys(&settings), "upstreams.key_file");
        reloaded.note(ring.is_some_and(|ring| ring.has_other_fixed_keys(&fixed)), "server.api_key_file");
        let regiven = ring.map(|ring| ring.regive(fixed, limits)).transpose()?;
        let directions = Directions::of(&config, self.state.administration(), &here, remote)?;
        let planned = self.upstreams.plan(settings)?;
        let elsewhere = planned.replicas();
        // Nothing can go wrong from here on.
        prices.into_iter().for_each(|(model, price)| self.state.ledger().tariff().set(&model, price));
        self.upstreams.adopt(planned);
        if let (Some(ring), Some(regiven)) = (ring, regiven) {
            ring.adopt(regiven);
        }
        self.state.change_serving(|former| former.directed(directions.serve(former.router.with_upstreams(elsewhere))));
        self.config = config;
        if is_same_file && after_restart.is_some_and(|tariff| !self.state.ledger().tariff().has_all_of(&tariff)) {
            reloaded.needs_restart.push("ledger.tariff");
        }
        // Whoever asks for this has looked at the server.
        reloaded.note(self.state.ledger().accept_clock(), "the wall clock, which had leapt, is believed");
        Ok(reloaded)
    }

    /// What comes into force with a restart only, and would keep the server from starting then. But for the processors of
    /// partitions: the system tells a thread where it may run itself, which need no longer be where a start may.
    fn check_for_restart(&self, config: &Config) -> Result<()> {
        api_config(config, BrowserGuard::Off)?;
        ledgers::reserve_whole(&config.ledger)?;
        Inspector::new(config)?;
        if self.is_on_cpu_after_restart(config) {
            memory::check_stated(config, memory::machine_memory())?;
        }
        Ok(())
    }

    /// Whether it is known that models in this process would run on the CPU. Devices are not looked for again: `auto` finds
    /// what it found, if it was asked at the start.
    fn is_on_cpu_after_restart(&self, config: &Config) -> bool {
        match &config.engine.device {
            DeviceChoice::Named(device) => *device == Device::Cpu,
            DeviceChoice::Auto => {
                let was_asked = self.config.engine.device == DeviceChoice::Auto && devices::runs_models(&self.config);
                was_asked && self.prices.device == "cpu"
            }
        }
    }

    /// Of models that only upstreams have, and that nobody was billed for before. A published tariff is read at the start
    /// only; nothing is free by an oversight.
    fn prices_of_newcomers(&self, remote: &[RemoteModel]) -> Result<Vec<(String, Price)>> {
        let tariff = self.state.ledger().tariff();
        let newcomers = remote.iter().map(|model| model.name.as_str()).filter(|name| tariff.price(name).is_none());
        let Some(published) = &self.prices.published else {
            newcomers.for_each(tariffs::warn_of);
            return Ok(Vec::new());
        };
        let price = |name: &str| -> Result<(String, Price)> {
            let none =
                || format!("`{name}` has no price in the tariff that is in force; restart to have it read again");
            Ok((name.to_owned(), published.price(name, tariffs::UPSTREAM)?.with_context(none)?))
        };
        newcomers.map(price).collect()
    }

    /// What a server would publish that is started with this configuration; `None`: nothing. What would keep it from starting
    /// is an error, though none of it comes into force now.
    fn tariff_after_restart(&self, config: &Config) -> Result<Option<Tariff>> {
        let calendar = ledgers::calendar(&config.ledger).map_err(|error| config.located(error))?;
        let Some(file) = config.ledger.tariff.as_deref() else { return Ok(None) };
        let device = |model: &ModelConfig| {
            let lies_on = config.partitions.iter().find(|partition| Some(&partition.name) == model.partition.as_ref());
            lies_on.map_or(self.prices.device, kind_of_device)
        };
        let here = config.models.iter().map(|model| (model.name.as_str(), device(model)));
        let staying: Vec<String> = config.models.iter().map(|model| model.name.clone()).collect();
        let elsewhere = super::elsewhere_only(config, &staying);
        let now = UnixSeconds::of(self.state.clock().wall());
        Ok(Some(tariffs::published(file, &calendar, here, elsewhere.as_slice(), now)?.0))
    }
}

/// That aliases and candidates stand for models: for any that is served, and for those here.
pub(super) fn check_names(config: &Config, served: &[&str], here: &[String]) -> Result<()> {
    let targets = config::check_targets(&config.aliases, served);
    targets
        .and_then(|()| config::check_candidates(&config.shadow.aliases, here))
        .map_err(|error| config.located(error).into())
}

/// A panic is a refusal like another, so that the next order finds somebody.
fn outcome_of(reload: impl FnOnce() -> Result<Reloaded>) -> ReloadOutcome {
    let reloaded = catch_unwind(AssertUnwindSafe(reload));
    let reloaded = reloaded.unwrap_or_else(|_| bail!("a bug: reading it panicked, and the log says where"));
    reloaded.map_err(|error| format!("{error:#}"))
}

/// Limits and lists of models name real models: one that names an alias would never apply.
fn require_unlimited(kept: &Snapshot, is_alias: impl Fn(&str) -> bool) -> Result<()> {
    for account in &kept.accounts {
        let mut models = account.limits.limits().iter().filter_map(|limit| limit.model.as_deref());
        if let Some(alias) = models.find(|model| is_alias(model)) {
            bail!("aliases.{alias}: a limit of '{}' is for a model of this name, and would never apply", account.path);
        }
    }
    for key in kept.keys.iter().filter(|key| key.info.revoked_at.is_none()) {
        if let Some(alias) = key.info.models.named().find(|model| is_alias(model)) {
            bail!("aliases.{alias}: the key '{}' is for a model of this name, and would see none", key.info.name);
        }
    }
    Ok(())
}

/// What of `new` comes into force, and what does not.
fn compare(old: &Config, new: &Config, asks_for_keys: bool) -> Reloaded {
    let accounts = |config: &Config| config.models.iter().map(|model| model.account.clone()).collect::<Vec<_>>();
    let same_models = models_without_accounts(old) == models_without_accounts(new);
    let key_file = (old.server.api_key_file != new.server.api_key_file, "server.api_key_file");
    let limits = (old.limits != new.limits, "limits");
    let for_keys = [key_file, limits];
    let live = [
        (old.upstreams != new.upstreams, "upstreams"),
        (old.routing != new.routing, "routing"),
        (old.aliases != new.aliases, "aliases"),
        (old.shadow.aliases != new.shadow.aliases, "shadow.aliases"),
        (same_models && accounts(old) != accounts(new), "models.account"),
    ];
    let frozen = [
        (!same_models, "models"),
        (old.partitions != new.partitions, "partitions"),
        (old.workers != new.workers, "workers"),
        (old.hub.offline != new.hub.offline, "server.offline"),
        // All else of it is the environment's, which stays as it was.
        (old.hub.token != new.hub.token, "the hub's token"),
        (with_candidates_of(&old.shadow, new) != new.shadow, "shadow"),
        (old.shelf != new.shelf, "shelf"),
        (old.engine != new.engine, "engine"),
        (old.api != new.api, "api"),
        (old.batches != new.batches, "batches"),
        (old.grammar != new.grammar, "grammar"),
        (old.ledger != new.ledger, "ledger"),
        (old.log != new.log, "log"),
    ];
    let names = |rows: &[(bool, &'static str)]| -> Vec<&'static str> {
        rows.iter().filter(|(differs, _)| *differs).map(|(_, name)| *name).collect()
    };
    let of_server = names(&frozen_of_server(&old.server, &new.server));
    let (mut changed, mut needs_restart) = (names(&live), [of_server, names(&frozen)].concat());
    if asks_for_keys {
        changed.extend(names(&for_keys))
    } else {
        needs_restart.extend(names(&for_keys))
    };
    Reloaded { changed, needs_restart }
}

/// `new`, with what needs a restart as it was.
fn in_force(old: &Config, new: Config, asks_for_keys: bool) -> Config {
    let mut config = old.clone();
    if models_without_accounts(old) == models_without_accounts(&new) {
        config.models = new.models;
    }
    if asks_for_keys {
        config.server.api_key_file = new.server.api_key_file;
        config.limits = new.limits;
    }
    let shadow = ShadowConfig { aliases: new.shadow.aliases, ..config.shadow };
    Config { upstreams: new.upstreams, routing: new.routing, aliases: new.aliases, shadow, file: new.file, ..config }
}

fn with_candidates_of(old: &ShadowConfig, new: &Config) -> ShadowConfig {
    ShadowConfig { aliases: new.shadow.aliases.clone(), ..old.clone() }
}

fn models_without_accounts(config: &Config) -> Vec<ModelConfig> {
    let without = |model: &ModelConfig| ModelConfig { account: None, ..model.clone() };
    config.models.iter().map(without).collect()
}

/// But for what files hold: the keys in `api_key_file`, and the certificate.
fn frozen_of_server(old: &ServerConfig, new: &ServerConfig) -> [(bool, &'static str); 8] {
    let ServerConfig {
        listen,
        api_key_file: _,
        data_dir,
        models_dir,
        trust,
        drain_timeout,
        max_connections,
        max_streams_per_connection,
        tls: _,
        site,
    } = old;
    [
        (*listen != new.listen, "server.listen"),
        (*data_dir != new.data_dir, "server.data_dir"),
        (*models_dir != new.models_dir, "server.models_dir"),
        (*trust != new.trust, "server.trust"),
        (*drain_timeout != new.drain_timeout, "server.drain_timeout"),
        (*max_connections != new.max_connections, "server.max_connections"),
        (*max_streams_per_connection != new.max_streams_per_connection, "server.max_streams_per_connection"),
        (*site != new.site, "server.site"),
    ]
}

/// The candidates of aliases, with the accounts that pay for them.
fn shadows(candidates: &Candidates) -> Result<Vec<Shadow>> {
    let shadow = |(alias, candidate): (&String, &Candidate)| {
        let account = candidate.account.as_deref().map_or(Ok(AccountPath::root()), str::parse);
        let account = account.with_context(|| format!("shadow.aliases: the account of `{alias}`"))?;
        let seed = engines::random_seed()?;
        Ok(Shadow::new(alias.clone(), candidate.model.clone(), candidate.share, account, seed))
    };
    candidates.iter().map(shadow).collect()
}

/// The accounts that models belong to.
pub(crate) fn owners(config: &Config) -> Result<BTreeMap<String, AccountPath>> {
    let here = config.models.iter().map(|model| (&model.name, &model.account));
    let elsewhere = config.upstreams.iter().map(|upstream| (&upstream.model, &upstream.account));
    let owned = here.chain(elsewhere).filter_map(|(name, account)| Some((name, account.as_ref()?)));
    let owner = |(name, account): (&String, &String)| {
        Ok((name.clone(), account.parse().with_context(|| format!("the account of model `{name}`"))?))
    };
    owned.map(owner).collect()
}

#[cfg(test)]
mod tests {
    use passerelle::config::{Environment, HubConfig, Secret, Written};

    use super::*;

    fn config(text: &str) -> Config {
        let home = Some("/home/ada".into());
        let environment = Environment { hf_home: home.clone(), home, ..Environment::default() };
        let written: Written = toml::from_str(text).expect("the test's TOML is well formed");
        Config::check(written, &environment).expect("the test's configuration is valid")
    }

    #[test]
    fn what_needs_a_restart_is_named_and_stays_as_it_was() {
        let old = config("[aliases]\nchat = { demo = 1 }\n");
        let new = config(
            "[engine]\nthreads = 3\n[limits]\nrequests_per_minute = 5\n[aliases]\nchat = { demo = 2 }\n\
             [[models]]\nsource = \"demo\"\naccount = \"acme\"\n",
        );
        let reloaded = compare(&old, &new, true);
        assert_eq!(reloaded.changed, ["aliases", "models.account", "limits"]);
        assert_eq!(reloaded.needs_restart, ["engine"]);
        let now = in_force(&old, new.clone(), true);
        assert_eq!((now.engine.threads, now.limits), (None, new.limits));
        assert_eq!(compare(&now, &new, true), Reloaded { changed: vec![], needs_restart: vec!["engine"] });
    }

    #[test]
    fn each_key_of_the_server_that_needs_a_restart_is_named() {
        let new = "[server]\nlisten = \"127.0.0.1:1\"\ndrain_timeout = \"1s\"\nmax_connections = 7\nsite = \"here\"\n";
        let reloaded = compare(&config(""), &config(new), true);
        let named = ["server.listen", "server.drain_timeout", "server.max_connections", "server.site"];
        assert_eq!(reloaded, Reloaded { changed: vec![], needs_restart: named.to_vec() });
    }

    #[test]
    fn a_token_of_the_hub_that_is_another_now_is_not_told_as_the_network_that_is_forbidden() {
        let old = config("");
        let hub = HubConfig { token: Some(Secret::new("hf_new")), ..old.hub.clone() };
        let new = Config { hub, ..old.clone() };
        assert_eq!(compare(&old, &new, true).needs_restart, ["the hub's token"]);
        assert_eq!(compare(&old, &config("[server]\noffline = true\n"), true).needs_restart, ["server.offline"]);
    }

    #[test]
    fn a_panic_refuses_one_reload_and_ends_none_after_it() {
        let refused = outcome_of(|| panic!("a bug elsewhere"));
        assert!(refused.expect_err("nothing changed").contains("panicked"));
        assert_eq!(outcome_of(|| Ok(Reloaded::default())), Ok(Reloaded::default()));
    }

    #[test]
    fn an_open_door_is_not_closed_while_the_server_runs() {
        let (old, new) = (config(""), config("[limits]\nrequests_per_minute = 5\n"));
        assert_eq!(compare(&old, &new, false).needs_restart, ["limits"]);
        assert_eq!(in_force(&old, new, false).limits, old.limits);
    }
}
