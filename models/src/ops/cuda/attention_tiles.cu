// Attention on the tensor cores, for queries and a cache in bf16 and heads of a multiple of 16 elements: the same sums as
// attention.cu, in the manner of FlashAttention-2 (Dao, 2023). A block's rows are the tokens of an item times the query heads
// that share a K/V head, so that what is loaded of the cache serves all of them.
//
// Prefill: the block walks through its keys from the first that some row sees; the next keys are copied while it
// computes. Decode: the warps of a block share a split of the keys, 16 each in turn, and add up what they found;
// `attention_merge_tiles` joins the splits.
//
// Tiles and splits begin at absolute positions, and what a row does not see changes no bit of its sums. So a row's bits depend
// on its position, on the cached K/V that it sees and on which of the two computes it, not on the batch or the chunk.
#include "attention_tiles.cuh"

constexpr int TILE_WARPS = 4;   // of a block of prefill
constexpr int DECODE_WARPS = 2; // of a block of decode
constexpr int MERGE_WARPS = 4;
constexpr int TILE_SPLIT = 256; // keys whose sums are one partial result of decode
constexpr int STAGES = 2;       // of copies: one is computed with, the other is on its way

// Rows `[0, count)` of the block, one after the other, and zeros behind them.
template <int WIDTH, int ROWS>
__device__ __forceinline__ void copy_queries(const AttentionArgs &args, const Rows &rows, Chunk *q) {
    for (int index = threadIdx.x; index < ROWS * (WIDTH / 8); index += TILE_WARPS * WARP) {
        int row = index / (WIDTH / 8), chunk = index % (WIDTH / 8);
        if (chunk * 8 >= args.head_dim) continue;
        bool is_row = row < rows.count;
        size_t head = is_row ? token_of(args, rows, row) * args.num_heads + head_of(args, rows, row) : 0;
        copy_chunk(q + chunk_of<WIDTH>(row, chunk), (const bf16 *)args.q + head * args.head_dim + chunk * 8, is_row);
    }
}

// The block's warps copy KEYS keys from `key` on, 16 at a time, to `stage`: k, then v. `places` are those of this warp's.
template <int WIDTH, int KEYS>
__device__ __forceinline__ void copy_stage(
    const AttentionArgs &args, const Rows &rows, const Reach &reach, int key, const Place &place, Chunk *stage
) {
    static_assert(KEYS / TILE <= TILE_WARPS);
    int tile = warp_index();
    if (tile >= KEYS / TILE) return;
    Chunk *k = stage + tile * CHUNKS<WIDTH>;
    copy_keys<WIDTH>(args, rows, reach, key + tile * TILE, place, k, k + KEYS / TILE * CHUNKS<WIDTH>);
}

// products += those of the warp's queries, from row `row` on, with the keys of a stage.
template <int WIDTH, int TILES, int COLUMNS>
__device__ __forceinline__ void multiply_stage(
    const Chunk *q, int row, const Chunk *k, float (&products)[TILES][COLUMNS][4]
) {
#pragma unroll
    for (int d = 0; d < WIDTH; d += 16) {
        uint32_t queries[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            load_matrices(queries[tile], q + matrix_row<WIDTH>(row + 16 * tile, d));
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; column += 2) {
            add_products<WIDTH>(queries, k + column / 2 * CHUNKS<WIDTH>, d, column, products);
        }
    }
}

// Rounds what a row has summed up and stores it.
template <int WIDTH>
__device__ __forceinline__ void store_rows(
    const AttentionArgs &args, const Rows &rows, int row, Pair &state, const float (&sums)[WIDTH / 8][4]
) {
    constexpr float LN_2 = 0.6931471805599453f;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float sum = state.sum[which];
        for (int distance = 1; distance <= 2; distance *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        if (row + 8 * which >= rows.count) continue;
        int head = head_of(args, rows, row + 8 * which);
        float scale = normaliser(args, Softmax{state.max[which] * LN_2, sum}, head);
        size_t start = (token_of(args, rows, row + 8 * which) * args.num_heads + head) * args.head_dim;
        uint32_t *out = (uint32_t *)((bf16 *)args.out + start);
#pragma unroll
        for (int column = 0; column < WIDTH / 8; column++) {
            if (column * 8 >= args.head_dim) continue;
            const float *pair = &sums[column][2 * which];
            out[column * 4 + lane_index() % 4] = rounded_pair(pair[0] * scale, pair[1] * scale);
        }
    }
}

// Grid (row groups, num_kv_heads, num_items): TILES times 16 rows a warp, KEYS keys at a time.
template <int WIDTH, int TILES, int KEYS> __device__ __forceinline__ void prefill_tiles(const AttentionArgs &args) {
    constexpr int ROWS = TILE_WARPS * TILES * 16, STAGE = 2 * (KEYS / TILE) * CHUNKS<WIDTH>;
    Rows rows = rows_of(args, blockIdx.z, blockIdx.y, blockIdx.x * ROWS, ROWS);
    if (rows.count == 0) return;
    Chunk *q = dynamic_shared(), *stages = q + ROWS * (WIDTH / 8);
    clear<WIDTH>(args, q, ROWS * (WIDTH / 8) + 2 * STAGE);
    // Later tokens see neither earlier first keys nor earlier last ones.
    int first = (int)args.positions[token_of(args, rows, 0)];
    int last = (int)args.positions[token_of(args, rows, rows.count - 1)];
    Reach reach = {first_key(args, first), keys_end(args, last, rows.num_keys)};
    Reach by_all = {first_key(args, last), keys_end(args, first, rows.num_keys)};
    int key = reach.low / KEYS * KEYS, own = warp_index() % (KEYS / TILE) * TILE;

    copy_queries<WIDTH, ROWS>(args, rows, q);
    copy_stage<WIDTH, KEYS>(args, rows, reach, key, place_of(args, rows, reach, key + own), stages);
    close_copies();
    Place next = place_of(args, rows, reach, key + KEYS + own);

    int row = warp_index() * TILES * 16, lane_row = row + lane_index() / 4;
    Pair state[TILES];
    float sums[TILES][WIDTH / 8][4] = {};
    for (Pair &pair : state) pair = Pair{{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}};
    float factor = exponent_factor(args);
    for (int turn = 0; key < reach.high; key += KEYS, turn ^= 1) {
        Chunk *k = stages + turn * STAGE, *v = k + STAGE / 2;
        wait_for_copies<0>();
        __syncthreads(); // all copies are there, and nobody reads the other stage any more
        if (key + KEYS < reach.high) {
            copy_stage<WIDTH, KEYS>(args, rows, reach, key + KEYS, next, stages + (turn ^ 1) * STAGE);
            next = place_of(args, rows, reach, key + 2 * KEYS + own);
        }
        close_copies();
        if (row >= rows.count) continue;
        float scores[TILES][KEYS / 8][4] = {};
        multiply_stage<WIDTH>(q, row, k, scores);
        bool is_edge = key < by_all.low || key + KEYS > by_all.high;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            float shrink[2];
            finish_scores(args, rows, lane_row + 16 * tile, key, is_edge, scores[tile]);
            weigh(scores[tile], factor, state[tile], shrink);
            rescale(shrink, sums[tile]);
        }
#pragma unroll
        for (int keys = 0; keys < KEYS / TILE; keys++) {
            uint32_t weights[TILES][4];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                round_weights(scores[tile][2 * keys], scores[tile][2 * keys + 1], weights[tile]);
            }
            add_values<WIDTH>(weights, v + keys * CHUNKS<WIDTH>, sums);
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        store_rows<WIDTH>(args, rows, lane_row + 16 * tile, state[tile], sums[tile]);
    }
}

// The warps' results over their keys of a split, one partial result for each row. `shared` has room for all of them.
template <int WIDTH>
__device__ __forceinline__ void store_split(
    const AttentionArgs &args, const Rows &rows, int split, const Pair &state, const float (&sums)[WIDTH / 8][4],
    float *shared
) {
    constexpr int STRIDE = WIDTH + 8; // rows begin 8 banks apart
    constexpr float LN_2 = 0.6931471805599453f;
    __syncthreads(); // nobody reads keys or values any more
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float sum = state.sum[which];
        for (int distance = 1; distance <= 2; distance *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        int row = lane_index() / 4 + 8 * which;
        if (row >= rows.count) continue;
        float *values = shared + (warp_index() * 16 + row) * STRIDE;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++) {
            *(float2 *)&values[i * 8 + 2 * (lane_index() % 4)] = make_float2(sums[i][2 * which], sums[i][2 * which + 1]);
        }
        if (lane_index() % 4 == 0) values[WIDTH] = state.max[which] * LN_2, values[WIDTH + 1] = sum;
    }
    __syncthreads();
    for (int row = warp_index(); row < rows.count; row += DECODE_WARPS) {
        Softmax total = {minus_infinity(), 0.0f};
        float2 factors[DECODE_WARPS];
        const float *values = shared + row * STRIDE;
        for (int warp = 0; warp < DECODE_WARPS; warp++) {
            const float *of_warp = values + warp * 16 * STRIDE;
            factors[warp] = merge(total, Softmax{of_warp[WIDTH], of_warp[WIDTH + 1]});
        }
        size_t head = (size_t)blockIdx.z * args.num_heads + head_of(args, rows, row);
        float *partial = args.partial + (head * args.max_splits + split) * (args.head_dim + 2);
        for (int d = lane_index(); d < args.head_dim; d += WARP) {
            float value = 0.0f;
            for (int warp = 0; warp < DECODE_WARPS; warp++) {
                value = fmaf(values[warp * 16 * STRIDE + d], factors[warp].y, value * factors[warp].x);
            }
            partial[d] = value;
        }
        if (lane_index() == 0) partial[args.head_dim] = total.max, partial[args.head_dim + 1] = total.sum;
    }
}

// Up to 16 rows of one token as left sides of products, straight from memory, with zeros behind them.
template <int STEPS>
__device__ __forceinline__ void load_queries(const AttentionArgs &args, const Rows &rows, uint32_t (&queries)[STEPS][1][4]) {
#pragma unroll
    for (int i = 0; i < 4 * STEPS; i++) {
        int row = lane_index() / 4 + i % 2 * 8, d = i / 4 * 16 + i / 2 % 2 * 8 + 2 * (lane_index() % 4);
        size_t head = (size_t)rows.first_token * args.num_heads + head_of(args, rows, min(row, rows.count - 1));
        bool is_there = row < rows.count && d < args.head_dim;
        queries[i / 4][0][i % 4] = is_there ? *(const uint32_t *)((const bf16 *)args.q + head * args.head_dim + d) : 0;
    }
}

// Of one token: grid (splits, num_kv_heads * the group's turns of 16 rows, num_items).
template <int WIDTH> __device__ __forceinline__ void decode_tiles(const AttentionArgs &args) {
    constexpr int STAGE = 2 * CHUNKS<WIDTH>, STRIDE = DECODE_WARPS * TILE;
    int turns = (group_size(args) + 15) / 16, split = blockIdx.x;
    Rows rows = rows_of(args, blockIdx.z, blockIdx.y / turns, blockIdx.y % turns * 16, 16);
    int key = split * TILE_SPLIT;
    if (rows.count == 0 || key >= rows.num_keys) return; // the grid has room for longer sequences
    // Looked up beside the position, not after it.
    Place first[STAGES];
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        first[i] = place_of(args, rows, Reach{0, rows.num_keys}, key + warp_index() * TILE + i * STRIDE);
    }
    int position = (int)args.positions[rows.first_token];
    Reach reach = {first_key(args, position), keys_end(args, position, rows.num_keys)};
    int end = min(key + TILE_SPLIT, reach.high);
    if (key + TILE_SPLIT <= reach.low || key >= end) return;
    Chunk *shared = dynamic_shared(), *stages = shared + warp_index() * STAGES * STAGE;
    clear<WIDTH>(args, shared, DECODE_WARPS * STAGES * STAGE);
    key += warp_index() * TILE;
    if (key + TILE <= reach.low) {
        key += (reach.low - key) / STRIDE * STRIDE;
#pragma unroll
        for (int i = 0; i < STAGES; i++) first[i] = place_of(args, rows, reach, key + i * STRIDE);
    }
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        Chunk *k = stages + i * STAGE;
        if (key + i * STRIDE < end) copy_keys<WIDTH>(args, rows, reach, key + i * STRIDE, first[i], k, k + STAGE / 2);
        close_copies();
    }
    Place next = first[STAGES - 1];
    uint32_t queries[WIDTH / 16][1][4];
    load_queries(args, rows, queries);
    Pair state = {{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}};
    float sums[1][WIDTH / 8][4] = {};
    float factor = exponent_factor(args);
    for (int turn = 0; key < end; key += STRIDE, turn++) {
        int ahead = key + (STAGES - 1) * STRIDE;
        Chunk *k = stages + turn % STAGES * STAGE, *later = stages + (turn + STAGES - 1) % STAGES * STAGE;
        if (ahead < end) {
            copy_keys<WIDTH>(args, rows, reach, ahead, next, later, later + STAGE / 2);
            next = place_of(args, rows, reach, ahead + STRIDE);
        }
        close_copies();
        wait_for_copies<STAGES - 1>();
        __syncwarp();
        float scores[1][2][4] = {};
#pragma unroll
        for (int d = 0; d < WIDTH; d += 16) add_products<WIDTH>(queries[d / 16], k, d, 0, scores);
        bool is_edge = key < reach.low || key + TILE > reach.high;
        float shrink[2];
        finish_scores(args, rows, lane_index() / 4, key, is_edge, scores[0]);
        weigh(scores[0], factor, state, shrink);
        rescale(shrink, sums[0]);
        uint32_t weights[1][4];
        round_weights(scores[0][0], scores[0][1], weights[0]);
        add_values<WIDTH>(weights, k + STAGE / 2, sums);
        __syncwarp(); // the next copies take this place
    }
    store_split<WIDTH>(args, rows, split, state, sums[0], (float *)shared);
}

// Joins the splits of a token: grid (num_heads, num_items). Each warp adds up every MERGE_WARPS-th of them.
extern "C" __global__ void __launch_bounds__(MERGE_WARPS *WARP) attention_merge_tiles(const AttentionArgs args) {
    constexpr int MOST = 256; // elements of a head
    __shared__ float maxima[MERGE_WARPS], sums[MERGE_WARPS], values[MERGE_WARPS][MOST];
    int head = blockIdx.x, item = blockIdx.y, stride = args.head_dim + 2, warp = warp_index();
    const uint32_t *fields = args.items + 4 * (size_t)item;
    size_t token = fields[0];
    int position = (int)args.positions[token], high = keys_end(args, position, (int)fields[3]);
    int first = first_key(args, position) / TILE_SPLIT, end = (high + TILE_SPLIT - 1) / TILE_SPLIT;
    const float *partials = args.partial + ((size_t)item * args.num_heads + head) * args.max_splits * stride;
    float highest = minus_infinity();
    for (int split = first + threadIdx.x; split < end; split += MERGE_WARPS * WARP) {
        highest = fmaxf(highest, partials[(size_t)split * stride + args.head_dim]);
    }
    highest = warp_max(highest);
    if (lane_index() == 0) maxima[warp] = highest;
    __syncthreads();
    for (float maximum : maxima) highest = fmaxf(highest, maximum);
    float2 own[MOST / 2 / WARP] = {};
    float sum = 0.0f;
#pragma unroll 4
    for (int split = first + warp; split < end; split += MERGE_WARPS) {
        const float *partial = partials + (size_t)split * stride;
        float weight = expf(partial[args.head_dim] - highest);
        sum = fmaf(partial[args.head_dim + 1], weight, sum);
        for (int i = 0, d = 2 * lane_index(); i < MOST / 2 / WARP; i++, d += 2 * WARP) {
            float2 pair = d < args.head_dim ? *(const float2 *)(partial + d) : make_float2(0.0f, 0.0f);
            own[i].x = fmaf(pair.x, weight, own[i].x), own[i].y = fmaf(pair.y, weight, own[i].y);
        }
    }
    for (int i = 0; i < MOST / 2 / WARP; i++) {
        values[warp][2 * (lane_index() + i * WARP)] = own[i].x, values[warp][2 * (lane_index() + i * WARP) + 1] = own[i].y;
    }
    if (lane_index() == 0) sums[warp] = sum;
    __syncthreads();
    Softmax total = {highest, 0.0f};
    for (float of_warp : sums) total.sum += of_warp;
    float scale = normaliser(args, total, head);
    for (int d = threadIdx.x; d < args.head_dim; d += MERGE_WARPS * WARP) {
        float value = 0.0f;
        for (int i = 0; i < MERGE_WARPS; i++) value += values[i][d];
        store_activation(args, (token * args.num_heads + head) * args.head_dim + d, value * scale);
    }
}

// `attention_prefill_tiles_dWIDTH`, `attention_decode_tiles_dWIDTH`: heads of up to WIDTH elements. A block's shared memory is
// at most the 99 KiB that Ada has. A multiprocessor is to have registers for DECODE_BLOCKS blocks of decode at a time.
#define TILES_OF_WIDTH(WIDTH, TILES, KEYS, DECODE_BLOCKS)                                                               \
    extern "C" __global__ void __launch_bounds__(TILE_WARPS *WARP, 2)                                                   \
        attention_prefill_tiles_d##WIDTH(const AttentionArgs args) {                                                    \
        prefill_tiles<WIDTH, TILES, KEYS>(args);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(DECODE_WARPS *WARP, DECODE_BLOCKS)                                     \
        attention_decode_tiles_d##WIDTH(const AttentionArgs args) {                                                     \
        decode_tiles<WIDTH>(args);                                                                                     \
    }

TILES_OF_WIDTH(64, 2, 64, 6)
TILES_OF_WIDTH(128, 2, 64, 6)
TILES_OF_WIDTH(192, 1, 32, 4)
TILES_OF_WIDTH(256, 1, 32, 3)
