//! The whole instrument against a server of known delays.

mod answers;
mod checks;
mod compared;
mod endings;
mod figures;
mod loads;
mod over_tls;
mod server;
mod stopped;
