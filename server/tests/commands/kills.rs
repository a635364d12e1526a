//! The ledger outlives the process: the real binary is killed in the middle of streams, and started again.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::thread;

use serde_json::{Value, json};

use super::binary::{Served, State};
use super::chance::Chance;
use super::ledger::{entries, make_key};

const STREAMS: usize = 6;
/// What may be sent after a mark.
const MARK_TOKENS: u64 = 16;
/// Long enough that no stream ends by itself before the kill.
const LONG: u32 = 1_800;

/// Asks for a long stream and reads it to its end, however that comes: how many tokens arrived. `heard` is told the number of
/// each event.
fn tokens_until_the_end(address: &str, key: &str, heard: impl Fn(usize)) -> u64 {
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": LONG, "ignore_eos": true, "stream": true,
                      "return_token_ids": true})
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let (mut events, mut tokens) = (0, 0);
    // A killed server resets the connection; what came before that counts.
    for line in BufReader::new(connection).lines().map_while(Result::ok) {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
        tokens += event["choices"][0]["token_ids"].as_array().map_or(0, |ids| ids.len() as u64);
        events += 1;
        heard(events);
    }
    tokens
}

/// Kills a server with live streams once `seen` events arrived at one of them, and checks what the next start bills.
fn kill_once(state: &State, key: &str, seen: usize) {
    let before = entries(state).len();
    let served = Served::start(state, &[]);
    let killed = Cell::new(false);
    let received: Vec<u64> = thread::scope(|scope| {
        let stream = || scope.spawn(|| tokens_until_the_end(&served.address, key, |_| ()));
        let streams: Vec<_> = (0..STREAMS).map(|_| stream()).collect();
        let kill_at = |event: usize| {
            if event == seen {
                served.signal("KILL");
                killed.set(true);
            }
        };
        // Read to its end like the others: what came until the kill is billed.
        let further = tokens_until_the_end(&served.address, key, kill_at);
        streams.into_iter().map(|stream| stream.join().unwrap()).chain([further]).collect()
    });
    assert!(killed.get(), "the stream ended before its event {seen}: received {received:?}");
    drop(served);
    // The next start settles what was left open; ending it well adds nothing.
    let mut restarted = Served::start(state, &[]);
    restarted.signal("TERM");
    assert_eq!(restarted.exit_code(), Some(0));
    let mut billed: Vec<u64> = entries(state)[before..]
        .iter()
        .map(|entry| {
            assert_eq!(entry[16], "died");
            entry[13].parse().unwrap()
        })
        .collect();
    // Each stream that was admitted in time.
    assert!(billed.len() <= STREAMS + 1, "{billed:?}");
    let mut received: Vec<u64> = received.into_iter().filter(|tokens| *tokens > 0).collect();
    billed.sort_unstable();
    received.sort_unstable();
    assert!(billed.len() >= received.len(), "received {received:?}, billed {billed:?}");
    // A bill does not say whose it is; where each covers its stream, the nth largest covers the nth largest.
    let covers = |(billed, received): (&u64, &u64)| billed + MARK_TOKENS >= *received;
    assert!(billed.iter().rev().zip(received.iter().rev()).all(covers), "received {received:?}, billed {billed:?}");
    let largest = received.last().copied().unwrap_or(0);
    assert!(
        billed.iter().all(|tokens| *tokens <= largest + 4 * MARK_TOKENS),
        "received {received:?}, billed {billed:?}"
    );
    let seqs = entries(state).iter().map(|entry| entry[1].clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(seqs.len(), entries(state).len(), "no reservation is billed twice");
}

#[test]
fn a_killed_server_bills_nothing_twice_and_leaves_sixteen_tokens_of_a_stream_unbilled_at_most() {
    let state = State::new();
    let key = make_key(&state);
    let mut chance = Chance::new(7);
    // At the first event, and at some later ones.
    for seen in std::iter::once(1).chain((0..4).map(|_| 2 + chance.below(88) as usize)) {
        kill_once(&state, &key, seen);
    }
}

#[test]
#[ignore = "takes minutes: .ci/full runs it"]
fn two_hundred_kills_bill_nothing_twice() {
    let state = State::new();
    let key = make_key(&state);
    for run in 0..200 {
        kill_once(&state, &key, 1 + run * 7 % 90);
    }
}
