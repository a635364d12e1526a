//! What a file lies on: whether it can go away while the file is open.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// File systems of other machines and of programs, and those that disks for travelling have. As `/proc/self/mountinfo` calls
/// them.
const MAY_GO_AWAY: [&str; 22] = [
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
    "iso9660",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "smb3",
    "smbfs",
    "udf",
    "vfat",
];
const MOUNTS: &str = "/proc/self/mountinfo";

/// A device of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    major: u64,
    minor: u64,
}

/// Where nobody can tell what a file lies on, it stays.
pub(super) fn may_go_away(file: &Metadata) -> bool {
    let device = Device::of(file.dev());
    let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
    is_foreign(&mounts, device) || is_removable(Path::new("/sys"), device)
}

/// By the table of what is mounted: `36 35 98:0 /root /mount options optional - type source ...`.
fn is_foreign(mounts: &str, device: Device) -> bool {
    let number = format!("{}:{}", device.major, device.minor);
    let of_device = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(number.as_str()));
    let mut kinds = of_device.filter_map(|line| line.split_once(" - ")?.1.split(' ').next());
    // A program's file system says which after a dot: `fuse.sshfs`.
    kinds.any(|kind| MAY_GO_AWAY.contains(&kind.split('.').next().unwrap_or(kind)))
}

/// A partition says nothing of this; the disk that it is a part of does.
fn is_removable(sys: &Path, device: Device) -> bool {
    let block = sys.join(format!("dev/block/{}:{}", device.major, device.minor));
    let says = |file: &str| fs::read_to_string(block.join(file)).is_ok_and(|text| text.trim() == "1");
    says("removable") || says("../removable")
}

impl Device {
    /// As Linux packs both into one number.
    fn of(number: u64) -> Self {
        Self { major: number >> 8 & 0xfff | number >> 32 & !0xfff, minor: number & 0xff | number >> 12 & 0xffff_ff00 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
31 22 0:52 / /home/ada/runs rw - nfs4 server:/runs rw,vers=4.2
32 22 0:53 / /mnt/box rw - fuse.sshfs box:/ rw
33 22 8:17 / /media/disk rw master:2 - vfat /dev/sdb1 rw
34 22 0:26 / /tmp rw - tmpfs tmpfs rw
";

    fn device(major: u64, minor: u64) -> Device {
        Device { major, minor }
    }

    #[test]
    fn network_and_travelling_file_systems_are_known_by_their_kind() {
        for (major, minor, expected) in
            [(8, 1, false), (0, 52, true), (0, 53, true), (8, 17, true), (0, 26, false), (9, 9, false)]
        {
            assert_eq!(is_foreign(MOUNTS, device(major, minor)), expected, "{major}:{minor}");
        }
    }

    #[test]
    fn a_disk_that_can_be_taken_out_is_known_by_its_partitions_too() {
        let sys = tempfile::tempdir().unwrap();
        let block = sys.path().join("dev/block");
        for (disk, partition, removable) in [("8:0", "8:1", "0"), ("8:16", "8:17", "1")] {
            // In the system these are links into the tree of devices.
            let disk_folder = sys.path().join("devices").join(disk);
            fs::create_dir_all(disk_folder.join("part")).unwrap();
            fs::create_dir_all(&block).unwrap();
            fs::write(disk_folder.join("removable"), format!("{removable}\n")).unwrap();
            std::os::unix::fs::symlink(&disk_folder, block.join(disk)).unwrap();
            std::os::unix::fs::symlink(disk_folder.join("part"), block.join(partition)).unwrap();
        }
        let found =
            [(8, 0), (8, 1), (8, 16), (8, 17)].map(|(major, minor)| is_removable(sys.path(), device(major, minor)));
        assert_eq!(found, [false, false, true, true]);
    }

    #[test]
    fn a_device_is_unpacked_as_the_system_packs_it() {
        assert_eq!(Device::of(0x801), device(8, 1));
        assert_eq!(Device::of(0x0001_0000_1fe5_0abc), device(0x1050a, 0x1febc));
    }
}
