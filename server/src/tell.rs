//! What a command tells beside its output, on standard error. A closed pipe or a full disk behind it ends nothing, which
//! `eprintln!` would.

macro_rules! tell {
    ($($words:tt)*) => {{
        use ::std::io::Write as _;
        let _ = ::std::writeln!(::std::io::stderr(), $($words)*);
    }};
}
