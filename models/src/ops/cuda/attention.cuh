// What the kernels of attention share: their arguments, which keys a row sees, and how partial results become one.
//
// The cache is laid out as kv_cache.rs draws it:
//   k [num_blocks, num_kv_heads, block_size / 16, head_dim, 16]
//   v [num_blocks, num_kv_heads, block_size, padded_head_dim]
//
// A row is one query head of one token. An item is a chunk of a sequence's tokens; its rows for one K/V head are numbered
// token by token, and within a token head by head.
#pragma once

#include "common.cuh"

struct AttentionArgs {
    const void *q;            // [num_tokens, num_heads, head_dim], bf16 or f32
    const void *k;            // one layer of the cache
    const void *v;
    void *out;                // as q
    float *partial;           // decode: [num_items, num_heads, max_splits, head_dim + 2]: sum of values, maximum, sum
    const uint32_t *positions; // [num_tokens]
    const uint32_t *blocks;   // all block tables of the layer's group, one after the other
    const uint32_t *items;    // [num_items, 4]: first row, rows, where in `blocks` the sequence's begin, its keys
    const float *slopes;      // [num_heads], or null
    const float *sinks;       // [num_heads], or null
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t padded_head_dim;
    int32_t block_size;
    int32_t max_splits;
    int32_t split_keys;       // whose sums are one partial result
    int32_t window;           // 0: none
    int32_t both_directions;
    int32_t bf16_activations;
    int32_t temperature_interval; // 0: none
    float temperature_beta;
    float scale;
    float soft_cap;           // 0: none
};

constexpr int TILE = 16; // keys side by side in k

// The query rows of one warp or block.
struct Rows {
    int first;    // of the item's rows times the group, token by token
    int count;
    int kv_head;
    uint32_t first_token; // row of the flat batch
    uint32_t blocks;      // where the sequence's blocks begin
    int num_keys;
};

// The running result of one row over some keys; the values' sums lie elsewhere.
struct Softmax {
    float max;
    float sum;
};

__device__ __forceinline__ float minus_infinity() { return -INFINITY; }

__device__ __forceinline__ int group_size(const AttentionArgs &args) { return args.num_heads / args.num_kv_heads; }

__device__ __forceinline__ int head_of(const AttentionArgs &args, const Rows &rows, int row) {
    return rows.kv_head * group_size(args) + (rows.first + row) % group_size(args);
}

__device__ __forceinline__ size_t token_of(const AttentionArgs &args, const Rows &rows, int row) {
    return rows.first_token + (rows.first + row) / group_size(args);
}

__device__ __forceinline__ int first_key(const AttentionArgs &args, int position) {
    return args.window > 0 ? max(position + 1 - args.window, 0) : 0;
}

// One more than the last key that a query sees.
__device__ __forceinline__ int keys_end(const AttentionArgs &args, int position, int num_keys) {
    if (!args.both_directions) return position + 1;
    return args.window > 0 ? min(num_keys, position + args.window) : num_keys;
}

// At most `most` rows of an item from its row `first` on; `count` is 0 where nothing is left.
__device__ __forceinline__ Rows rows_of(const AttentionArgs &args, int item, int kv_head, int first, int most) {
    const uint32_t *fields = args.items + 4 * (size_t)item;
    int all = (int)fields[1] * group_size(args);
    return Rows{first, max(min(most, all - first), 0), kv_head, fields[0], fields[2], (int)fields[3]};
}

__device__ __forceinline__ void store_activation(const AttentionArgs &args, size_t index, float value) {
    if (args.bf16_activations) ((bf16 *)args.out)[index] = rounded<bf16>(value);
    else ((float *)args.out)[index] = value;
}

// Joins the softmax over further keys to `total`; both may be empty. What the values' sums are to be multiplied with.
__device__ __forceinline__ float2 merge(Softmax &total, const Softmax &next) {
    float2 factors;
    float highest = fmaxf(total.max, next.max);
    factors.x = total.max == minus_infinity() ? 0.0f : expf(total.max - highest);
    factors.y = next.max == minus_infinity() ? 0.0f : expf(next.max - highest);
    total.sum = fmaf(next.sum, factors.y, total.sum * factors.x);
    total.max = highest;
    return factors;
}

// What the values' sums are multiplied with at the end. A sink counts in the sum and has no value.
__device__ __forceinline__ float normaliser(const AttentionArgs &args, const Softmax &total, int head) {
    if (args.sinks == nullptr) return 1.0f / total.sum;
    float highest = fmaxf(total.max, args.sinks[head]);
    float scale = expf(total.max - highest);
    return scale / fmaf(total.sum, scale, expf(args.sinks[head] - highest));
}
