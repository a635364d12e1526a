//! One binary with CUDA code that starts where there is no driver.
//!
//! The crates below candle call the functions of the driver and of cuBLAS by name and leave them to the dynamic linker,
//! which ends a program before `main` where a library is missing. This crate defines those functions itself: each jumps
//! through a slot that is filled at its first call, with what the real library has under the same name, or with a
//! function that returns an error where there is none. So a missing driver is an error of the first call, and the CPU
//! serves.
//!
//! ```text
//! cuInit:   jmp *slot      slot -> first call -> resolve: dlopen, dlsym -> slot -> the driver's cuInit
//! ```
//!
//! `build.rs` puts empty archives where the linker looks for the libraries. A function that a newer candle calls and
//! `names.rs` lacks is an undefined symbol when a `cuda` build is linked: add its name.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod lazy;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod names;

/// Makes whoever calls it link with the functions of this crate. Does nothing else.
pub fn link() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    names::link();
}
