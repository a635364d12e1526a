//! The bounds of the rooms that answer, out of the checked configuration.

use anyhow::{Context, Result};
use passerelle::api::{
    self, AllowedOrigins, ApiConfig, BrowserGuard, CompileBounds, RequestBounds, RouteSwitch, ServeConfig,
    ShadowBounds, SseConfig,
};
use passerelle::batches::BatchBounds;
use passerelle::config::{BatchesConfig, Config, UnknownFields};
use passerelle::gateway::PrefixSharing;
use passerelle::text::GrammarBounds;

pub(super) fn api_config(config: &Config, guard: BrowserGuard) -> Result<ApiConfig> {
    let written = &config.api;
    Ok(ApiConfig {
        unknown_fields: match written.unknown_fields {
            UnknownFields::Refuse => api::UnknownFields::Error,
            UnknownFields::Warn => api::UnknownFields::Warn,
        },
        max_body_bytes: written.max_body.0 as usize,
        body_timeout: written.read_timeout,
        request_timeout: written.request_timeout,
        longest_load: config.shelf.longest_load,
        max_concurrent_requests: written.max_concurrent_requests,
        max_concurrent_encodes: written.max_concurrent_encodes,
        bounds: RequestBounds {
            max_messages: written.max_messages,
            max_tools: written.max_tools,
            max_stop_strings: written.max_stop_strings,
            max_stop_bytes: written.max_stop_bytes,
            max_stop_token_ids: written.max_stop_token_ids,
            max_logit_bias: written.max_logit_bias,
            max_bad_words: written.max_bad_words,
            max_prompts: written.max_prompts,
            max_choices: written.max_choices,
            max_inputs: written.max_inputs,
            max_compared_models: written.max_compared_models,
        },
        prefix_sharing: prefix_sharing(&written.shared_prefixes)?,
        grammar: GrammarBounds {
            max_bytes: config.grammar.max_bytes.0 as usize,
            max_depth: config.grammar.max_depth,
            max_size: config.grammar.max_size,
            max_states: config.grammar.max_states,
            compile_fuel: config.grammar.compile_fuel,
            token_fuel: config.grammar.token_fuel,
        },
        compiling: CompileBounds {
            max_concurrent: config.grammar.max_concurrent_compiles,
            timeout: config.grammar.compile_timeout,
        },
        sse: SseConfig {
            max_pending_frames: written.max_pending_frames,
            write_timeout: written.stalled_reader_timeout,
            keep_alive: written.keep_alive,
        },
        shadow: ShadowBounds {
            max_running: config.shadow.max_running,
            max_waiting: config.shadow.max_waiting,
            max_tokens: config.shadow.max_tokens,
        },
        guard,
        allowed_origins: AllowedOrigins::new(written.cors_origins.iter().map(ToString::to_string))?,
        compress_above_bytes: written.compress_above.0 as usize,
        site: config.server.site.clone(),
        tokenizer_info: if written.tokenizer_info { RouteSwitch::On } else { RouteSwitch::Off },
    })
}

pub(super) fn batch_bounds(written: &BatchesConfig) -> BatchBounds {
    BatchBounds {
        max_file_bytes: written.max_file.0,
        max_stored_bytes: written.max_stored.0,
        max_files: written.max_files,
        max_batches: written.max_batches,
        max_ended: written.max_ended,
        max_requests: written.max_requests,
        max_running_requests: written.max_running_requests,
    }
}

pub(super) fn serve_config(config: &Config) -> ServeConfig {
    ServeConfig {
        max_connections: config.server.max_connections,
        header_timeout: config.api.read_timeout,
        half_closed_timeout: config.api.half_closed_timeout,
        write_timeout: config.api.stalled_reader_timeout,
        max_streams_per_connection: config.server.max_streams_per_connection,
        drain_timeout: config.server.drain_timeout,
    }
}

fn prefix_sharing(accounts: &[String]) -> Result<PrefixSharing> {
    let parse = |path: &String| path.parse().with_context(|| format!("api.shared_prefixes: `{path}`"));
    Ok(PrefixSharing::below(accounts.iter().map(parse).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use passerelle::config::{Environment, Written};

    use super::*;

    #[test]
    fn the_rooms_own_defaults_are_those_of_the_configuration() {
        let home = Some("/home/ada".into());
        let environment = Environment { hf_home: home.clone(), home, ..Environment::default() };
        let config = Config::check(Written::default(), &environment).expect("the defaults are valid");
        let api = api_config(&config, BrowserGuard::LocalOnly).expect("no origin is listed");
        assert_eq!(format!("{api:?}"), format!("{:?}", ApiConfig::default()));
        assert_eq!(format!("{:?}", serve_config(&config)), format!("{:?}", ServeConfig::default()));
        assert_eq!(format!("{:?}", batch_bounds(&config.batches)), format!("{:?}", BatchBounds::default()));
    }
}
