//! Which processes are the server: the one that listens, and its children.

use super::ProcFs;

/// The state of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";

impl ProcFs {
    /// `pid` and all that it started.
    pub(super) fn family(&self, pid: u32) -> Vec<u32> {
        let parents: Vec<(u32, u32)> =
            self.pids().into_iter().filter_map(|pid| Some((pid, self.parent(pid)?))).collect();
        let mut family = vec![pid];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            let children = parents.iter().filter(|(child, of)| *of == parent && !family.contains(child));
            let children: Vec<u32> = children.map(|(child, _)| *child).collect();
            family.extend(children);
            next += 1;
        }
        family
    }

    /// The process that listens on a TCP port of this machine, where this user may see it.
    pub fn listener(&self, port: u16) -> Option<u32> {
        let inodes: Vec<String> =
            ["net/tcp", "net/tcp6"].iter().flat_map(|table| self.listening_inodes(table, port)).collect();
        self.pids().into_iter().find(|pid| {
            let Ok(files) = std::fs::read_dir(self.root.join(format!("{pid}/fd"))) else { return false };
            files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).any(|target| {
                let target = target.to_string_lossy();
                inodes.iter().any(|inode| *target == format!("socket:[{inode}]"))
            })
        })
    }

    fn listening_inodes(&self, table: &str, port: u16) -> Vec<String> {
        let port = format!(":{port:04X}");
        let text = self.read(table).unwrap_or_default();
        let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let listening = rows.filter(|row| row.len() > 9 && row[1].ends_with(&port) && row[3] == LISTENING);
        listening.map(|row| row[9].to_owned()).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        let stat = self.read(&format!("{pid}/stat"))?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ProcFs::default().listener(port), Some(std::process::id()));
    }
}
