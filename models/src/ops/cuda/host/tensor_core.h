// ../tensor_core.cuh for the CPU. What lanes hold is exchanged as at a shuffle; a copy into shared memory happens when it is
// waited for, not earlier, so that a kernel which does not wait reads what was there before.
#pragma once

#include "runtime.h"

// Of the block, with a guard behind it.
void *host_dynamic_shared();

// What every lane of the warp gives, `bytes` bytes each, as an array by lane. Good until the fiber's next exchange.
const void *host_exchange(const void *own, size_t bytes);

void host_copy_later(void *to, const void *from, size_t bytes, bool is_there);
void host_close_copies();
void host_wait_for_copies(size_t pending);

static inline Chunk *dynamic_shared() { return (Chunk *)host_dynamic_shared(); }

static inline uint32_t host_pair(bf16 low, bf16 high) { return (uint32_t)low.bits | (uint32_t)high.bits << 16; }

static inline float host_half(uint32_t pair, int index) {
    return __uint_as_float(index == 0 ? pair << 16 : pair & 0xffff0000u);
}

static inline void load_matrices(uint32_t (&to)[4], const Chunk *row) {
    const Chunk *const *rows = (const Chunk *const *)host_exchange(&row, sizeof row);
    int g = lane_index() / 4, t = lane_index() % 4;
    for (int m = 0; m < 4; m++) {
        const bf16 *elements = rows[8 * m + g]->elements;
        to[m] = host_pair(elements[2 * t], elements[2 * t + 1]);
    }
}

static inline void load_transposed(uint32_t (&to)[4], const Chunk *row) {
    const Chunk *const *rows = (const Chunk *const *)host_exchange(&row, sizeof row);
    int g = lane_index() / 4, t = lane_index() % 4;
    for (int m = 0; m < 4; m++) {
        to[m] = host_pair(rows[8 * m + 2 * t]->elements[g], rows[8 * m + 2 * t + 1]->elements[g]);
    }
}

struct HostFragments {
    uint32_t a[4], b[2];
};

static inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    HostFragments own = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const HostFragments *of_lane = (const HostFragments *)host_exchange(&own, sizeof own);
    int g = lane_index() / 4, t = lane_index() % 4;
    for (int i = 0; i < 4; i++) {
        int upper = i / 2, column = 2 * t + i % 2; // row g or g + 8
        for (int k = 0; k < 16; k++) {
            int holder = k % 8 / 2, later = k / 8;
            float left = host_half(of_lane[4 * g + holder].a[upper + 2 * later], k % 2);
            float right = host_half(of_lane[4 * column + holder].b[later], k % 2);
            c[i] += left * right;
        }
    }
}

static inline void copy_chunk(Chunk *to, const bf16 *from, bool is_there) {
    host_copy_later(to, from, sizeof *to, is_there);
}

static inline void close_copies() { host_close_copies(); }

template <int PENDING> static inline void wait_for_copies() { host_wait_for_copies(PENDING); }

static inline uint32_t rounded_pair(float low, float high) { return host_pair(rounded<bf16>(low), rounded<bf16>(high)); }

static inline float power_of_two(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

static inline float reciprocal(float x) { return 1.0f / x; }
