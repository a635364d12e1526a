// Keys and values in shared memory, and what the tensor cores make of them: what the kernels of attention_tiles.cu have in
// common. bf16 throughout; products are exact, sums f32, and a key's weight is rounded to bf16 before it multiplies the value.
//
// 16 keys lie in shared memory as they do in the cache: k [WIDTH, 16 keys], v [16 keys, WIDTH], where elements from head_dim to
// WIDTH are zero. The 8 chunks that a matrix load reads at a time are spread over all banks by the exclusive ors below.
#pragma once

#include "attention.cuh"
#include "tensor_core.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// What some row of the block, or of the warp, sees: keys `[low, high)`.
struct Reach {
    int low;
    int high;
};

// 16 keys' place in the cache.
struct Place {
    uint32_t block;
    int offset; // in the block
};

// Two rows of a fragment, g and g + 8, by the lane that holds them. The maximum is an exponent of 2.
struct Pair {
    float max[2];
    float sum[2]; // of the lane's own columns
};

// Where element 8 * `chunk` of row `row` lies in a matrix of rows of WIDTH elements.
template <int WIDTH> __device__ __forceinline__ int chunk_of(int row, int chunk) {
    return row * (WIDTH / 8) + (chunk ^ row % 8);
}

// Where element d of keys 8 * `half` and behind lies.
__device__ __forceinline__ int key_chunk_of(int d, int half) { return 2 * d + (half ^ d / 4 % 2); }

template <int WIDTH> constexpr int CHUNKS = 2 * WIDTH; // of k, and of v, of 16 keys

// A key that no row sees has no place.
__device__ __forceinline__ Place place_of(const AttentionArgs &args, const Rows &rows, const Reach &reach, int key) {
    if (key + TILE <= reach.low || key >= reach.high) return Place{0, 0};
    return Place{args.blocks[rows.blocks + (unsigned)key / args.block_size], (int)((unsigned)key % args.block_size)};
}

// The warp begins to copy the 16 keys from `key` on; in place of keys that nobody sees come zeros.
template <int WIDTH>
__device__ __forceinline__ void copy_keys(
    const AttentionArgs &args, const Rows &rows, const Reach &reach, int key, const Place &place, Chunk *k, Chunk *v
) {
    size_t slot = ((size_t)place.block * args.num_kv_heads + rows.kv_head) * args.block_size + place.offset;
    const bf16 *keys = (const bf16 *)args.k + slot * args.head_dim;
    const bf16 *values = (const bf16 *)args.v + slot * args.padded_head_dim;
    bool is_seen = key < reach.high && key + TILE > reach.low;
#pragma unroll
    for (int i = 0; i < CHUNKS<WIDTH>; i += WARP) {
        int index = i + lane_index(), d = index / 2, half = index % 2;
        if (d < args.head_dim) copy_chunk(k + key_chunk_of(d, half), keys + index * 8, is_seen);
    }
#pragma unroll
    for (int i = 0; i < CHUNKS<WIDTH>; i += WARP) {
        int index = i + lane_index(), row = index / (WIDTH / 8), chunk = index % (WIDTH / 8);
        bool is_there = key + row >= reach.low && key + row < reach.high;
        if (chunk * 8 >= args.head_dim) continue;
        copy_chunk(v + chunk_of<WIDTH>(row, chunk), values + row * args.padded_head_dim + chunk * 8, is_there);
    }
}

// What lies behind a head's last element is never copied, so it is cleared once.
template <int WIDTH> __device__ __forceinline__ void clear(const AttentionArgs &args, Chunk *from, int count) {
    if (args.head_dim == WIDTH) return;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        for (int element = 0; element < 8; element++) from[i].elements[element] = rounded<bf16>(0.0f);
    }
    __syncthreads();
}

// Whether scores are more than products times the scale.
__device__ __forceinline__ bool is_bent(const AttentionArgs &args) {
    return args.soft_cap > 0.0f || args.slopes != nullptr || args.temperature_interval > 0 || args.scale <= 0.0f;
}

// What scores are multiplied with to be exponents of 2. Where nothing bends them they are the products alone.
__device__ __forceinline__ float exponent_factor(const AttentionArgs &args) {
    return is_bent(args) ? LOG2_E : args.scale * LOG2_E;
}

__device__ __forceinline__ float temperature(const AttentionArgs &args, int position) {
    if (args.temperature_interval == 0) return 1.0f;
    return fmaf(args.temperature_beta, logf((float)(1 + position / args.temperature_interval)), 1.0f);
}

// Products of row `row` become scores, see below.
template <int COLUMNS>
__device__ __forceinline__ void bend(
    const AttentionArgs &args, const Rows &rows, int row, int which, int position, int key, float (&scores)[COLUMNS][4]
) {
    float multiplier = args.scale * temperature(args, position), cap = args.soft_cap;
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; i++) {
        float &score = scores[i / 2][2 * which + i % 2];
        score *= multiplier;
        if (cap > 0.0f) { // cap * tanh(score / cap)
            score = cap - 2.0f * cap * reciprocal(1.0f + power_of_two(score * (2.0f * LOG2_E / cap)));
        }
    }
    if (args.slopes == nullptr) return;
    float slope = args.slopes[head_of(args, rows, min(row, rows.count - 1))];
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; i++) {
        float &score = scores[i / 2][2 * which + i % 2];
        score = fmaf(slope, (float)(key + i / 2 * 8 + i % 2 - position), score);
    }
}

// Products of rows `row` and `row + 8` with COLUMNS times 8 keys from `key` on become scores: bent where a flag says so, and
// minus infinity where a row does not see a key; `is_edge`: there are such.
template <int COLUMNS>
__device__ __forceinline__ void finish_scores(
    const AttentionArgs &args, const Rows &rows, int row, int key, bool is_edge, float (&scores)[COLUMNS][4]
) {
    if (!is_edge && !is_bent(args)) return;
    key += 2 * (lane_index() % 4);
#pragma unroll
    for (int which = 0; which < 2; which++) {
        int own = min(row + 8 * which, rows.count - 1), position = (int)args.positions[token_of(args, rows, own)];
        if (is_bent(args)) bend(args, rows, own, which, position, key, scores);
        int low = first_key(args, position), high = keys_end(args, position, rows.num_keys);
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            int at = key + i / 2 * 8 + i % 2;
            if (at < low || at >= high) scores[i / 2][2 * which + i % 2] = minus_infinity();
        }
    }
}

// Scores become weights beside the highest score so far. `shrink`: what all that was summed before is multiplied with.
template <int COLUMNS>
__device__ __forceinline__ void weigh(float (&scores)[COLUMNS][4], float factor, Pair &state, float (&shrink)[2]) {
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float highest = minus_infinity();
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) highest = fmaxf(highest, scores[i / 2][2 * which + i % 2]);
        for (int distance = 1; distance <= 2; distance *= 2) {
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, distance));
        }
        highest = fmaxf(state.max[which], highest * factor);
        float base = highest == minus_infinity() ? 0.0f : highest;
        shrink[which] = power_of_two(state.max[which] - base);
        state.max[which] = highest;
        state.sum[which] *= shrink[which];
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; i++) {
            float &weight = scores[i / 2][2 * which + i % 2];
            weight = power_of_two(fmaf(weight, factor, -base));
            state.sum[which] += weight;
        }
    }
}

// What was summed before a higher score came shrinks; mostly none came.
template <int COLUMNS> __device__ __forceinline__ void rescale(const float (&shrink)[2], float (&sums)[COLUMNS][4]) {
    if (shrink[0] == 1.0f && shrink[1] == 1.0f) return;
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; i++) sums[i / 4][i % 4] *= shrink[i / 2 % 2];
}

// Weights of 16 keys, as the left side of the product with their values.
__device__ __forceinline__ void round_weights(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4]) {
    a[0] = rounded_pair(left[0], left[1]);
    a[1] = rounded_pair(left[2], left[3]);
    a[2] = rounded_pair(right[0], right[1]);
    a[3] = rounded_pair(right[2], right[3]);
}

// Where this lane's row of the four matrices lies that are rows `first` to `first + 15` of 16 columns from `column` on.
template <int WIDTH> __device__ __forceinline__ int matrix_row(int first, int column) {
    return chunk_of<WIDTH>(first + lane_index() % 16, column / 8 + lane_index() / 16);
}

// sums += weights of 16 keys times their values.
template <int WIDTH, int TILES>
__device__ __forceinline__ void add_values(
    const uint32_t (&weights)[TILES][4], const Chunk *v, float (&sums)[TILES][WIDTH / 8][4]
) {
#pragma unroll
    for (int d = 0; d < WIDTH; d += 16) {
        uint32_t values[4];
        load_transposed(values, v + matrix_row<WIDTH>(0, d));
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            multiply_add(sums[tile][d / 8], weights[tile], values[0], values[1]);
            multiply_add(sums[tile][d / 8 + 1], weights[tile], values[2], values[3]);
        }
    }
}

// products += 16 elements of queries, from d on, times those of 16 keys; `column` of 8 keys is their first.
template <int WIDTH, int TILES, int COLUMNS>
__device__ __forceinline__ void add_products(
    const uint32_t (&queries)[TILES][4], const Chunk *k, int d, int column, float (&products)[TILES][COLUMNS][4]
) {
    uint32_t keys[4];
    load_transposed(keys, k + key_chunk_of(d + lane_index() % 16, lane_index() / 16));
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        multiply_add(products[tile][column], queries[tile], keys[0], keys[1]);
        multiply_add(products[tile][column + 1], queries[tile], keys[2], keys[3]);
    }
}
