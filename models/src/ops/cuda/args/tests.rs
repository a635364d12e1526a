//! The sizes that grids are computed with are those that the kernels were written with.

use super::super::launch::WARP;
use super::super::step::NOWHERE;
use super::{activation, angles, attention, blocks, choose, norm, one_row, qkv};
use crate::kv_cache::KV_TILE;
use crate::kv_cache_spec::MOST_GPU_HEAD_DIM;

/// `constexpr TYPE NAME = NUMBER;`
fn constant(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with("constexpr ") && line.contains(&format!(" {name} = ")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in the kernels' text"));
    let value = line.split(" = ").nth(1).and_then(|value| value.split(';').next()).expect(name).trim_end_matches('u');
    let read = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    read.unwrap_or_else(|_| panic!("{line}"))
}

#[test]
fn sizes_are_the_same_on_both_sides() {
    let attention_tiles = include_str!("../attention_tiles.cu");
    let rows = include_str!("../attention.cu");
    let qkv_text = include_str!("../qkv.cu");
    let pieces = include_str!("../pieces.cuh");
    let pairs: [(&str, &str, u64); 21] = [
        (include_str!("../common.cuh"), "WARP", WARP.into()),
        (pieces, "PIECE", activation::PIECE as u64),
        (pieces, "PIECE", norm::PIECE.into()),
        (pieces, "PIECE", one_row::PIECE as u64),
        (include_str!("../angles.cu"), "ANGLES_THREADS", angles::THREADS.into()),
        (include_str!("../choose.cu"), "CHOOSE_WARPS", choose::WARPS.into()),
        (include_str!("../norm.cu"), "NORM_WARPS", norm::MOST_WARPS.into()),
        (include_str!("../one_row.cu"), "ONE_ROW_WARPS", one_row::WARPS.into()),
        (include_str!("../quantised.cu"), "QUANTISED_WARPS", blocks::WARPS.into()),
        (rows, "SPLIT", attention::ROW_SPLIT as u64),
        (rows, "WARPS", attention::WARPS as u64),
        (attention_tiles, "TILE_SPLIT", attention::TILE_SPLIT as u64),
        (attention_tiles, "TILE_WARPS", attention::WARPS as u64),
        (attention_tiles, "MERGE_WARPS", attention::WARPS as u64),
        (attention_tiles, "DECODE_WARPS", attention::DECODE_WARPS as u64),
        (attention_tiles, "STAGES", attention::STAGES as u64),
        (include_str!("../attention.cuh"), "TILE", attention::TILE_KEYS as u64),
        (qkv_text, "QKV_WARPS", qkv::WARPS.into()),
        (qkv_text, "KV_TILE", KV_TILE as u64),
        (qkv_text, "MOST_HEAD_DIM", MOST_GPU_HEAD_DIM as u64),
        (qkv_text, "NOWHERE", NOWHERE.into()),
    ];
    for (text, name, here) in pairs {
        assert_eq!(constant(text, name), here, "{name}");
    }
}
