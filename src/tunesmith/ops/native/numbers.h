/* bf16, an exponential that vectorizes, and macros that compile a function for several processors. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define thread_number() omp_get_thread_num()
#else
#define thread_number() 0
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HAS_AMX 1
#else
#define CLONED
#define HAS_AMX 0
#endif
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef union {
    float f;
    uint32_t u;
} bits;

/* A register of AVX-512, of AVX2, and of the rest; see each_width.h. */
typedef float lanes_16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef float lanes_8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float lanes_4 __attribute__((vector_size(16), aligned(4), may_alias));

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define WIDE(f) PASTE(f, LANES)

static int widest = 16;

/* For tests: with 8, the code for processors without AVX-512 runs where the two differ; with 4, that for any processor. */
void allow_lanes(int count) { widest = count; }

#if HAS_AMX
static int has_avx512(void) {
    return widest >= 16 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

static int has_avx2(void) {
    return widest >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* The version of a kernel for this processor's registers. */
#define BY_WIDTH(f) (has_avx512() ? PASTE(f, 16) : has_avx2() ? PASTE(f, 8) : PASTE(f, 4))
#else
static int has_avx512(void) { return 0; }

#define BY_WIDTH(f) PASTE(f, 4)
#endif

INLINE float from_bf16(bf16 v) {
    bits b = {.u = (uint32_t)v << 16};
    return b.f;
}

INLINE bf16 to_bf16(float f) {
    bits b = {.f = f};
    uint32_t rounded = (b.u + 0x7fffu + ((b.u >> 16) & 1u)) >> 16;
    return (bf16)(f == f ? rounded : 0x7fc0u);
}

/* exp(x) to 2 units in the last place of fp32: 2^n · e^r with |r| ≤ ln 2 / 2 (Cody & Waite 1980; Cephes' polynomial).
 * x is clamped to ±80 (results 2e-35 to 6e34): subnormal numbers would be a hundred times slower. NaN stays NaN. */
INLINE float exp_of(float x) {
    const float magic = 12582912.0f; /* 1.5 · 2^23: adding it rounds to an integer, which is then in the low bits */
    x = x < -80.0f ? -80.0f : x;
    x = x > 80.0f ? 80.0f : x;
    bits n = {.f = x * 1.44269504088896341f + magic};
    float whole = n.f - magic;
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    bits scale = {.u = (n.u + 127u) << 23};
    return p * scale.f;
}

/* A 32-bit hash (Wellons 2018, "lowbias32"): a reproducible random number from a counter. */
INLINE uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

/* The dropout factor of one element (Srivastava et al. 2014): 0 if it is dropped, else `scale` = 1 / (1 − share).
 * `stream` differs per row. */
INLINE float kept(uint32_t stream, int64_t at, uint32_t threshold, float scale) {
    return mixed((uint32_t)at + stream) >= threshold ? scale : 0.0f;
}

#endif
