// What a warp does as one: products of small matrices of bf16 on the tensor cores, the loads that lay them out for it, and copies
// into shared memory that go on while it computes. The only file with inline assembly, all of it of sm_80; under
// host/tensor_core.h the same functions run on the CPU. All 32 lanes must take part.
//
// How a matrix lies in the registers of a warp (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane 4g + t holds, of
//
//   a [16 rows, 16 k]     a[0] row g      k 2t, 2t+1       a[1] row g + 8  k 2t, 2t+1        two bf16 each, the lower
//                         a[2] row g      k 2t+8, 2t+9     a[3] row g + 8  k 2t+8, 2t+9      index in the lower half
//   b [16 k, 8 columns]   b0   k 2t, 2t+1     column g     b1   k 2t+8, 2t+9   column g
//   c [16 rows, 8 columns] c[0], c[1]  row g  columns 2t, 2t+1     c[2], c[3]  row g + 8     f32
//
// So two neighbouring c, rounded, are an a of a further product.
#pragma once

#include "common.cuh"

// Of 16 bytes, the unit in which shared memory is filled and read.
struct __align__(16) Chunk {
    bf16 elements[8];
};

#ifndef __CUDACC__
#include "host/tensor_core.h"
#else

// What the launch gave the block beside its `__shared__` variables.
__device__ __forceinline__ Chunk *dynamic_shared() {
    extern __shared__ Chunk given_at_launch[];
    return given_at_launch;
}

__device__ __forceinline__ uint32_t shared_address(const void *at) { return (uint32_t)__cvta_generic_to_shared(at); }

// Four matrices of 8 rows of a chunk each: lane i says where row i % 8 of matrix i / 8 lies. Of matrix m, lane 4g + t gets
// elements 2t and 2t + 1 of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const Chunk *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
}

// The same, but lane 4g + t gets element g of rows 2t and 2t + 1.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const Chunk *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
}

// c += a b.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Begins to copy a chunk into shared memory, or zeros where `is_there` is false; then `from` is not read.
__device__ __forceinline__ void copy_chunk(Chunk *to, const bf16 *from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

// What this thread has begun to copy since the last call is one group.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all groups of this thread but the last `PENDING` are there; other threads see them after a barrier.
template <int PENDING> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// Both rounded to the nearest, `low` in the lower half.
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x, to about 2 units of the last place; 0 where that is no normal number.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// 1 / x, to about a unit of the last place.
__device__ __forceinline__ float reciprocal(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

#endif
