//! Other servers that run models, checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checked::{check_exists, count, period, some_period};
use super::models::{fits_as_name, no_name};
use super::{ConfigError, DEMO, UpstreamKind, WrittenRouting, WrittenUpstream};

/// One server that runs one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// What requests call the model.
    pub model: String,
    /// Without a `/` at its end.
    pub url: String,
    /// `HOST:PORT` of the URL: names the server in logs and metrics.
    pub name: String,
    pub kind: UpstreamKind,
    /// What that server calls the model.
    pub upstream_model: String,
    pub key_file: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    pub max_model_len: Option<usize>,
    pub default_max_tokens: u32,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub idle_timeout: Duration,
    pub health_path: String,
    pub health_interval: Duration,
    /// The account that the model belongs to.
    pub account: Option<String>,
}

/// What the upstreams of one model say about the model itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteModelConfig {
    pub name: String,
    /// A folder, or [`DEMO`].
    pub tokenizer: Option<PathBuf>,
    pub max_model_len: Option<usize>,
    pub default_max_tokens: u32,
    pub account: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingConfig {
    pub max_tries: usize,
    pub max_broken: usize,
    pub failures_to_rest: u32,
    pub first_rest: Duration,
    pub longest_rest: Duration,
}

impl RemoteModelConfig {
    /// One for each model that `upstreams` serve, by name.
    pub fn of_all(upstreams: &[UpstreamConfig]) -> Vec<Self> {
        let models: BTreeMap<&str, Self> =
            upstreams.iter().map(|upstream| (upstream.model.as_str(), upstream.about_model())).collect();
        models.into_values().collect()
    }
}

impl UpstreamConfig {
    fn about_model(&self) -> RemoteModelConfig {
        RemoteModelConfig {
            name: self.model.clone(),
            tokenizer: self.tokenizer.clone(),
            max_model_len: self.max_model_len,
            default_max_tokens: self.default_max_tokens,
            account: self.account.clone(),
        }
    }
}

pub(super) fn check_upstreams(
    written: Vec<WrittenUpstream>,
    offline: bool,
) -> Result<Vec<UpstreamConfig>, ConfigError> {
    let upstreams = written.into_iter().enumerate().map(|(place, upstream)| check_upstream(place, upstream, offline));
    let upstreams: Vec<UpstreamConfig> = upstreams.collect::<Result<_, _>>()?;
    for (index, upstream) in upstreams.iter().enumerate() {
        for other in &upstreams[..index] {
            check_pair(other, upstream)?;
        }
    }
    Ok(upstreams)
}

/// `place`: among `[[upstreams]]`, from 0.
fn check_upstream(place: usize, written: WrittenUpstream, offline: bool) -> Result<UpstreamConfig, ConfigError> {
    let key = |setting: &str| format!("upstreams[{place}].{setting}");
    if !fits_as_name(&written.model) {
        return Err(ConfigError::value(key("model"), no_name(&written.model, "one")));
    }
    let url = written.url.trim_end_matches('/').to_owned();
    let authority = authority(&url).ok_or_else(|| {
        let problem =
            format!("`{}` is not a URL; write http://HOST:PORT or https://HOST, a port from 1 to 65535", written.url);
        ConfigError::value(key("url"), problem)
    })?;
    if offline && !is_loopback(authority) {
        let problem = format!("{url} is another machine, and the network is forbidden (offline); remove one of them");
        return Err(ConfigError::value(key("url"), problem));
    }
    if let Some(file) = &written.key_file {
        check_exists(&key("key_file"), file, Path::is_file)?;
    }
    if let Some(folder) = written.tokenizer.as_deref().filter(|folder| *folder != Path::new(DEMO)) {
        check_exists(&key("tokenizer"), &folder.join("tokenizer.json"), Path::is_file)?;
    }
    let health_path = written.health_path.unwrap_or_else(|| "/v1/models".to_owned());
    if !health_path.starts_with('/') {
        let problem = format!("`{health_path}` is not a path; write it with a `/` in front");
        return Err(ConfigError::value(key("health_path"), problem));
    }
    let timeout = |stated, usual, setting| {
        let why = "is over before that server could say anything";
        some_period(stated, Duration::from_secs(usual), (key(setting).as_str(), why))
    };
    Ok(UpstreamConfig {
        name: authority.to_owned(),
        kind: written.kind.unwrap_or_default(),
        upstream_model: written.upstream_model.unwrap_or_else(|| written.model.clone()),
        model: written.model,
        url,
        key_file: written.key_file,
        tokenizer: written.tokenizer,
        max_model_len: written.max_model_len.map(usize::from),
        default_max_tokens: written.default_max_tokens.map_or(4096, u32::from),
        connect_timeout: timeout(written.connect_timeout, 5, "connect_timeout")?,
        first_byte_timeout: timeout(written.first_byte_timeout, 120, "first_byte_timeout")?,
        idle_timeout: timeout(written.idle_timeout, 60, "idle_timeout")?,
        health_path,
        health_interval: some_period(
            written.health_interval,
            Duration::from_secs(10),
            (key("health_interval").as_str(), "would ask that server without a pause"),
        )?,
        account: written.account,
    })
}

/// Two upstreams of one model agree on what it is, and no server runs it twice.
fn check_pair(one: &UpstreamConfig, other: &UpstreamConfig) -> Result<(), ConfigError> {
    if one.model != other.model {
        return Ok(());
    }
    if one.about_model() != other.about_model() {
        let problem = format!(
            "the upstreams of `{}` disagree; give each the same tokenizer, max_model_len, default_max_tokens and account",
            one.model
        );
        return Err(ConfigError::value("upstreams", problem));
    }
    if one.url == other.url && one.upstream_model == other.upstream_model {
        let problem = format!("`{}` has {} twice; remove one of them", one.model, one.url);
        return Err(ConfigError::value("upstreams", problem));
    }
    Ok(())
}

pub(super) fn check_routing(written: &WrittenRouting) -> Result<RoutingConfig, ConfigError> {
    let first_rest = period(written.first_rest, Duration::from_secs(1));
    let longest_rest = period(written.longest_rest, Duration::from_secs(60));
    if longest_rest < first_rest {
        return Err(ConfigError::value("routing.longest_rest", "is shorter than routing.first_rest"));
    }
    Ok(RoutingConfig {
        max_tries: count(written.max_tries, 3),
        max_broken: count(written.max_broken, 2),
        failures_to_rest: written.failures_to_rest.map_or(3, u32::from),
        first_rest,
        longest_rest,
    })
}

/// `HOST:PORT` or `HOST`. A URL that holds a name and a password is refused: it would be logged. So is one with a question,
/// which paths cannot follow, and one with a port that nobody can be at.
fn authority(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    let is_odd = authority.is_empty() || authority.contains('@') || rest.contains(['?', '#']);
    (!is_odd && has_fitting_port(authority)).then_some(authority)
}

/// Or none. Colons in brackets are an address's own.
fn has_fitting_port(authority: &str) -> bool {
    let behind_host = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    behind_host.split_once(':').is_none_or(|(_, port)| port.parse::<NonZeroU16>().is_ok())
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment};
    use super::*;

    fn check(text: &str) -> Result<Config, ConfigError> {
        let environment = Environment { home: Some("/home/ada".into()), ..Environment::default() };
        Config::check(toml::from_str(text).expect("the test's TOML is well formed"), &environment)
    }

    fn refusal(text: &str) -> String {
        check(text).expect_err("it must be refused").to_string()
    }

    #[test]
    fn a_gateway_with_upstreams_alone_loads_no_model() {
        let config = check("upstreams = [{ model = \"big\", url = \"http://10.0.0.7:8000/v1/\" }]").expect("valid");
        assert!(config.models.is_empty());
        let upstream = &config.upstreams[0];
        assert_eq!((upstream.name.as_str(), upstream.upstream_model.as_str()), ("10.0.0.7:8000", "big"));
        assert_eq!(RemoteModelConfig::of_all(&config.upstreams).len(), 1);
    }

    #[test]
    fn offline_allows_upstreams_on_this_machine_only() {
        let with =
            |url: &str| check(&format!("upstreams = [{{ model = \"m\", url = \"{url}\" }}]\n[server]\noffline = true"));
        for here in ["http://127.0.0.1:1", "http://localhost:1/v1", "http://[::1]:1"] {
            with(here).expect(here);
        }
        for away in ["http://10.0.0.7:1", "https://example.org", "http://localhost.example.org:1"] {
            let error = with(away).expect_err(away).to_string();
            assert!(error.starts_with("upstreams[0].url: ") && error.contains(away), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_an_address_is_refused() {
        let with = |url: &str| format!("upstreams = [{{ model = \"m\", url = \"{url}\" }}]");
        for odd in ["10.0.0.7:8000", "ftp://h", "http://", "http://user:secret@h", "http://h/v1?key=x", "http://h#x"] {
            assert!(refusal(&with(odd)).contains("is not a URL"), "{odd}");
        }
        for port in ["http://h:0", "http://[::1]:0/v1", "http://h:65536", "http://h:", "http://h:x", "http://::1"] {
            assert!(refusal(&with(port)).contains("a port from 1 to 65535"), "{port}");
        }
        for right in ["http://h:65535/v1", "http://[::1]", "http://[::1]:1", "https://h"] {
            check(&with(right)).expect(right);
        }
        let odd = refusal("upstreams = [{ model = \"m\", url = \"http://h\", health_path = \"health\" }]");
        assert!(odd.starts_with("upstreams[0].health_path: "), "{odd}");
    }

    #[test]
    fn a_refusal_says_which_of_several_upstreams_it_is_of() {
        let second = |settings: &str| {
            refusal(&format!(
                "upstreams = [{{ model = \"m\", url = \"http://a\" }}, {{ url = \"http://b\", {settings} }}]"
            ))
        };
        let odd = second("model = \"a b\"");
        assert!(odd.starts_with("upstreams[1].model: `a b` is not a name") && !odd.contains("SOURCE"), "{odd}");
        for setting in ["key_file", "tokenizer"] {
            let missing = second(&format!("model = \"n\", {setting} = \"/nowhere\""));
            let begins = format!("upstreams[1].{setting}: /nowhere");
            assert!(missing.starts_with(&begins) && missing.ends_with("does not exist"), "{missing}");
        }
    }

    #[test]
    fn a_time_in_which_no_server_could_answer_is_refused_by_its_key() {
        for key in ["connect_timeout", "first_byte_timeout", "idle_timeout", "health_interval"] {
            let zero = refusal(&format!("upstreams = [{{ model = \"m\", url = \"http://h\", {key} = \"0s\" }}]"));
            assert!(zero.starts_with(&format!("upstreams[0].{key}: 0s ")), "{zero}");
        }
    }

    #[test]
    fn upstreams_of_one_model_agree_on_it() {
        let pair = |more: &str| {
            refusal(&format!("upstreams = [{{ model = \"m\", url = \"http://a\" }}, {{ model = \"m\", {more} }}]"))
        };
        assert!(pair("url = \"http://b\", max_model_len = 9").contains("disagree"));
        assert!(pair("url = \"http://a/\"").contains("twice"));
    }

    #[test]
    fn rests_grow() {
        let error = refusal("[routing]\nfirst_rest = \"5s\"\nlongest_rest = \"1s\"");
        assert!(error.starts_with("routing.longest_rest"), "{error}");
    }
}
