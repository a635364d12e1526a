//! The engine from outside: what a request may rely on, and seeded simulations.

mod common;
mod constraints;
mod decoder;
mod encoders;
mod requests;
mod simulation;
