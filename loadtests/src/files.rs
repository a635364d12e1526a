//! How many files, and with them connections, this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The low soft limit is there for programs that use `select`, as this one does not.
///
/// # Errors
/// What the system says; the limit is then what it was.
pub fn raise_limit() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// What to do where `wanted` connections do not fit.
pub fn remedy(wanted: usize) -> String {
    let Rlimit { current, .. } = getrlimit(Resource::Nofile);
    let current = current.map_or_else(|| "any number of".to_owned(), |files| files.to_string());
    format!(
        "this process may open {current} files, which must be more than {wanted}: raise the hard limit (as root \
         `ulimit -Hn {}`, or `LimitNOFILE=` of a service)",
        wanted + wanted / 10
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_system_lets_this_process_have() {
        raise_limit().unwrap();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert!(remedy(10_000).contains("more than 10000: raise the hard limit (as root `ulimit -Hn 11000`"));
    }
}
