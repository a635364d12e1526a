//! Requests that are too large, too many or never end: refused early, and the memory stays.

use std::time::Duration;

use super::{CheckError, Context};
use crate::clock::now;
use crate::http::{Connect, HttpError};
use crate::process::Watch;
use crate::verdict::Verdict;

/// A refusal, or the end of the connection, must come within it. Servers give slow senders a minute.
const MAX_WAIT: Duration = Duration::from_secs(65);
const MAX_GROWTH_BYTES: u64 = 256 << 20;
const PIECE_BYTES: usize = 64 * 1024;
const MIB: usize = 1 << 20;

/// A request: what it starts with, and what is then sent again and again.
struct Bomb {
    name: &'static str,
    start: String,
    piece: Vec<u8>,
    pieces: usize,
}

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let mut verdict = Verdict::new(
        "bombs",
        format!(
            "header and body bombs are refused within {} s, cost at most {} MiB, and the server lives",
            MAX_WAIT.as_secs(),
            MAX_GROWTH_BYTES >> 20
        ),
    );
    let watch = Watch::start(context.server_pid);
    let bombs = bombs(&context.session.client.endpoint().authority);
    verdict.tried(format!("{} kinds of bombs, one after the other", bombs.len()));
    for bomb in &bombs {
        let start = now();
        let end = tokio::time::timeout(MAX_WAIT, throw(context, bomb)).await;
        let taken = start.elapsed().as_secs_f64();
        match end {
            Ok(Defence::Status(status)) => verdict.figure(bomb.name, format!("{status} after {taken:.2} s")),
            Ok(Defence::Closed) => verdict.figure(bomb.name, format!("connection closed after {taken:.2} s")),
            Err(_) => verdict.figure(bomb.name, format!("no end after {taken:.0} s")),
        }
        let refused = match end {
            Ok(Defence::Status(status)) => (400..500).contains(&status),
            Ok(Defence::Closed) => true,
            Err(_) => false,
        };
        verdict.require(refused, || format!("{} was not refused", bomb.name));
        context.require_alive(&mut verdict, &format!("after {}", bomb.name)).await;
    }
    let (machine, _) = watch.finish();
    match machine.server_rss_start_bytes.zip(machine.server_rss_max_bytes) {
        Some((before, largest)) => {
            let growth = largest.saturating_sub(before);
            verdict.figure("resident size grew by", format!("{} MiB", growth >> 20));
            verdict.require(growth <= MAX_GROWTH_BYTES, || format!("it grew by {} MiB", growth >> 20));
        }
        None => verdict.cannot_tell("how much it grew: the server's process is not known; give its --server-pid"),
    }
    Ok(verdict)
}

/// How the server ended it.
enum Defence {
    Status(u16),
    Closed,
}

/// Sends until the server answers or closes. What cannot be sent any more may still be answered.
async fn throw<C: Connect>(context: &Context<'_, C>, bomb: &Bomb) -> Defence {
    let Ok(mut connection) = context.session.client.connect().await else { return Defence::Closed };
    let mut sent = connection.send(bomb.start.as_bytes()).await;
    for _ in 0..bomb.pieces {
        if sent.is_err() {
            break;
        }
        sent = connection.send(&bomb.piece).await;
    }
    match connection.read_head().await {
        Ok(head) => Defence::Status(head.status),
        Err(HttpError::Malformed(_)) => Defence::Status(0),
        Err(_) => Defence::Closed,
    }
}

fn bombs(authority: &str) -> Vec<Bomb> {
    let post = |headers: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n{headers}"
        )
    };
    let chunk = {
        let mut chunk = format!("{PIECE_BYTES:x}\r\n").into_bytes();
        chunk.resize(chunk.len() + PIECE_BYTES, b' ');
        chunk.extend_from_slice(b"\r\n");
        chunk
    };
    let spaces = vec![b' '; PIECE_BYTES];
    vec![
        Bomb {
            name: "one header of 8 MiB",
            start: post("X-Long: "),
            piece: vec![b'x'; PIECE_BYTES],
            pieces: 8 * MIB / PIECE_BYTES,
        },
        Bomb { name: "100,000 headers", start: post(""), piece: b"X-Many: 1\r\n".repeat(1000), pieces: 100 },
        Bomb {
            name: "a path of 8 MiB",
            start: "GET /".to_owned(),
            piece: vec![b'a'; PIECE_BYTES],
            pieces: 8 * MIB / PIECE_BYTES,
        },
        Bomb {
            name: "a body that says 1 TiB",
            start: post("Content-Length: 1099511627776\r\n\r\n"),
            piece: spaces.clone(),
            pieces: 512 * MIB / PIECE_BYTES,
        },
        Bomb {
            name: "a body of 512 MiB in chunks",
            start: post("Transfer-Encoding: chunked\r\n\r\n"),
            piece: chunk,
            pieces: 512 * MIB / PIECE_BYTES,
        },
        Bomb {
            name: "1 MiB of open brackets",
            start: post(&format!("Content-Length: {MIB}\r\n\r\n")),
            piece: vec![b'['; PIECE_BYTES],
            pieces: MIB / PIECE_BYTES,
        },
        Bomb {
            name: "a body that never comes",
            start: post("Content-Length: 1000\r\n\r\n{"),
            piece: Vec::new(),
            pieces: 0,
        },
        Bomb { name: "a head that never ends", start: post("X-Slow: "), piece: Vec::new(), pieces: 0 },
    ]
}
