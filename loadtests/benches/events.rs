//! What the generator costs: events per second that one core of it takes in, over real sockets.
//!
//! `cargo bench -p passerelle-loadtests` prints one line. The server runs on threads of its own, whose time is not
//! counted; each event is a chunk and a write of its own, as real servers send them.

use std::time::Duration;

use passerelle_loadtests::generate::{Call, Route, generate};
use passerelle_loadtests::http::{Client, Endpoint};
use passerelle_loadtests::record::{Ending, Expect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const STREAMS: usize = 64;
const EVENTS: usize = 2000;
const TICKS_PER_S: f64 = 100.0;

fn main() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let server = server.expect("a runtime starts");
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    server.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    let generator = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let before = thread_cpu_s();
    let events = generator.block_on(take_in(&format!("http://{address}")));
    let seconds = thread_cpu_s() - before;
    eprintln!(
        "{events} events took {seconds:.2} s of one core: {:.0} events per second per core",
        events as f64 / seconds
    );
}

async fn take_in(url: &str) -> usize {
    let client = Client::plain(Endpoint::parse(url).expect("it is a URL"));
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let client = client.clone();
        streams.spawn(async move {
            let call = Call {
                route: Route::Chat,
                body: "{}".to_owned(),
                api_key: None,
                leave_after: None,
                timeout: Duration::from_secs(300),
                expect: Expect::Answer,
            };
            generate(&client, &call).await
        });
    }
    let answers = streams.join_all().await;
    assert!(answers.iter().all(|answer| answer.ending == Ending::Finished && answer.events.len() == EVENTS));
    answers.iter().map(|answer| answer.events.len()).sum()
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    stream.set_nodelay(true)?;
    let _ = stream.read(&mut request).await?;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let event = "data: {\"id\":\"chatcmpl-0123456789abcdef01234567\",\"object\":\"chat.completion.chunk\",\"created\":\
                 1767225600,\"model\":\"demo\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":\
                 null,\"finish_reason\":null}]}\n\n";
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    for _ in 0..EVENTS {
        stream.write_all(chunk.as_bytes()).await?;
        tokio::task::yield_now().await;
    }
    stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await
}

/// Of this thread, user and system.
fn thread_cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux tells a thread's time");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("the name is in parentheses").1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("ticks")).sum();
    ticks / TICKS_PER_S
}
