//! The whole instrument against a server of known delays.

mod endings;
mod figures;
mod server;
