/* Linear layers for inference. A row's result is the same to the bit whatever the other rows are and however many: each
 * output adds up its products in the order of the inputs, in pieces of DEPTH. Libraries choose another order for one row
 * than for many.
 *
 * Weights are stored in panels of 32 outputs: (panels, in, 32), zero past the last output. A piece of a panel that is not
 * in fp32 is expanded to fp32 first, in the same numbers as its dequantization, and used for up to ROWS rows. */

#define PANEL 32
#define DEPTH 128 /* a multiple of QUANTIZED_BLOCK */
#define ROWS 96
#define AHEAD 3072 /* bytes that are fetched before they are read; the processor's own fetching stops at each 4 KiB */
#define FEW 24 /* rows; for so few, bf16 is expanded in registers, once per tile, and not in memory */

/* How weights are stored; the numbers are those of ops/packed_linear.py. */
enum { STORED_FP32, STORED_BF16, STORED_INT8, STORED_FOUR_BITS };

typedef struct {
    const void *codes; /* fp32, bf16 or int8: (panels, in, 32); four bits: (panels, in, 16), output n + 16 in the high half */
    const float *scales; /* int8: (panels, 32), of which 1 / 127 is a code; four bits: (panels, in / 64, 32); else NULL */
    const float *points; /* four bits: (16,); else NULL */
    int64_t stored, inputs, outputs;
} Packed;

#define KERNELS "packed_tiles.h"
#include "each_width.h"

/* sums (rows, 32) += x (rows, depth) · w (depth, 32) */
static void piece_product(const float *x, int64_t stride, const void *w, int64_t depth, float *sums, int64_t rows,
                          int is_bf16) {
    (is_bf16 ? BY_WIDTH(product_bf16) : BY_WIDTH(product_fp32))(x, stride, w, depth, sums, rows);
}

CLONED static void expand_int8(const int8_t *codes, const float *scales, int64_t depth, float *out) {
    float shares[PANEL];
    for (int n = 0; n < PANEL; n++) shares[n] = scales[n] / 127.0f;
    for (int64_t k = 0; k < depth; k++) {
        __builtin_prefetch(codes + PANEL * k + AHEAD);
        for (int n = 0; n < PANEL; n++) out[PANEL * k + n] = codes[PANEL * k + n] * shares[n];
    }
}

CLONED static void expand_four_bits_plain(const uint8_t *codes, const float *scales, const float *points, int64_t depth,
                                          float *out) {
    for (int64_t k = 0; k < depth; k++) {
        const float *scale = scales + k / QUANTIZED_BLOCK * PANEL;
        for (int n = 0; n < 16; n++) {
            out[PANEL * k + n] = points[codes[16 * k + n] & 15] * scale[n];
            out[PANEL * k + n + 16] = points[codes[16 * k + n] >> 4] * scale[n + 16];
        }
    }
}

#if HAS_AMX
WITH_AVX512 static void expand_four_bits_avx512(const uint8_t *codes, const float *scales, const float *points,
                                                int64_t depth, float *out) {
    const __m512 table = _mm512_loadu_ps(points);
    for (int64_t k = 0; k < depth; k++) {
        const float *scale = scales + k / QUANTIZED_BLOCK * PANEL;
        __builtin_prefetch(codes + 16 * k + AHEAD);
        const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * k)));
        const __m512 low = _mm512_permutexvar_ps(both, table), high = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
        _mm512_storeu_ps(out + PANEL * k, _mm512_mul_ps(low, _mm512_loadu_ps(scale)));
        _mm512_storeu_ps(out + PANEL * k + 16, _mm512_mul_ps(high, _mm512_loadu_ps(scale + 16)));
    }
}

/* Eight of the sixteen points per register: bit 3 of a code chooses the register. */
__attribute__((target("avx2"))) INLINE __m256 eight_points(__m256i codes, __m256 low, __m256 high) {
    const __m256 chosen = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), chosen);
}

__attribute__((target("avx2"))) static void expand_four_bits_avx2(const uint8_t *codes, const float *scales,
                                                                  const float *points, int64_t depth, float *out) {
    const __m256 low = _mm256_loadu_ps(points), high = _mm256_loadu_ps(points + 8);
    for (int64_t k = 0; k < depth; k++) {
        const float *scale = scales + k / QUANTIZED_BLOCK * PANEL;
        __builtin_prefetch(codes + 16 * k + AHEAD);
        for (int n = 0; n < 16; n += 8) {
            const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + 16 * k + n)));
            const __m256 first = eight_points(both, low, high), second = eight_points(_mm256_srli_epi32(both, 4), low, high);
            _mm256_storeu_ps(out + PANEL * k + n, _mm256_mul_ps(first, _mm256_loadu_ps(scale + n)));
            _mm256_storeu_ps(out + PANEL * k + n + 16, _mm256_mul_ps(second, _mm256_loadu_ps(scale + n + 16)));
        }
    }
}

static void expand_four_bits(const uint8_t *codes, const float *scales, const float *points, int64_t depth, float *out) {
    if (has_avx512())
        expand_four_bits_avx512(codes, scales, points, depth, out);
    else if (has_avx2())
        expand_four_bits_avx2(codes, scales, points, depth, out);
    else
        expand_four_bits_plain(codes, scales, points, depth, out);
}
#else
#define expand_four_bits expand_four_bits_plain
#endif

/* The piece of a panel from input `from`, in fp32: in place, or expanded into `room` (depth × 32). */
static const float *piece_of(const Packed *weight, int64_t panel, int64_t from, int64_t depth, float *room) {
    const int64_t at = panel * weight->inputs + from;
    switch (weight->stored) {
        case STORED_BF16:
            BY_WIDTH(expand_bf16)((const bf16 *)weight->codes + PANEL * at, depth, room);
            return room;
        case STORED_INT8:
            expand_int8((const int8_t *)weight->codes + PANEL * at, weight->scales + PANEL * panel, depth, room);
            return room;
        case STORED_FOUR_BITS:
            expand_four_bits((const uint8_t *)weight->codes + 16 * at, weight->scales + at / QUANTIZED_BLOCK * PANEL,
                             weight->points, depth, room);
            return room;
        default:
            return (const float *)weight->codes + PANEL * at;
    }
}

/* One panel of y (rows, out) = x (rows, in) Wᵀ + b. */
static void panel_product(const Packed *weight, const float *x, int64_t stride, const float *bias, float *y, int64_t rows,
                          int64_t panel) {
    float room[DEPTH * PANEL] __attribute__((aligned(64))), sums[ROWS * PANEL] __attribute__((aligned(64)));
    const int64_t inputs = weight->inputs, outputs = weight->outputs;
    const int64_t first = panel * PANEL, width = outputs - first < PANEL ? outputs - first : PANEL;
    for (int64_t from = 0; from < rows; from += ROWS) {
        const int64_t some = rows - from < ROWS ? rows - from : ROWS;
        for (int64_t r = 0; r < some; r++)
            for (int n = 0; n < PANEL; n++) sums[PANEL * r + n] = bias && n < width ? bias[first + n] : 0.0f;
        for (int64_t k = 0; k < inputs; k += DEPTH) {
            const int64_t depth = inputs - k < DEPTH ? inputs - k : DEPTH;
            const float *part = x + from * stride + k;
            const int as_stored = some <= FEW && weight->stored == STORED_BF16;
            const void *piece = as_stored ? (const bf16 *)weight->codes + PANEL * (panel * inputs + k)
                                          : (const void *)piece_of(weight, panel, k, depth, room);
            piece_product(part, stride, piece, depth, sums, some, as_stored);
        }
        for (int64_t r = 0; r < some; r++)
            memcpy(y + (from + r) * outputs + first, sums + PANEL * r, sizeof(float) * width);
    }
}

static int64_t panels_of(const Packed *weight) { return (weight->outputs + PANEL - 1) / PANEL; }

/* Up to three products of the same x, (rows, in) with rows `stride` apart; bias: (out,) or NULL; y: (rows, out). */
static void packed_linears(const Packed *const *weights, const float *const *biases, float *const *ys, int count,
                           const float *x, int64_t stride, int64_t rows, int threads) {
    int64_t panels = 0;
    for (int each = 0; each < count; each++) panels += panels_of(weights[each]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t number = 0; number < panels; number++) {
        int64_t panel = number;
        int each = 0;
        while (panel >= panels_of(weights[each])) panel -= panels_of(weights[each++]);
        panel_product(weights[each], x, stride, biases[each], ys[each], rows, panel);
    }
}

void packed_linear(const Packed *weight, const float *x, int64_t stride, const float *bias, float *y, int64_t rows,
                   int threads) {
    packed_linears(&weight, &bias, &y, 1, x, stride, rows, threads);
}
