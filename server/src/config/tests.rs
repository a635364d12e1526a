use std::path::Path;

use super::*;

fn environment() -> Environment {
    Environment { home: Some("/home/ada".into()), hf_home: Some("/home/ada/hf".into()), ..Environment::default() }
}

fn check(text: &str) -> Result<Config, ConfigError> {
    Config::check(toml::from_str(text).expect("the test's TOML is well formed"), &environment())
}

/// The message of a file that `read` refuses.
fn refusal(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("passerelle.toml");
    std::fs::write(&file, text).expect("the folder is writable");
    read(&file).expect_err("the file must be refused").to_string()
}

#[test]
fn nothing_written_serves_the_demo_on_loopback() {
    let config = check("").expect("the defaults are valid");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.data_dir, Path::new("/home/ada/.local/share/passerelle"));
    assert_eq!(config.models.len(), 1);
    assert_eq!((config.models[0].name.as_str(), config.models[0].source.as_str()), ("demo", "demo"));
    config.check_door(false).expect("loopback needs no key");
}

#[test]
fn a_misspelt_key_is_refused_with_its_line_and_its_nearest_neighbour() {
    let message = refusal("[server]\nlisten = \"127.0.0.1:1\"\n\n[engine]\nmax_num_seq = 4\n");
    assert!(message.contains("passerelle.toml:5:1: "), "{message}");
    assert!(message.contains("did you mean `max_num_seqs`?"), "{message}");
}

#[test]
fn a_key_of_the_right_words_and_one_more_or_fewer_is_told_the_key() {
    for (text, expected) in [
        ("[engine]\nkv_memory = \"1GiB\"\n", "did you mean `kv_cache_memory`?"),
        ("[api]\nmax_body_size = \"1MiB\"\n", "did you mean `max_body`?"),
        ("[batches]\nmax_file_size = \"1MiB\"\n", "did you mean `max_file`?"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_wrong_type_is_refused_in_words_that_ask_for_no_rust() {
    for (text, expected) in [
        (
            "[engine]\nmax_num_seqs = 0\n",
            ":2:16: max_num_seqs: invalid value: integer `0`, expected a whole number above 0",
        ),
        (
            "[engine]\nmax_num_seqs = \"many\"\n",
            ":2:16: max_num_seqs: invalid type: string \"many\", expected a whole number above 0",
        ),
        (
            "models = [{ source = \"demo\", name = 3 }]",
            ":1:37: name: invalid type: integer `3`, expected a text, in quotes",
        ),
        ("engine.threads = true", ":1:18: engine.threads: invalid type: boolean `true`"),
        (
            "[server]\ntrust = \"a.pub\"\n",
            ":2:9: trust: invalid type: string \"a.pub\", expected a list, written `[\"A\", \"B\"]`",
        ),
        ("server = 3", "server: invalid type: integer `3`, expected a table, written `{ NAME = VALUE }`"),
        ("[aliases]\nchat = \"demo\"\n", "expected a table, written `{ NAME = VALUE }`"),
        ("[workers]\nlisten = 3\n", "expected an address, like \"127.0.0.1:9443\""),
        ("[workers]\nlisten = \"nonsense\"\n", ":2:10: listen: `nonsense` is not an address; write ADDR:PORT"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_table_in_the_place_of_several_is_told_by_its_name_and_so_are_several_in_the_place_of_one() {
    for (text, expected) in [
        ("[models]\nsource = \"demo\"\n", ":1:1: `models` is a list: write [[models]] above each of them"),
        ("[log]\n[upstreams]\nmodel = \"m\"\n", ":2:1: `upstreams` is a list: write [[upstreams]]"),
        ("partitions = { name = \"a\" }\n", ":1:14: `partitions` is a list: write [[partitions]]"),
        ("[log]\n[[server]]\nlisten = \"127.0.0.1:1\"\n", ":2:1: `server` is one table: write [server]"),
        ("[[log]]\nformat = \"json\"\n", ":1:1: `log` is one table: write [log]"),
        ("[[aliases]]\nchat = { demo = 1 }\n", ":1:1: `aliases` is one table: write [aliases]"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_setting_that_is_refused_once_all_is_read_is_told_with_its_line_unless_the_command_line_is_at_fault() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("p.toml");
    let refusal = |text: &str, command_line: &str| {
        std::fs::write(&file, text).expect("the folder is writable");
        let over: Written = toml::from_str(command_line).expect("the test's TOML is well formed");
        let written = over.over(read(&file).expect("it is well formed"));
        Config::check(written, &environment()).expect_err(text).to_string()
    };
    let place = |line: usize, column: usize| format!("{}:{line}:{column}: ", file.display());
    let threads = "# mine\n[engine]\nthreads = 2000\n";
    assert_eq!(refusal(threads, ""), format!("{}engine.threads (--threads): 2000 are more than 1024", place(3, 1)));
    let said = refusal("[engine]\nthreads = 4\n", "[engine]\nthreads = 2000");
    assert!(said.starts_with("engine.threads (--threads): 2000"), "the file is right: {said}");
    let partitions = "[[partitions]]\nname = \"a\"\n[[partitions]]\n  name = \"b c\"\n";
    assert!(refusal(partitions, "").starts_with(&format!("{}partitions[1].name: `b c` is not a name", place(4, 3))));
    let missing = refusal("[server]\ntls_key = \"k.pem\"\n", "");
    assert!(missing.starts_with(&format!("{}server.tls_certificate: is missing", place(1, 2))), "{missing}");
}

#[test]
fn one_of_several_models_and_what_is_found_wrong_later_are_told_with_their_lines() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("p.toml");
    let check = |text: &str, command_line: &str| {
        std::fs::write(&file, text).expect("the folder is writable");
        let over: Written = toml::from_str(command_line).expect("the test's TOML is well formed");
        Config::check(over.over(read(&file).expect("it is well formed")), &environment())
    };
    let place = |line: usize| format!("{}:{line}:", file.display());
    let first = "[[models]]\nsource = \"demo\"\n[[models]]\n";
    for (second, line, why) in [
        ("source = \"demo\"\n", 3, ": models[1].name (--model): two models are named `demo`"),
        ("source = \"a/x\"\nname = \"a b\"\n", 5, ": models[1].name (--model): `a b` is not a name"),
        ("source = \"a/x\"\npartition = \"p\"\n", 5, ": models[1].partition: `p`, where `x` is to lie"),
    ] {
        let said = check(&format!("{first}{second}"), "").expect_err(second).to_string();
        assert!(said.starts_with(&place(line)) && said.contains(why), "{said}");
    }
    let text = format!("{first}source = \"./x\"\n[aliases]\n\"chat-1.0\" = {{ nobody = 1 }}\n");
    let config = check(&text, "").expect("whether they are there is not asked");
    assert_eq!(config.place_of_source(&config.models[1]), Some(format!("{}1", place(4))));
    let error = check_targets(&config.aliases, &["demo", "x"]).expect_err("nobody is not served");
    let said = config.located(error).to_string();
    let why = "aliases.chat-1.0: `chat-1.0` stands for `nobody`, which is not served";
    assert_eq!(said, format!("{}1: {why}", place(6)));
    let config = check(&text, "models = [{ source = \"./y\" }]").expect("valid");
    assert_eq!(config.place_of_source(&config.models[0]), None, "the command line names it");
    let twice = "[[models]]\nsource = \"./x\"\n[[models]]\nsource = \"./x\"\nname = \"b\"\n";
    let config = check(twice, "").expect("valid");
    let places = [0, 1].map(|number: usize| config.place_of_source(&config.models[number]));
    assert_eq!(places, [2, 4].map(|line| Some(format!("{}1", place(line)))), "one source under two names");
}

#[test]
fn a_misspelt_section_is_refused() {
    let message = refusal("[egnine]\nthreads = 2\n");
    assert!(message.contains(":1:") && message.contains("did you mean `engine`?"), "{message}");
}

#[test]
fn a_key_under_the_wrong_header_is_told_where_it_stands() {
    for (text, expected) in [
        ("[server]\nmax_added_latency = \"1s\"\n", "; `max_added_latency` stands under [engine]"),
        ("listen = \"127.0.0.1:1\"\n", "; `listen` stands under [server] or [workers]"),
        ("[workers]\nfirst_rest = \"1s\"\n", "did you mean `first_restart`? `first_rest` stands under [routing]"),
        ("[log]\nsource = \"demo\"\n", "; `source` stands under [[models]]"),
    ] {
        let message = refusal(text);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_value_of_another_kind_is_told_what_to_write() {
    for (line, expected) in [
        ("max_added_latency = 5", "expected a period in quotes, like \"30s\""),
        ("kv_cache_memory = 256", "expected a size in quotes, like \"512MiB\""),
        ("tokenizer = 1", "expected a text, in quotes"),
        ("dtype = 8", "expected one of its names, in quotes"),
    ] {
        let message = refusal(&format!("[engine]\n{line}\n"));
        assert!(message.contains(expected), "{line}: {message}");
    }
}

#[test]
fn a_key_that_resembles_nothing_gets_no_guess() {
    let message = refusal("[log]\nxyzzy_plugh_frobnicate = 1\n");
    assert!(message.contains("unknown field") && !message.contains("did you mean"), "{message}");
}

#[test]
fn a_value_out_of_range_is_refused_with_its_line() {
    for line in [
        "threads = 0",
        "kv_cache_memory = \"lots\"",
        "device = \"tpu\"",
        "dtype = \"q9_9\"",
        "threads = -1",
        "numa = \"on\"",
    ] {
        let message = refusal(&format!("[engine]\n{line}\n"));
        assert!(message.contains("passerelle.toml:2:"), "{line}: {message}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = read(Path::new("/nowhere/passerelle.toml")).expect_err("there is no such file");
    assert!(error.to_string().contains("/nowhere/passerelle.toml"));
}

#[test]
fn the_command_line_wins_over_the_file() {
    let file: Written = toml::from_str(
        "models = [{ source = \"a/b\" }]\n[engine]\nthreads = 2\nmax_num_seqs = 8\n[log]\nlevel = \"debug\"\n",
    )
    .expect("the test's TOML is well formed");
    let command_line: Written = toml::from_str("models = [{ source = \"c/d\" }]\n[engine]\nthreads = 4\n")
        .expect("the test's TOML is well formed");
    let config = Config::check(command_line.over(file), &environment()).expect("both layers are valid");
    assert_eq!(config.engine.threads, Some(4));
    assert_eq!(config.engine.steps.max_num_seqs, 8);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["d"]);
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("passerelle.toml");
    let text = r#"
        [server]
        api_key_file = "p"
        data_dir = "p"
        models_dir = "p"
        tls_certificate = "p"
        tls_key = "p"
        trust = ["p"]
        listen = "unix:p"
        [ledger]
        tariff = "p"
        [shadow]
        folder = "p"
        [engine]
        device_list = "p"
        chat_template = "p"
        tokenizer = "./p"
        [[models]]
        source = "./p"
        tokenizer = "../p"
        chat_template = "p"
        [[models]]
        source = "org/name"
        tokenizer = "org/name"
        [[upstreams]]
        model = "m"
        url = "http://127.0.0.1:1/v1"
        key_file = "p"
        tokenizer = "p"
    "#;
    std::fs::write(&file, text).expect("the folder is writable");
    let Written { server, ledger, shadow, engine, models, upstreams, .. } = read(&file).expect("the file is valid");
    let (models, upstreams) = (models.expect("two"), upstreams.expect("one"));
    let path = folder.path().join("p");
    let trusted = server.trust.and_then(|mut keys| keys.pop());
    let of_server = [server.api_key_file, server.data_dir, server.models_dir, server.tls_certificate, server.tls_key];
    let others = [trusted, ledger.tariff, shadow.folder, engine.device_list, engine.chat_template];
    let repeated = [&models[0].chat_template, &upstreams[0].key_file, &upstreams[0].tokenizer].map(Clone::clone);
    for (place, taken) in of_server.into_iter().chain(others).chain(repeated).enumerate() {
        assert_eq!(taken.as_ref(), Some(&path), "{place}");
    }
    assert_eq!(server.listen, Some(Listen::Unix(path)));
    let beside = |source: &str| folder.path().join(source).to_str().map(str::to_owned);
    assert_eq!(engine.tokenizer, beside("./p"));
    assert_eq!((Some(models[0].source.clone()), models[0].tokenizer.clone()), (beside("./p"), beside("../p")));
    assert_eq!((models[1].source.as_str(), models[1].tokenizer.as_deref()), ("org/name", Some("org/name")));
}

#[test]
fn a_model_is_named_after_its_source_unless_it_has_a_name() {
    let config = check(
        "models = [{ source = \"./runs/step-900/\" }, { source = \"org/model@v1\" }, { source = \"x.gguf\" }, \
         { source = \"y.GGUF\" }, { name = \"mine\", source = \"org/model\" }]",
    )
    .expect("five names");
    let names: Vec<&str> = config.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["step-900", "model", "x", "y", "mine"]);
}

#[test]
fn a_path_on_the_command_line_may_hold_what_means_something_elsewhere() {
    let flag = |text: &str| text.parse::<ModelFlag>().map(|flag| (flag.name, flag.source));
    let path = |text: &str| Ok((None, text.to_owned()));
    assert_eq!(flag("./runs/lr=0.1/step"), path("./runs/lr=0.1/step"));
    assert_eq!(flag("/runs/lr=0.1"), path("/runs/lr=0.1"));
    assert_eq!(flag("mine=./runs/lr=0.1"), Ok((Some("mine".to_owned()), "./runs/lr=0.1".to_owned())));
    assert!(flag("=x").is_err() && flag("x=").is_err());
    let error = check("models = [{ source = \"./run@1\" }, { source = \"./run@2\" }]").expect_err("no names");
    assert!(error.to_string().contains("`run@1` is not a name; write NAME=SOURCE"), "{error}");
}

#[test]
fn a_partition_has_a_name_as_a_model_has() {
    for odd in ["a b", "", ".a", "-x", "\u{e9}"] {
        let error = check(&format!("[[partitions]]\nname = \"{odd}\"")).expect_err(odd).to_string();
        assert!(error.starts_with(&format!("partitions[0].name: `{odd}` is not a name; write one with ")), "{error}");
        let said = check_partition_name("--partition", odd).expect_err(odd).to_string();
        assert_eq!(said.strip_prefix("--partition: "), error.strip_prefix("partitions[0].name: "));
    }
}

#[test]
fn trust_in_nobody_is_not_taken_for_trust_in_everybody() {
    let error = check("[server]\ntrust = []").expect_err("every model would be served").to_string();
    assert!(error.starts_with("server.trust: names no key"), "{error}");
}

#[test]
fn a_number_beyond_any_need_is_a_bound_that_queues_can_be_made_of() {
    let config = check(
        "[api]\nmax_concurrent_requests = 9223372036854775807\n[engine]\nmax_queued_requests = 9223372036854775807\n\
         max_queued_tokens = 4294967294\n",
    )
    .expect("no bound is meant");
    let (most, engine) = (u32::MAX as usize, config.engine);
    assert_eq!((config.api.max_concurrent_requests, engine.max_queued_requests), (most, most));
    assert_eq!(engine.max_queued_tokens, most - 1);
}

#[test]
fn two_models_of_one_name_are_refused() {
    let error = check("models = [{ source = \"a/x\" }, { source = \"b/x\" }]").expect_err("both are called x");
    assert!(error.to_string().contains("two models are named `x`"));
}

#[test]
fn a_name_that_does_not_fit_in_a_url_is_refused() {
    for name in ["", "a b", "é", "../x", "a?b"] {
        check(&format!("models = [{{ name = \"{name}\", source = \"a/b\" }}]")).expect_err(name);
    }
}

#[test]
fn a_public_listener_without_keys_is_refused_with_what_to_do() {
    let config = check("[server]\nlisten = \"0.0.0.0:8080\"").expect("the address itself is fine");
    let message = config.check_door(false).expect_err("anybody could come in").to_string();
    assert!(message.contains("passerelle key create") && message.contains("--api-key-file"), "{message}");
    config.check_door(true).expect("a key guards the door");
}

#[test]
fn a_step_that_cannot_feed_every_sequence_is_refused() {
    let error = check("[engine]\nmax_num_seqs = 64\nmax_num_batched_tokens = 32").expect_err("32 < 64");
    assert!(error.to_string().starts_with("engine.max_num_batched_tokens: "));
    let error = check("[engine]\nthreads = 1025").expect_err("no system starts so many");
    assert!(error.to_string().starts_with("engine.threads (--threads): 1025 "), "{error}");
}

#[test]
fn processors_are_read_as_a_list_and_what_is_none_is_refused_by_key() {
    let config = check("[engine]\ncpu_affinity = \"0-3,8\"").expect("a list");
    assert_eq!(config.engine.processors.map(|processors| processors.count()), Some(5));
    for list in ["", "3-0", "0-1024", "all"] {
        let error = check(&format!("[engine]\ncpu_affinity = \"{list}\"")).expect_err(list);
        assert!(error.to_string().starts_with("engine.cpu_affinity (--cpu-affinity): "), "{error}");
    }
}

#[test]
fn a_partition_of_the_cpu_has_processors_of_its_own_and_one_of_a_gpu_has_none() {
    let on = |settings: &str| {
        check(&format!(
            "[engine]\ncpu_affinity = \"0-3\"\n[[partitions]]\nname = \"a\"\n{settings}\n\
             [[models]]\nsource = \"a/x\"\npartition = \"a\""
        ))
    };
    let config = on("cpu_affinity = \"2,5-6\"").expect("a list");
    let processors = config.partitions[0].processors.as_ref().map(ToString::to_string);
    assert_eq!(processors.as_deref(), Some("2,5-6"));
    assert_eq!(on("").expect("a partition").partitions[0].processors, None, "the engine's then");
    for wrong in ["cpu_affinity = \"all\"", "cpu_affinity = \"0-1024\"", "device = \"cuda:0\"\ncpu_affinity = \"0\""] {
        let error = on(wrong).expect_err(wrong).to_string();
        assert!(error.starts_with("partitions[0].cpu_affinity: "), "{error}");
    }
}

#[test]
fn offline_can_be_asked_for_by_key_or_by_environment() {
    let forbidden = Environment { hf_hub_offline: true, ..environment() };
    assert!(Config::check(Written::default(), &forbidden).expect("valid").hub.offline);
    let permits: Written = toml::from_str("[server]\noffline = false").expect("the test's TOML is well formed");
    assert!(Config::check(permits, &forbidden).expect("valid").hub.offline, "a file does not take it back");
    assert!(check("[server]\noffline = true").expect("valid").hub.offline);
    assert!(!check("").expect("valid").hub.offline);
}

#[test]
fn without_a_home_the_data_directory_must_be_named() {
    let error = Config::check(Written::default(), &Environment::default()).expect_err("there is no home");
    assert!(error.to_string().contains("--data-dir"));
}

#[test]
fn without_a_home_only_a_hub_model_needs_a_cache_directory() {
    let written: Written = toml::from_str("[server]\ndata_dir = \"/d\"").expect("the test's TOML is well formed");
    let config = Config::check(written, &Environment::default()).expect("nothing of the hub is asked for");
    let error = config.hub.cache_dir().expect_err("there is no home");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
}

#[test]
fn a_token_is_never_printed() {
    let environment = Environment { hf_token: Some(Secret::new("hf_abc")), ..environment() };
    let config = Config::check(Written::default(), &environment).expect("valid");
    assert!(!format!("{environment:?} {config:?}").contains("hf_abc"));
}

#[test]
fn a_time_in_which_nothing_is_possible_is_refused_by_its_key() {
    for (section, key) in [
        ("api", "request_timeout"),
        ("api", "read_timeout"),
        ("api", "stalled_reader_timeout"),
        ("api", "keep_alive"),
        ("grammar", "compile_timeout"),
        ("shelf", "look_interval"),
        ("workers", "first_restart"),
    ] {
        let error = check(&format!("[{section}]\n{key} = \"0s\"\n")).expect_err("nothing would work").to_string();
        assert!(error.contains(&format!("{section}.{key}: 0s ")), "{error}");
    }
}

#[test]
fn pauses_before_a_worker_is_started_again_grow() {
    let error = check("[workers]\nfirst_restart = \"5s\"\nlongest_restart = \"1s\"").expect_err("they would shrink");
    assert_eq!(error.to_string(), "workers.longest_restart: 1s is shorter than the 5s of workers.first_restart");
    for (key, bounds) in [("first_restart = \"2m\"", [120, 120]), ("longest_restart = \"200ms\"", [0, 0])] {
        let workers = check(&format!("[workers]\n{key}")).expect("the other follows").workers;
        assert_eq!([workers.first_restart, workers.longest_restart].map(|pause| pause.as_secs()), bounds, "{key}");
    }
}

#[test]
fn an_address_for_workers_of_other_machines_is_refused_where_no_partition_has_one() {
    let with = |partitions: &str| check(&format!("[workers]\nlisten = \"127.0.0.1:9443\"\n{partitions}"));
    let partition = "[[partitions]]\nname = \"a\"\n";
    let model = "[[models]]\nsource = \"a/x\"\npartition = \"a\"\n";
    for none in [String::new(), format!("{partition}{model}")] {
        let error = with(&none).expect_err("nobody would be let in").to_string();
        assert!(error.starts_with("workers.listen: ") && error.contains("worker = \"remote\""), "{error}");
    }
    with(&format!("{partition}worker = \"remote\"\n{model}")).expect("one comes from there");
}

#[test]
fn a_chat_template_that_is_not_there_is_told_with_the_model_that_names_it() {
    let text =
        "models = [{ source = \"demo\" }, { name = \"mine\", source = \"a/x\", chat_template = \"/nowhere.jinja\" }]";
    let error = check(text).expect_err("there is no such file").to_string();
    assert_eq!(error, "models[1].chat_template of `mine`: /nowhere.jinja does not exist");
}

#[test]
fn a_worker_that_may_not_be_silent_for_any_time_is_refused_by_the_key() {
    for key in ["longest_silence", "longest_standstill"] {
        let error = check(&format!("[workers]\n{key} = \"0s\"\n")).expect_err("every worker would be gone").to_string();
        assert!(error.contains(&format!("workers.{key}")), "{error}");
        check(&format!("[workers]\n{key} = \"1ms\"\n")).expect("short, and possible");
    }
}
