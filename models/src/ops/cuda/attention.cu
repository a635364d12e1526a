// Attention over the paged cache, as ../attention.rs has it: softmax(q k^T * scale) v for grouped queries, with an optional
// window, soft cap, ALiBi slopes, sinks and position temperature. For every dtype and length of heads; what is bf16
// throughout mostly goes to attention_tiles.cu.
//
// A warp holds up to ROWS query rows that share one K/V head and visits keys in steps of 32, one key a lane. 128 keys, from
// absolute positions 0, 128, 256 ..., are a split: within one the softmax is taken online; splits are merged in ascending
// order. Decode gives each split a warp of its own and merges in a second kernel; prefill walks through the splits and
// merges as it goes. Both compute the same sums in the same order, so a row's bits depend on its position and the cached
// K/V that it sees, not on the kernel, the batch or the chunk.
//
// Every product and sum is f32. Slots that a row does not see may hold anything, also what is not a number: a step loads
// only keys that some row of the warp sees, all of one sequence.
#include "attention.cuh"

constexpr int SPLIT = 128;      // keys whose sums are one partial result
constexpr int STEP = WARP;      // keys that a warp visits together
constexpr int WARPS = 4;        // of a block

// What one of them sees.
struct Row {
    int position;
    int low;  // its first key
    int high; // one more than its last key
    float slope;
};

__device__ __forceinline__ float load_activation(const AttentionArgs &args, size_t index) {
    return args.bf16_activations ? widened(((const bf16 *)args.q)[index]) : ((const float *)args.q)[index];
}

// Two neighbouring elements of a row of v.
__device__ __forceinline__ float2 load_pair(const float *at) { return *(const float2 *)at; }
__device__ __forceinline__ float2 load_pair(const bf16 *at) {
    uint32_t both = *(const uint32_t *)at;
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

// Copies the warp's query rows to `q [ROWS, WIDTH]`, with zeros behind them, and says what each sees: behind them, nothing.
template <int ROWS, int WIDTH>
__device__ __forceinline__ void load_queries(const AttentionArgs &args, const Rows &rows, float *q, Row (&each)[ROWS]) {
    for (int row = 0; row < ROWS; row++) {
        bool is_row = row < rows.count;
        size_t token = is_row ? token_of(args, rows, row) : 0;
        int position = (int)args.positions[token];
        each[row].position = position;
        each[row].low = first_key(args, position);
        each[row].high = is_row ? keys_end(args, position, rows.num_keys) : 0;
        each[row].slope = is_row && args.slopes != nullptr ? args.slopes[head_of(args, rows, row)] : 0.0f;
        size_t start = is_row ? (token * args.num_heads + head_of(args, rows, row)) * args.head_dim : 0;
        float factor = 1.0f;
        if (is_row && args.temperature_interval > 0) {
            int steps = 1 + position / args.temperature_interval;
            factor = fmaf(args.temperature_beta, logf((float)steps), 1.0f);
        }
        for (int d = lane_index(); d < WIDTH; d += WARP) {
            q[row * WIDTH + d] = is_row && d < args.head_dim ? load_activation(args, start + d) * factor : 0.0f;
        }
    }
    __syncwarp();
}

// The products of this lane's key with every row.
template <typename C, int ROWS, int WIDTH>
__device__ __forceinline__ void products(const AttentionArgs &args, const C *k, const float *q, float (&dots)[ROWS]) {
    for (int row = 0; row < ROWS; row++) dots[row] = 0.0f;
    int d = 0;
#pragma unroll 4
    for (; d + 4 <= args.head_dim; d += 4) {
        float keys[4];
        for (int i = 0; i < 4; i++) keys[i] = widened(k[(d + i) * TILE]);
        for (int row = 0; row < ROWS; row++) {
            float4 query = *(const float4 *)&q[row * WIDTH + d];
            dots[row] = fmaf(query.x, keys[0], dots[row]);
            dots[row] = fmaf(query.y, keys[1], dots[row]);
            dots[row] = fmaf(query.z, keys[2], dots[row]);
            dots[row] = fmaf(query.w, keys[3], dots[row]);
        }
    }
    for (; d < args.head_dim; d++) {
        float key = widened(k[d * TILE]);
        for (int row = 0; row < ROWS; row++) dots[row] = fmaf(q[row * WIDTH + d], key, dots[row]);
    }
}

// The score of a key for a row that sees it.
__device__ __forceinline__ float score(const AttentionArgs &args, const Row &row, int key, float dot) {
    float score = dot * args.scale;
    if (args.soft_cap > 0.0f) score = args.soft_cap * tanhf(score / args.soft_cap);
    if (args.slopes != nullptr) score = fmaf(row.slope, (float)(key - row.position), score);
    return score;
}

// Adds 32 keys from `start` to the rows' state. `[low, high)` are the keys that some row sees, and are all that is loaded.
template <typename C, int ROWS, int PAIRS>
__device__ __forceinline__ void visit(
    const AttentionArgs &args, const Rows &rows, const Row (&each)[ROWS], int start, int low, int high, const float *q,
    float *weights, Softmax (&state)[ROWS], float2 (&out)[ROWS][PAIRS]
) {
    constexpr int WIDTH = 2 * WARP * PAIRS;
    const uint32_t *blocks = args.blocks + rows.blocks;
    int key = start + lane_index();
    bool seen = key >= low && key < high;
    float dots[ROWS];
    if (seen) {
        size_t block = blocks[key / args.block_size];
        int offset = key % args.block_size;
        size_t tile = (block * args.num_kv_heads + rows.kv_head) * (args.block_size / TILE) + offset / TILE;
        products<C, ROWS, WIDTH>(args, (const C *)args.k + tile * args.head_dim * TILE + offset % TILE, q, dots);
    }
    for (int row = 0; row < ROWS; row++) {
        bool sees = seen && key >= each[row].low && key < each[row].high;
        float s = sees ? score(args, each[row], key, dots[row]) : minus_infinity();
        float highest = fmaxf(state[row].max, warp_max(s));
        float weight = s == minus_infinity() ? 0.0f : expf(s - highest);
        float factor = state[row].max == minus_infinity() ? 0.0f : expf(state[row].max - highest);
        state[row].sum = fmaf(state[row].sum, factor, warp_sum(weight));
        state[row].max = highest;
        for (int pair = 0; pair < PAIRS; pair++) {
            out[row][pair].x *= factor;
            out[row][pair].y *= factor;
        }
        weights[row * STEP + lane_index()] = weight;
    }
    __syncwarp();
    for (int four = 0; four < STEP; four += 4) {
        int first = start + four;
        if (first + 4 <= low || first >= high) continue;
        size_t block = blocks[first / args.block_size];
        size_t slot = (block * args.num_kv_heads + rows.kv_head) * args.block_size + first % args.block_size;
        const C *v = (const C *)args.v + slot * args.padded_head_dim;
        for (int pair = 0; pair < PAIRS; pair++) {
            int d = 2 * (lane_index() + WARP * pair);
            float2 values[4];
            for (int i = 0; i < 4; i++) {
                bool is_there = d < args.padded_head_dim && first + i >= low && first + i < high;
                values[i] = is_there ? load_pair(v + (size_t)i * args.padded_head_dim + d) : make_float2(0.0f, 0.0f);
            }
            for (int row = 0; row < ROWS; row++) {
                float4 weight = *(const float4 *)&weights[row * STEP + four];
                float2 &sum = out[row][pair];
                sum.x = fmaf(weight.x, values[0].x, sum.x), sum.y = fmaf(weight.x, values[0].y, sum.y);
                sum.x = fmaf(weight.y, values[1].x, sum.x), sum.y = fmaf(weight.y, values[1].y, sum.y);
                sum.x = fmaf(weight.z, values[2].x, sum.x), sum.y = fmaf(weight.z, values[2].y, sum.y);
                sum.x = fmaf(weight.w, values[3].x, sum.x), sum.y = fmaf(weight.w, values[3].y, sum.y);
            }
        }
    }
    __syncwarp();
}

// The rows' softmax over one split, of which `[low, high)` are seen.
template <typename C, int ROWS, int PAIRS>
__device__ __forceinline__ void attend_split(
    const AttentionArgs &args, const Rows &rows, const Row (&each)[ROWS], int split, int low, int high, const float *q,
    float *weights, Softmax (&state)[ROWS], float2 (&out)[ROWS][PAIRS]
) {
    for (int row = 0; row < ROWS; row++) {
        state[row].max = minus_infinity();
        state[row].sum = 0.0f;
        for (int pair = 0; pair < PAIRS; pair++) out[row][pair] = make_float2(0.0f, 0.0f);
    }
    for (int start = split * SPLIT; start < (split + 1) * SPLIT; start += STEP) {
        if (start + STEP <= low || start >= high) continue;
        visit<C, ROWS, PAIRS>(args, rows, each, start, low, high, q, weights, state, out);
    }
}

// Of one token: grid (splits / WARPS, num_kv_heads, num_items), the heads of a group in turns of ROWS.
template <typename C, int ROWS, int PAIRS>
__device__ __forceinline__ void decode(const AttentionArgs &args) {
    constexpr int WIDTH = 2 * WARP * PAIRS;
    __shared__ __align__(16) float q[WARPS][ROWS * WIDTH];
    __shared__ __align__(16) float weights[WARPS][ROWS * STEP];
    int split = blockIdx.x * WARPS + warp_index();
    int item = blockIdx.z;
    for (int first = 0; first < group_size(args); first += ROWS) {
        Rows rows = rows_of(args, item, blockIdx.y, first, ROWS);
        int position = (int)args.positions[rows.first_token];
        int low = first_key(args, position), high = keys_end(args, position, rows.num_keys);
        if ((split + 1) * SPLIT <= low || split * SPLIT >= high) return;
        Row each[ROWS];
        load_queries<ROWS, WIDTH>(args, rows, q[warp_index()], each);
        Softmax state[ROWS];
        float2 out[ROWS][PAIRS];
        attend_split<C, ROWS, PAIRS>(
            args, rows, each, split, low, high, q[warp_index()], weights[warp_index()], state, out
        );
        for (int row = 0; row < ROWS; row++) {
            if (row >= rows.count) continue;
            size_t head = (size_t)item * args.num_heads + head_of(args, rows, row);
            float *partial = args.partial + (head * args.max_splits + split) * (args.head_dim + 2);
            for (int pair = 0; pair < PAIRS; pair++) {
                int d = 2 * (lane_index() + WARP * pair);
                if (d < args.head_dim) partial[d] = out[row][pair].x;
                if (d + 1 < args.head_dim) partial[d + 1] = out[row][pair].y;
            }
            if (lane_index() == 0) {
                partial[args.head_dim] = state[row].max;
                partial[args.head_dim + 1] = state[row].sum;
            }
        }
        __syncwarp();
    }
}

// Merges the splits of a token: grid (num_heads, num_items), a thread for each element of a head.
extern "C" __global__ void attention_merge(const AttentionArgs args) {
    constexpr int TOGETHER = 8; // splits that are loaded at a time
    int head = blockIdx.x, item = blockIdx.y, d = threadIdx.x;
    const uint32_t *fields = args.items + 4 * (size_t)item;
    size_t token = fields[0];
    int position = (int)args.positions[token];
    int low = first_key(args, position), high = keys_end(args, position, (int)fields[3]);
    const float *partials = args.partial + ((size_t)item * args.num_heads + head) * args.max_splits * (args.head_dim + 2);
    Softmax total = {minus_infinity(), 0.0f};
    float sum = 0.0f;
    for (int first = low / args.split_keys; first * args.split_keys < high; first += TOGETHER) {
        Softmax next[TOGETHER];
        float values[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            bool is_there = (first + i) * args.split_keys < high;
            const float *partial = partials + (size_t)(first + i) * (args.head_dim + 2);
            next[i].max = is_there ? partial[args.head_dim] : minus_infinity();
            next[i].sum = is_there ? partial[args.head_dim + 1] : 0.0f;
            values[i] = is_there && d < args.head_dim ? partial[d] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            if ((first + i) * args.split_keys >= high) break;
            float2 factors = merge(total, next[i]);
            sum = fmaf(values[i], factors.y, sum * factors.x);
        }
    }
    if (d >= args.head_dim) return;
    store_activation(args, (token * args.num_heads + head) * args.head_dim + d, sum * normaliser(args, total, head));
}

// Of chunks of a sequence's tokens: grid (row groups, num_kv_heads, num_items), ROWS query rows a warp.
template <typename C, int ROWS, int PAIRS>
__device__ __forceinline__ void prefill(const AttentionArgs &args) {
    constexpr int WIDTH = 2 * WARP * PAIRS;
    __shared__ __align__(16) float q[WARPS][ROWS * WIDTH];
    __shared__ __align__(16) float weights[WARPS][ROWS * STEP];
    // The values' sums over the splits before; a lane reads only what it has written.
    __shared__ float2 totals[WARPS][ROWS * WIDTH / 2];
    float2 *total_values = totals[warp_index()];
    Rows rows = rows_of(args, blockIdx.z, blockIdx.y, (blockIdx.x * WARPS + warp_index()) * ROWS, ROWS);
    if (rows.count == 0) return;
    Row each[ROWS];
    load_queries<ROWS, WIDTH>(args, rows, q[warp_index()], each);
    // Later tokens see neither earlier first keys nor earlier last ones.
    int low = each[0].low, high = 0;
    for (int row = 0; row < ROWS; row++) high = max(high, each[row].high);
    Softmax total[ROWS];
    for (int row = 0; row < ROWS; row++) {
        total[row].max = minus_infinity();
        total[row].sum = 0.0f;
        for (int pair = 0; pair < PAIRS; pair++) {
            total_values[(row * PAIRS + pair) * WARP + lane_index()] = make_float2(0.0f, 0.0f);
        }
    }
    for (int split = low / SPLIT; split * SPLIT < high; split++) {
        Softmax state[ROWS];
        float2 out[ROWS][PAIRS];
        attend_split<C, ROWS, PAIRS>(
            args, rows, each, split, low, high, q[warp_index()], weights[warp_index()], state, out
        );
        for (int row = 0; row < ROWS; row++) {
            float2 factors = merge(total[row], state[row]);
            for (int pair = 0; pair < PAIRS; pair++) {
                float2 &sum = total_values[(row * PAIRS + pair) * WARP + lane_index()];
                sum.x = fmaf(out[row][pair].x, factors.y, sum.x * factors.x);
                sum.y = fmaf(out[row][pair].y, factors.y, sum.y * factors.x);
            }
        }
    }
    for (int row = 0; row < ROWS; row++) {
        if (row >= rows.count) continue;
        int head = head_of(args, rows, row);
        float scale = normaliser(args, total[row], head);
        size_t start = (token_of(args, rows, row) * args.num_heads + head) * args.head_dim;
        for (int pair = 0; pair < PAIRS; pair++) {
            int d = 2 * (lane_index() + WARP * pair);
            float2 sum = total_values[(row * PAIRS + pair) * WARP + lane_index()];
            if (d < args.head_dim) store_activation(args, start + d, sum.x * scale);
            if (d + 1 < args.head_dim) store_activation(args, start + d + 1, sum.y * scale);
        }
    }
}

// `attention_decode_CACHE_dWIDTH_rROWS`, `attention_prefill_CACHE_dWIDTH`: heads of up to WIDTH elements. A prefill's rows
// are as many as the block's shared memory holds.
#define DECODE(NAME, CACHE, WIDTH, ROWS)                                                                           \
    extern "C" __global__ void __launch_bounds__(WARPS *WARP)                                                         \
        attention_decode_##NAME##_d##WIDTH##_r##ROWS(const AttentionArgs args) {                                        \
        decode<CACHE, ROWS, WIDTH / 64>(args);                                                                         \
    }
#define PREFILL(NAME, CACHE, WIDTH, ROWS)                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS *WARP)                                                          \
        attention_prefill_##NAME##_d##WIDTH(const AttentionArgs args) {                                                \
        prefill<CACHE, ROWS, WIDTH / 64>(args);                                                                         \
    }
#define OF_WIDTH(NAME, CACHE, WIDTH, ROWS)                                                                           \
    DECODE(NAME, CACHE, WIDTH, 1)                                                                                     \
    DECODE(NAME, CACHE, WIDTH, 4)                                                                                     \
    PREFILL(NAME, CACHE, WIDTH, ROWS)
#define OF_CACHE(NAME, CACHE)                                                                                         \
    OF_WIDTH(NAME, CACHE, 64, 8)                                                                                      \
    OF_WIDTH(NAME, CACHE, 128, 8)                                                                                     \
    OF_WIDTH(NAME, CACHE, 192, 4)                                                                                     \
    OF_WIDTH(NAME, CACHE, 256, 4)                                                                                     \
    DECODE(NAME, CACHE, 64, 8)                                                                                        \
    DECODE(NAME, CACHE, 128, 8)

OF_CACHE(f32, float)
OF_CACHE(bf16, bf16)
