use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use passerelle::config::{Environment, ServerConfig};

use super::*;

/// Two cards, the second of them cut.
const LIST: &str = "\
GPU 0: NVIDIA L40S (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa22bb-0000-4106-c12f-20bd9faed9f7)
  MIG 3g.40gb     Device  0: (UUID: MIG-5f36b2a0-5f9e-5b0d-9f3a-8d1a1a3c2b11)
  MIG 1g.10gb     Device  1: (UUID: MIG-5f36b2a0-6000-5b0d-9f3a-8d1a1a3c2b12)
";
const WHOLE: &str = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
const SLICE: &str = "MIG-5f36b2a0-6000-5b0d-9f3a-8d1a1a3c2b12";

fn checked(text: &str) -> Config {
    let written = toml::from_str(text).expect("well formed");
    let environment = Environment { home: Some("/home/nobody".into()), ..Environment::default() };
    Config::check(written, &environment).expect("it makes sense")
}

/// What the worker of a partition with that device finds in its environment.
fn environment(device: &str, variable: Option<&str>) -> Result<Option<String>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("devices");
    fs::write(&file, LIST).expect("the folder is writable");
    let config = checked(&format!(
        "[[partitions]]\nname = \"a\"\ndevice = \"{device}\"\n[[models]]\nname = \"m\"\nsource = \"demo\"\n\
         partition = \"a\"\n"
    ));
    let engine =
        EngineConfig { device_list: Some(file), visible_devices: variable.map(str::to_owned), ..config.engine.clone() };
    let made = OneDevice::of(&engine, &config.partitions[0])?;
    Ok(made.map(|OneDevice { variable, uuid }| format!("{variable}={uuid}")))
}

#[test]
fn the_worker_of_a_slice_or_of_a_device_by_uuid_sees_that_one_alone() {
    let environment = |device, variable| environment(device, variable).expect("it is visible");
    let alone = |uuid: &str| Some(format!("CUDA_VISIBLE_DEVICES={uuid}"));
    assert_eq!(environment("MIG-5f36b2a0-6", None), alone(SLICE));
    assert_eq!(environment("GPU-8932f9", None), alone(WHOLE));
    assert_eq!(environment("cuda:2", Some("0,1")), alone(SLICE), "counted in the gateway's own list");
    assert_eq!(environment("cuda:0", None), None, "counted by the worker itself");
    assert_eq!(environment("cpu", None), None);
}

#[test]
fn a_partition_of_a_device_that_is_hidden_is_refused_by_its_key() {
    let error = environment("MIG-5f36b2a0-6", Some("0")).expect_err("it is not in the list");
    let said = format!("{error:#}");
    assert!(said.contains("partitions[0].device") && said.contains("MIG-5f36b2a0-6") && said.contains(WHOLE), "{said}");
}

#[test]
fn a_driver_that_fails_is_quoted_and_one_without_devices_lists_none() {
    let list = |code: i32, said: &str, complaint: &str| {
        let status = ExitStatus::from_raw(code << 8);
        list_of(&Output { status, stdout: said.into(), stderr: complaint.into() })
    };
    assert_eq!(list(0, LIST, "").expect("two cards").devices.len(), 2);
    assert_eq!(list(NOTHING_FOUND, "No devices were found\n", "").expect("the driver is well").devices, []);
    assert_eq!(list(14, LIST, "WARNING: infoROM is corrupted\n").expect("there is a list").devices.len(), 2);
    for (said, complaint) in [("", "Driver/library version mismatch\n"), ("Driver/library version mismatch\n", "")] {
        let error = list(18, said, complaint).expect_err("it failed").to_string();
        assert!(error.contains("exit status: 18): Driver/library version mismatch; use --device cpu"), "{error}");
    }
}

#[test]
fn a_uuid_is_the_first_device_only_where_nothing_else_is_visible() {
    let uuid = DeviceId::Uuid(SLICE.to_owned());
    assert_eq!(ordinal(&uuid, Some(SLICE), Sight::Inherited), Some(0));
    assert_eq!(ordinal(&uuid, Some("MIG-5f36b2a0-6"), Sight::Inherited), Some(0));
    for other in [None, Some(""), Some("0"), Some(WHOLE)] {
        assert_eq!(ordinal(&uuid, other, Sight::Inherited), None, "{other:?}");
        assert_eq!(ordinal(&uuid, other, Sight::OneDevice), Some(0));
    }
    assert_eq!(ordinal(&DeviceId::Index(3), Some("0,1,2,3"), Sight::Inherited), Some(3));
    assert_eq!(ordinal(&DeviceId::Index(3), Some(SLICE), Sight::OneDevice), Some(0));
}

#[test]
fn a_gateway_opens_a_device_only_for_models_of_its_own() {
    let placed =
        "[engine]\ndevice = \"cuda:0\"\n[[partitions]]\nname = \"a\"\n[[models]]\nname = \"m\"\nsource = \"demo\"\n";
    let on_partition = checked(&format!("{placed}partition = \"a\"\n"));
    assert!(compute_of_gateway(&on_partition).expect("it opens no GPU").device().is_cpu());
    let own = "[[models]]\nname = \"own\"\nsource = \"demo\"\n";
    assert!(runs_models(&checked(&format!("{placed}partition = \"a\"\n{own}"))));
    let shelf = on_partition.server.clone();
    let shelf = ServerConfig { models_dir: Some("models".into()), ..shelf };
    assert!(runs_models(&Config { server: shelf, ..on_partition }));
}

#[test]
fn more_threads_than_processors_are_noticed_and_as_many_are_not() {
    let too_few = |engine: &str| {
        let config = checked(&format!("[engine]\n{engine}\n[[models]]\nname = \"m\"\nsource = \"demo\"\n"));
        warning_of_threads(&config.engine)
    };
    assert!(too_few("threads = 3\ncpu_affinity = \"0-1\"").unwrap().contains("the 2 processors"));
    assert_eq!(too_few("threads = 2\ncpu_affinity = \"0-1\""), None);
    assert_eq!(too_few("cpu_affinity = \"0\""), None, "none were asked for");
}
