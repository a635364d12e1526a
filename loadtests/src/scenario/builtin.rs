//! The scenarios that come with the program.

/// Name and text.
pub const BUILTIN: &[(&str, &str)] = &[
    ("batch-beside-interactive", include_str!("../../scenarios/batch-beside-interactive.toml")),
    ("batched", include_str!("../../scenarios/batched.toml")),
    ("burst", include_str!("../../scenarios/burst.toml")),
    ("closed", include_str!("../../scenarios/closed.toml")),
    ("disconnects", include_str!("../../scenarios/disconnects.toml")),
    ("greedy-neighbour", include_str!("../../scenarios/greedy-neighbour.toml")),
    ("long-prompts", include_str!("../../scenarios/long-prompts.toml")),
    ("mixed-lengths", include_str!("../../scenarios/mixed-lengths.toml")),
    ("multi-turn", include_str!("../../scenarios/multi-turn.toml")),
    ("overload", include_str!("../../scenarios/overload.toml")),
    ("poison", include_str!("../../scenarios/poison.toml")),
    ("ramp", include_str!("../../scenarios/ramp.toml")),
    ("shared-prefixes", include_str!("../../scenarios/shared-prefixes.toml")),
    ("steady-chat", include_str!("../../scenarios/steady-chat.toml")),
    ("structured-output", include_str!("../../scenarios/structured-output.toml")),
];

pub fn find(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(builtin, _)| *builtin == name).map(|(_, text)| *text)
}

pub(super) fn names() -> String {
    let names: Vec<&str> = BUILTIN.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}
