//! What this room writes through: the system's files, or a disk that a test fills.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write};

/// Where bytes go. What is refused may have been written in part.
pub trait Disk: Debug + Send + Sync {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }
}
