//! The whole instrument against a server of known delays.

mod checks;
mod compared;
mod endings;
mod figures;
mod over_tls;
mod server;
