// Runs kernels of ../kernels.cu on the CPU, see runtime.h. Tests load this as a library and call `launch`.
#include "runtime.h"

#include <deque>
#include <memory>
#include <string>
#include <ucontext.h>
#include <vector>

#include "../kernels.cu"

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t MOST_EXCHANGED = 32; // bytes of a lane
constexpr size_t SHARED_GUARD = 1024;
constexpr char UNWRITTEN = -1;        // not a number in f32 and bf16

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    bool is_there;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack; // not cleared, so that no more of it is taken than is used
    dim3 index;
    bool ended = false;
    // Barriers that it has arrived at, of its block and of its warp; even and odd ones alternate in `exchanged`.
    uint64_t block_arrivals = 0, warp_arrivals = 0;
    std::vector<Copy> open;                // begun
    std::deque<std::vector<Copy>> pending; // groups that nobody has waited for
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<uint32_t> exchanged[2];
    std::vector<char> given[2]; // of `host_exchange`, as above
    std::vector<char> shared;   // given at the launch
    ucontext_t scheduler;
    Fiber *running = nullptr;
    void (*body)(const void *) = nullptr;
    const void *args = nullptr;
    uint64_t progress = 0; // arrivals and ends
    uint64_t passed = 0;   // barriers of the block that all fibers have arrived at
    size_t first_late = 0; // fibers before it have arrived at the next one
};

thread_local Block *block = nullptr;
thread_local std::string problem;

void fail(const char *what) {
    if (problem.empty()) problem = what;
}

size_t index_of(const Fiber &fiber) { return &fiber - block->fibers.data(); }

void give_way() {
    Fiber *self = block->running;
    swapcontext(&self->context, &block->scheduler);
}

size_t warp_start() { return index_of(*block->running) / WARP * WARP; }

void wait_for_warp() {
    block->running->warp_arrivals++;
    block->progress++;
    uint64_t own = block->running->warp_arrivals;
    auto first = block->fibers.begin() + warp_start();
    auto end = block->fibers.begin() + std::min(warp_start() + WARP, block->fibers.size());
    auto is_late = [&](const Fiber &fiber) { return !fiber.ended && fiber.warp_arrivals < own; };
    while (problem.empty() && std::any_of(first, end, is_late)) give_way();
}

// After a wait of all 32 lanes: one that ended before it came is missing.
void check_whole_warp() {
    uint64_t own = block->running->warp_arrivals;
    for (size_t lane = warp_start(); lane < warp_start() + WARP; lane++) {
        bool has_come = lane < block->fibers.size() && block->fibers[lane].warp_arrivals >= own;
        if (!has_come) fail("a lane has ended that others compute with");
    }
}

void run_fiber() {
    block->body(block->args);
    block->running->ended = true;
    block->progress++;
    give_way();
}

bool has_ended(const Fiber &fiber) { return fiber.ended; }

// As far as it comes without the others: what it overwrites too early, they then read.
void run_warp(size_t warp, int backwards) {
    size_t first = warp * WARP, count = std::min<size_t>(WARP, block->fibers.size() - first);
    for (uint64_t before = block->progress - 1; block->progress != before && problem.empty();) {
        before = block->progress;
        for (size_t turn = 0; turn < count; turn++) {
            Fiber &fiber = block->fibers[first + (backwards ? count - 1 - turn : turn)];
            if (fiber.ended) continue;
            block->running = &fiber;
            threadIdx = fiber.index;
            swapcontext(&block->scheduler, &fiber.context);
        }
    }
}

void run_block(int backwards) {
    std::fill(block->shared.begin(), block->shared.end(), UNWRITTEN);
    block->passed = block->first_late = 0;
    for (auto &fiber : block->fibers) {
        fiber.ended = false;
        fiber.block_arrivals = fiber.warp_arrivals = 0;
        fiber.open.clear(), fiber.pending.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = &block->scheduler;
        makecontext(&fiber.context, run_fiber, 0);
    }
    size_t warps = (block->fibers.size() + WARP - 1) / WARP;
    while (problem.empty() && !std::all_of(block->fibers.begin(), block->fibers.end(), has_ended)) {
        uint64_t before = block->progress;
        for (size_t turn = 0; turn < warps; turn++) run_warp(backwards ? warps - 1 - turn : turn, backwards);
        if (block->progress == before) fail("threads wait at barriers that not all of them reach");
    }
    auto is_written = [](char byte) { return byte != UNWRITTEN; };
    if (std::any_of(block->shared.end() - SHARED_GUARD, block->shared.end(), is_written)) {
        fail("a block wrote behind the shared memory that it was given");
    }
}

template <typename Args, void (*kernel)(Args)> void call(const void *args) { kernel(*(const Args *)args); }

struct Kernel {
    const char *name;
    size_t args_bytes;
    void (*body)(const void *);
};

#define KERNEL(NAME, ARGS) {#NAME, sizeof(ARGS), call<const ARGS, NAME>}
#define ATTENTION(CACHE, WIDTH)                                                                                        \
    KERNEL(attention_decode_##CACHE##_d##WIDTH##_r1, AttentionArgs), KERNEL(attention_decode_##CACHE##_d##WIDTH##_r4, AttentionArgs), \
        KERNEL(attention_prefill_##CACHE##_d##WIDTH, AttentionArgs)
#define ATTENTIONS(CACHE)                                                                                              \
    ATTENTION(CACHE, 64), ATTENTION(CACHE, 128), ATTENTION(CACHE, 192), ATTENTION(CACHE, 256),                            \
        KERNEL(attention_decode_##CACHE##_d64_r8, AttentionArgs), KERNEL(attention_decode_##CACHE##_d128_r8, AttentionArgs)
#define ATTENTION_TILES(WIDTH)                                                                                         \
    KERNEL(attention_prefill_tiles_d##WIDTH, AttentionArgs), KERNEL(attention_decode_tiles_d##WIDTH, AttentionArgs)

#define QUANTISED_HOST(FORMAT, ELEMENT)                                                                                \
    KERNEL(quantised_##FORMAT##_##ELEMENT##_r1, QuantisedArgs), KERNEL(quantised_##FORMAT##_##ELEMENT##_r2, QuantisedArgs), \
        KERNEL(quantised_##FORMAT##_##ELEMENT##_r4, QuantisedArgs), KERNEL(quantised_##FORMAT##_##ELEMENT##_r8, QuantisedArgs)
#define BLOCKS(FORMAT)                                                                                                 \
    QUANTISED_HOST(FORMAT, f32), QUANTISED_HOST(FORMAT, bf16), KERNEL(dequantise_##FORMAT, DequantiseArgs)

const Kernel KERNELS[] = {
    ATTENTIONS(f32),
    ATTENTIONS(bf16),
    ATTENTION_TILES(64), ATTENTION_TILES(128), ATTENTION_TILES(192), ATTENTION_TILES(256),
    KERNEL(attention_merge, AttentionArgs),
    KERNEL(attention_merge_tiles, AttentionArgs),
    KERNEL(prepare_qkv_f32_f32, QkvArgs),
    KERNEL(prepare_qkv_f32_bf16, QkvArgs),
    KERNEL(prepare_qkv_bf16_f32, QkvArgs),
    KERNEL(prepare_qkv_bf16_bf16, QkvArgs),
    KERNEL(norm_f32, NormArgs),
    KERNEL(norm_bf16, NormArgs),
    KERNEL(activate_f32, ActivationArgs),
    KERNEL(activate_bf16, ActivationArgs),
    KERNEL(one_row_bf16, OneRowArgs),
    BLOCKS(q8_0), BLOCKS(q4_0), BLOCKS(q4_k), BLOCKS(q6_k),
    KERNEL(add_bias_f32, BiasArgs),
    KERNEL(add_bias_bf16, BiasArgs),
    KERNEL(rotary_angles, AnglesArgs),
    KERNEL(unequal_f32, UnequalArgs),
    KERNEL(unequal_bf16, UnequalArgs),
    KERNEL(gather_f32, GatherArgs),
    KERNEL(gather_bf16, GatherArgs),
    KERNEL(choose_f32, ChooseArgs),
    KERNEL(choose_bf16, ChooseArgs),
};

} // namespace

void __syncthreads() {
    uint64_t own = ++block->running->block_arrivals;
    block->progress++;
    auto &late = block->first_late;
    while (problem.empty() && block->passed < own) {
        auto &fibers = block->fibers;
        while (late < fibers.size() && (fibers[late].ended || fibers[late].block_arrivals > block->passed)) late++;
        if (late < fibers.size()) {
            give_way();
        } else {
            block->passed++;
            late = 0;
        }
    }
}

void __syncwarp() { wait_for_warp(); }

uint32_t host_shuffle(uint32_t value, int mask) {
    size_t self = index_of(*block->running), other = warp_start() + (self % WARP ^ mask);
    auto &values = block->exchanged[block->running->warp_arrivals % 2];
    values[self] = value;
    wait_for_warp();
    check_whole_warp();
    return other < values.size() ? values[other] : 0;
}

const void *host_exchange(const void *own, size_t bytes) {
    size_t self = index_of(*block->running);
    char *given = block->given[block->running->warp_arrivals % 2].data() + warp_start() * MOST_EXCHANGED;
    memcpy(given + self % WARP * bytes, own, bytes);
    wait_for_warp();
    check_whole_warp();
    return given;
}

void *host_dynamic_shared() { return block->shared.data(); }

void host_copy_later(void *to, const void *from, size_t bytes, bool is_there) {
    block->running->open.push_back(Copy{to, from, bytes, is_there});
}

void host_close_copies() {
    block->running->pending.push_back(std::move(block->running->open));
    block->running->open.clear();
}

void host_wait_for_copies(size_t pending) {
    for (auto &groups = block->running->pending; groups.size() > pending; groups.pop_front()) {
        for (const Copy &copy : groups.front()) {
            if (copy.is_there) memcpy(copy.to, copy.from, copy.bytes);
            else memset(copy.to, 0, copy.bytes);
        }
    }
}

// Runs a kernel over a grid, whose blocks come in ascending or descending order. Null, or what was wrong.
extern "C" const char *launch(
    const char *name, const uint32_t *grid, uint32_t threads, uint32_t shared_bytes, const void *args, uint64_t args_bytes,
    int backwards
) {
    problem.clear();
    auto is_named = [&](const Kernel &kernel) { return strcmp(kernel.name, name) == 0; };
    const Kernel *kernel = std::find_if(std::begin(KERNELS), std::end(KERNELS), is_named);
    if (kernel == std::end(KERNELS)) return "there is no kernel of this name";
    if (kernel->args_bytes != args_bytes) return "the arguments have another size in Rust than in C++";
    Block own;
    block = &own;
    own.body = kernel->body;
    own.args = args;
    own.fibers.resize(threads);
    for (auto &values : own.exchanged) values.resize(threads);
    for (auto &given : own.given) given.resize((threads + WARP - 1) / WARP * WARP * MOST_EXCHANGED);
    own.shared.resize(shared_bytes + SHARED_GUARD);
    for (uint32_t thread = 0; thread < threads; thread++) {
        own.fibers[thread].stack.reset(new char[STACK_BYTES]);
        own.fibers[thread].index = dim3{thread, 0, 0};
    }
    gridDim = dim3{grid[0], grid[1], grid[2]};
    blockDim = dim3{threads, 1, 1};
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    for (uint64_t turn = 0; turn < blocks && problem.empty(); turn++) {
        uint64_t index = backwards ? blocks - 1 - turn : turn;
        uint64_t plane = index / grid[0];
        blockIdx = dim3{(unsigned)(index % grid[0]), (unsigned)(plane % grid[1]), (unsigned)(plane / grid[1])};
        run_block(backwards);
    }
    block = nullptr;
    return problem.empty() ? nullptr : problem.c_str();
}
