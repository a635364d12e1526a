use std::os::unix::fs::PermissionsExt;

use passerelle::workers::WorkerTls;
use tokio::io::AsyncReadExt;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_socket_of_workers_is_for_its_owner_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join(WORKER_SOCKET);
    std::fs::write(&socket, "left by a server that was killed").expect("the folder is writable");
    let _listener = listen(&socket).expect("the path is free");
    assert_eq!(socket.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn strangers_that_say_nothing_keep_no_worker_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let entry = RemoteEntry::open(([127, 0, 0, 1], 0).into(), folder.path()).expect("a free port");
    let address = entry.listener.local_addr().expect("it is bound");
    let last_day = last_day(1).expect("tomorrow is a day");
    let papers = Authority::open(folder.path()).and_then(|authority| authority.enrol("far", last_day)).expect("made");
    let bounds = GateBounds { longest_silence: PATIENCE, longest_standstill: PATIENCE };
    let gate = Gate::new([], bounds, Arc::new(SystemClock::new()));
    let enters = tokio::spawn(entry.let_in(gate, Arc::new(Semaphore::new(1))));
    let mut strangers = Vec::new();
    for _ in 0..=MAX_UNPROVEN {
        strangers.push(TcpStream::connect(address).await.expect("anybody may dial"));
    }
    let worker = WorkerTls::new(&papers).expect("they are good");
    let connects = async { worker.connect(TcpStream::connect(address).await?).await };
    // Well before the strangers' time is over.
    let connected = timeout(HANDSHAKE_TIMEOUT / 2, connects).await.expect("nobody is in the way");
    connected.expect("it proves itself");
    let ended =
        timeout(HANDSHAKE_TIMEOUT / 2, strangers[0].read_u8()).await.expect("the oldest is dropped for the newest");
    assert!(ended.is_err());
    enters.abort();
}

#[test]
fn a_worker_is_started_with_its_device_in_the_environment_and_from_a_file_that_is_not_replaced() {
    let command = WorkerCommand::of_this_program(["--threads", "2"].map(OsString::from));
    let device = OneDevice { variable: "CUDA_VISIBLE_DEVICES", uuid: "MIG-1".to_owned() };
    let process = command.process("left", Path::new("/run/workers.sock"), Some(&device));
    assert!(process.get_envs().any(|(name, value)| name == "CUDA_VISIBLE_DEVICES" && value == Some("MIG-1".as_ref())));
    assert!(process.get_args().any(|argument| argument == "--sees-one-device"));
    assert_eq!(process.get_program(), "/proc/self/exe");
    let plain = command.process("left", Path::new("/run/workers.sock"), None);
    let set: Vec<_> = plain.get_envs().filter(|(_, value)| value.is_some()).collect();
    let [order, by_bus] = ["CUDA_DEVICE_ORDER", "PCI_BUS_ID"].map(std::ffi::OsStr::new);
    assert_eq!(set, [(order, Some(by_bus))], "it sees what the gateway sees, counted as nvidia-smi does");
    assert!(!plain.get_args().any(|argument| argument == "--sees-one-device"));
}
