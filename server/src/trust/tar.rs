//! The little of the tar format (POSIX.1-1988, ustar) that a bundle needs: plain files, one after the other. Every tar reads
//! what is written here; what is read here must have been written so.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;
const MAX_NAME_BYTES: usize = 100;
/// The largest size that eleven octal digits write; larger ones are written in base 256, as GNU and Go do.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// One file of an archive: what stands before its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size_bytes: u64,
}

impl Header {
    /// Errors when the name is too long for an archive.
    pub(super) fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.to_block()?)
    }

    /// `None` at the end of the archive.
    pub(super) fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut block = [0; BLOCK];
        from.read_exact(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let odd = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "holds an entry that `passerelle bundle` does not write, so it is no bundle",
            )
        };
        let end = block[..MAX_NAME_BYTES].iter().position(|byte| *byte == 0).unwrap_or(MAX_NAME_BYTES);
        let name = std::str::from_utf8(&block[..end]).map_err(|_| odd())?.to_owned();
        let header = Self { name, size_bytes: read_size(&block[124..136]).ok_or_else(odd)? };
        // There is one way to write it, so nothing that is not looked at can say something else.
        if header.to_block()? == block { Ok(Some(header)) } else { Err(odd()) }
    }

    /// What fills the last block of the file.
    pub(super) fn padding(&self) -> usize {
        (BLOCK - (self.size_bytes % BLOCK as u64) as usize) % BLOCK
    }

    fn to_block(&self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        if self.name.len() > MAX_NAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, "more than 100 bytes, too long for a bundle"));
        }
        block[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let mut put = |start: usize, text: &[u8]| block[start..start + text.len()].copy_from_slice(text);
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(136, b"00000000000\0");
        put(156, b"0");
        put(257, b"ustar\x0000");
        match self.size_bytes {
            size if size <= MAX_OCTAL => put(124, format!("{size:011o}\0").as_bytes()),
            size => {
                put(124, &[0x80, 0, 0, 0]);
                put(128, &size.to_be_bytes());
            }
        }
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Ok(block)
    }
}

/// Two empty blocks.
pub(super) fn write_end(mut to: impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

/// The second empty block, and nothing after it.
pub(super) fn read_end(mut from: impl Read) -> io::Result<()> {
    let mut block = [0; BLOCK];
    from.read_exact(&mut block)?;
    match (block.iter().all(|byte| *byte == 0), from.read(&mut block)?) {
        (true, 0) => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "something after its end")),
    }
}

fn read_size(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, 0, 0, 0, rest @ ..] => Some(u64::from_be_bytes(rest.try_into().ok()?)),
        [digits @ .., 0] => u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_is_written_whatever_the_size() {
        for size_bytes in [0, 1, 511, 512, MAX_OCTAL, MAX_OCTAL + 1, u64::MAX] {
            let header = Header { name: "1_Pooling/config.json".to_owned(), size_bytes };
            let mut block = Vec::new();
            header.write(&mut block).unwrap();
            assert_eq!(Header::read(block.as_slice()).unwrap(), Some(header));
        }
        let long = Header { name: "x".repeat(101), size_bytes: 1 };
        assert!(long.write(io::sink()).is_err());
        assert_eq!(Header { name: "x".to_owned(), size_bytes: 513 }.padding(), 511);
    }

    #[test]
    fn one_changed_byte_of_a_header_makes_it_none() {
        let mut block = Vec::new();
        Header { name: "config.json".to_owned(), size_bytes: 7 }.write(&mut block).unwrap();
        for index in 0..BLOCK {
            let mut changed = block.clone();
            changed[index] ^= 1;
            assert!(Header::read(changed.as_slice()).is_err(), "byte {index}");
        }
    }
}
