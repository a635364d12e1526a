use clap::CommandFactory;
use passerelle::config::Environment;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn serve(line: &str) -> passerelle::config::Config {
    let environment = Environment { home: Some("/home/ada".into()), ..Environment::default() };
    let environment = Environment { hf_home: Some("/home/ada/hf".into()), ..environment };
    match parse(line).expect(line).command {
        Command::Serve(args) => args.config(&environment).expect(line),
        other => panic!("{line} is {other:?}"),
    }
}

#[test]
fn the_options_do_not_contradict_each_other() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_option_of_serve_reaches_the_configuration() {
    let config = serve(
        "passerelle serve --model a=x/y --model b=./z --listen unix:/s --data-dir /d --device cpu --dtype f16 \
         --kv-dtype bf16 --activation-dtype int8 --max-model-len 100 --max-num-seqs 3 --max-num-batched-tokens 50 --kv-cache-memory 64MiB \
         --threads 2 --cpu-affinity 0-2,5 --numa interleave --offline --log-format json --log-level warn",
    );
    use passerelle::config::{ActivationDtype, ByteSize, KvDtype, LogFormat, LogLevel, Numa, WeightDtype};
    use passerelle::placement::{Device, DeviceChoice};
    assert_eq!(config.models.iter().map(|m| (&*m.name, &*m.source)).collect::<Vec<_>>(), [("a", "x/y"), ("b", "./z")]);
    assert!(config.models.iter().all(|m| (m.dtype, m.kv_dtype) == (WeightDtype::F16, KvDtype::Bf16)));
    assert!(config.models.iter().all(|m| m.activation_dtype == ActivationDtype::Int8));
    assert!(config.models.iter().all(|m| m.max_model_len == Some(100)));
    assert_eq!(config.server.listen.to_string(), "unix:/s");
    assert_eq!(config.server.data_dir.to_str(), Some("/d"));
    assert_eq!(config.engine.device, DeviceChoice::Named(Device::Cpu));
    assert_eq!((config.engine.steps.max_num_seqs, config.engine.steps.max_num_batched_tokens), (3, 50));
    assert_eq!(config.engine.kv_cache_memory, Some(ByteSize(64 << 20)));
    assert_eq!(config.engine.threads, Some(2));
    assert_eq!(config.engine.processors.as_ref().map(ToString::to_string).as_deref(), Some("0-2,5"));
    assert_eq!(config.engine.numa, Numa::Interleave);
    assert!(config.hub.offline);
    assert_eq!((config.log.format, config.log.level), (LogFormat::Json, LogLevel::Warn));
}

#[test]
fn a_typing_error_is_answered_with_the_right_spelling() {
    for (line, hint) in [("passerelle serve --modle x", "--model"), ("passerelle sreve", "serve")] {
        let message = parse(line).expect_err(line).to_string();
        assert!(message.contains(hint), "{message}");
    }
}

#[test]
fn a_number_that_cannot_be_read_is_refused_in_words_that_ask_for_no_rust() {
    for (line, reason) in [
        ("passerelle serve --threads 0", "`0` is no whole number above 0"),
        ("passerelle bench --batch 1,x", "`x` is no whole number above 0"),
        ("passerelle quota set acme tokens_per_day many", "`many` is no number"),
    ] {
        let message = parse(line).expect_err(line).to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_limit_is_also_named_as_the_option_of_account_create() {
    for line in [
        "passerelle quota set acme --tokens-per-day 5",
        "passerelle quota set acme --dry-run --tokens-per-day 5 --model demo",
        "passerelle quota set --dry-run acme tokens_per_day 5",
        "passerelle quota remove acme --tokens-per-day --dry-run",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let line = "passerelle quota set acme --tokens-per-dya 5";
    let message = parse(line).expect_err(line).to_string();
    assert!(message.contains("did you mean 'tokens_per_day'?"), "{message}");
}

#[test]
fn help_shows_examples_for_every_command() {
    for command in Cli::command().get_subcommands() {
        assert!(command.get_after_help().is_some(), "{} has no examples", command.get_name());
        assert!(command.get_about().is_some(), "{} does not say what it does", command.get_name());
    }
}

#[test]
fn a_server_and_a_model_to_load_exclude_each_other() {
    parse("passerelle chat --url http://x --model y").expect_err("only one of them can answer");
}

#[test]
fn how_a_model_is_loaded_is_not_asked_of_a_server_that_has_loaded_it() {
    for option in ["--max-model-len 64", "--dtype f32", "--offline", "--data-dir x"] {
        let line = format!("passerelle chat --url http://x {option}");
        let message = parse(&line).expect_err(&line).to_string();
        let (name, _) = option.split_once(' ').unwrap_or((option, ""));
        assert!(message.contains("'--url <URL>' cannot be used with") && message.contains(name), "{message}");
    }
    parse("passerelle chat --url http://x --name y --temperature 0").expect("that server can be asked so");
}
