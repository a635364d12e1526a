//! The engine from outside: what a request may rely on, and seeded simulations.

mod chance;
mod choices;
mod common;
mod comparisons;
mod constraints;
mod crowd;
mod decoder;
mod elsewhere;
mod encoders;
mod floods;
mod grants;
mod pattern;
mod recovery;
mod requests;
mod sick;
mod simulation;
