//! What a file lies on: whether it can go away while the file is open.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// File systems of other machines, of hosts and of programs, and those that disks for travelling have. As
/// `/proc/self/mountinfo` calls them.
const MAY_GO_AWAY: [&str; 31] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "exfat",
    "fuse",
    "fuseblk",
    "gfs2",
    "glusterfs",
    "gpfs",
    "hfs",
    "hfsplus",
    "iso9660",
    "lustre",
    "msdos",
    "ncpfs",
    "nfs",
    "nfs4",
    "ntfs",
    "ntfs3",
    "ocfs2",
    "orangefs",
    "prl_fs",
    "smb3",
    "smbfs",
    "udf",
    "vboxsf",
    "vfat",
    "virtiofs",
    "vmhgfs",
];
const MOUNTS: &str = "/proc/self/mountinfo";
const DEVICES: &str = "/sys/dev/block";
/// Of devices that lie on others (encrypted ones, volumes); the system has no more.
const MAX_DEPTH: usize = 8;

/// A device of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    major: u64,
    minor: u64,
}

/// A line of the table of what is mounted: `36 35 98:0 /root /mnt options optional - type source ...`.
#[derive(Debug, PartialEq)]
struct Mount {
    at: PathBuf,
    kind: String,
    source: PathBuf,
}

/// Where nobody can tell what a file lies on, it stays.
pub(super) fn may_go_away(path: &Path, file: &Metadata) -> bool {
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    let mount = fs::canonicalize(path).ok().and_then(|path| Mount::of(&mounts, &path));
    if mount.as_ref().is_some_and(Mount::is_foreign) {
        return true;
    }
    // Some file systems number their devices themselves (btrfs); the table names what they lie on.
    let source =
        mount.and_then(|mount| fs::metadata(mount.source).ok()).filter(|file| file.file_type().is_block_device());
    let devices = [file.dev()].into_iter().chain(source.map(|source| source.rdev())).map(Device::of);
    devices.into_iter().any(|device| is_removable(&Path::new(DEVICES).join(device.to_string()), MAX_DEPTH))
}

impl Mount {
    /// The last one of those that the path is below: it hides the others.
    fn of(mounts: &str, path: &Path) -> Option<Self> {
        let above = mounts.lines().filter_map(Self::parse).filter(|mount| path.starts_with(&mount.at));
        above.max_by_key(|mount| mount.at.components().count())
    }

    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        Some(Self {
            at: unescaped(place.split(' ').nth(4)?),
            kind: kind.next()?.to_owned(),
            source: unescaped(kind.next()?),
        })
    }

    fn is_foreign(&self) -> bool {
        // A program's file system says which after a dot: `fuse.sshfs`.
        MAY_GO_AWAY.contains(&self.kind.split('.').next().unwrap_or(&self.kind))
    }
}

/// Blanks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&plain))
}

/// `device` is a link into the tree of devices. A partition says nothing of this, the disk that it is a part of does; disks
/// at USB say that they stay, and do not; of what lies on other devices, those count.
fn is_removable(device: &Path, depth: usize) -> bool {
    let says = |file: &str| fs::read_to_string(device.join(file)).is_ok_and(|text| text.trim() == "1");
    let is_usb = |place: PathBuf| place.components().any(|part| part.as_os_str().as_bytes().starts_with(b"usb"));
    if says("removable") || says("../removable") || fs::canonicalize(device).is_ok_and(is_usb) {
        return true;
    }
    let below = fs::read_dir(device.join("slaves")).into_iter().flatten().flatten();
    depth > 0 && below.into_iter().any(|slave| is_removable(&slave.path(), depth - 1))
}

impl Device {
    /// As Linux packs both into one number.
    fn of(number: u64) -> Self {
        Self { major: number >> 8 & 0xfff | number >> 32 & !0xfff, minor: number & 0xff | number >> 12 & 0xffff_ff00 }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:52 / /home/ada/runs rw - nfs4 server:/runs rw,vers=4.2
32 22 0:53 / /mnt/box rw - fuse.sshfs box:/ rw
33 22 8:17 / /media/ada/my\\040disk rw master:2 - vfat /dev/sdb1 rw
34 22 0:26 / /tmp rw - tmpfs tmpfs rw
35 22 0:40 /sub /srv rw - btrfs /dev/sdc1 rw
36 22 8:33 / /mnt/travel rw - ntfs3 /dev/sdc1 rw
";

    #[test]
    fn network_and_travelling_file_systems_are_known_by_their_kind() {
        for (path, expected) in [
            ("/opt/model", false),
            ("/home/ada/runs/step-10/model.safetensors", true),
            ("/home/ada/runs2", false),
            ("/mnt/box/a", true),
            ("/media/ada/my disk/a", true),
            ("/tmp/a", false),
            ("/srv/a", false),
            ("/mnt/travel/a", true),
        ] {
            let mount = Mount::of(MOUNTS, Path::new(path)).unwrap();
            assert_eq!(mount.is_foreign(), expected, "{path}: {mount:?}");
        }
        assert_eq!(Mount::of(MOUNTS, Path::new("/srv/a")).unwrap().source, Path::new("/dev/sdc1"));
    }

    #[test]
    fn a_disk_that_can_be_taken_out_is_known_by_its_partitions_and_by_what_lies_on_it() {
        let sys = tempfile::tempdir().unwrap();
        let block = sys.path().join("dev/block");
        fs::create_dir_all(&block).unwrap();
        // In the system these are links into the tree of devices.
        for (disk, partition, place, removable) in [
            ("8:0", "8:1", "devices/pci0/ata1/sda", "0"),
            ("8:16", "8:17", "devices/pci0/ata2/sdb", "1"),
            ("8:32", "8:33", "devices/pci0/usb1/1-2/sdc", "0"),
        ] {
            let disk_folder = sys.path().join(place);
            fs::create_dir_all(disk_folder.join("part")).unwrap();
            fs::write(disk_folder.join("removable"), format!("{removable}\n")).unwrap();
            symlink(&disk_folder, block.join(disk)).unwrap();
            symlink(disk_folder.join("part"), block.join(partition)).unwrap();
        }
        // Two encrypted ones.
        for (device, lies_on) in [("253:0", "8:1"), ("253:1", "8:33")] {
            let slaves = sys.path().join("devices/virtual").join(device).join("slaves");
            fs::create_dir_all(&slaves).unwrap();
            symlink(block.join(lies_on), slaves.join("part")).unwrap();
            symlink(slaves.parent().unwrap(), block.join(device)).unwrap();
        }
        for (device, expected) in [
            ("8:0", false),
            ("8:1", false),
            ("8:16", true),
            ("8:17", true),
            ("8:32", true),
            ("8:33", true),
            ("253:0", false),
            ("253:1", true),
            ("9:9", false),
        ] {
            assert_eq!(is_removable(&block.join(device), MAX_DEPTH), expected, "{device}");
        }
    }

    #[test]
    fn a_device_is_unpacked_as_the_system_packs_it() {
        assert_eq!(Device::of(0x801).to_string(), "8:1");
        assert_eq!(Device::of(0x0001_0000_1fe5_0abc), Device { major: 0x1050a, minor: 0x1febc });
    }
}
