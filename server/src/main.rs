//! The `passerelle` command. All it does itself is turn an error into an exit code.

mod cli;
mod serve;

use std::process::ExitCode;

use clap::Parser;

/// Gives back what it holds free; the system's own keeps what was freed in the middle, and a busy server seems to leak.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
