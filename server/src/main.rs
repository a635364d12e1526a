//! The `passerelle` command. All it does itself is turn an error into an exit code.

#[macro_use]
mod tell;

mod cli;
mod serve;

use std::process::ExitCode;

use clap::Parser;

/// Gives back what it holds free; the system's own keeps what was freed in the middle, and a busy server seems to leak.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads before its first allocation, as C reads text. By itself it gives an allocation of 8 MiB or more back
/// to the system as soon as it is freed, and the activations of a long prompt are such: every layer would have the system
/// clear their pages anew. So they are kept like all others, for ten seconds, which a thread of jemalloc's own looks after:
/// a server that has become idle allocates nothing, and would keep them.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a name that C knows")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 44] = b"oversize_threshold:0,background_thread:true\0";

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
