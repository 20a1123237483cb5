/* Attention over packed documents in bf16; attention_fp32.h has it in fp32. The backward pass needs only each row's
 * log-sum-exp (Dao 2023, alg. 1 and 2, but with full rows of scores in memory, since documents are short).
 *
 * Matrix products run tile by tile: C (32·m × 32·n, fp32) += A (rows, bf16) · B. B has the layout of AMX's and
 * AVX-512's bf16 dot product (Intel 64 manual, TDPBF16PS): tiles of 16 pairs of rows by 16 columns, a pair's two numbers
 * side by side. Without either instruction the same tiles are computed in fp32. */

#include "attention_shares.h"

#define TILE 512 /* numbers in a tile of B: 32 rows, 16 columns */

/* (token, head, dim) with strides in elements; dim is contiguous. */
typedef struct {
    const bf16 *at;
    int64_t token, head;
} Rows;

static int amx_allowed = 1;

/* For tests: with 0, products use the code for processors without AMX. */
void allow_amx(int allowed) { amx_allowed = allowed; }

CLONED static void product_plain(const bf16 *a, int64_t a_stride, const bf16 *b, int64_t b_stride, float *c,
                                 int64_t c_stride, int64_t steps, int add) {
    for (int64_t i = 0; i < 32; i++) {
        float sum[32];
        for (int n = 0; n < 32; n++) sum[n] = add ? c[i * c_stride + n] : 0.0f;
        for (int64_t step = 0; step < steps; step++)
            for (int64_t pair = 0; pair < 16; pair++) {
                float low = from_bf16(a[i * a_stride + 32 * step + 2 * pair]);
                float high = from_bf16(a[i * a_stride + 32 * step + 2 * pair + 1]);
                const bf16 *row = b + step * b_stride + 32 * pair;
                for (int n = 0; n < 16; n++) {
                    sum[n] += low * from_bf16(row[2 * n]) + high * from_bf16(row[2 * n + 1]);
                    sum[n + 16] += low * from_bf16(row[TILE + 2 * n]) + high * from_bf16(row[TILE + 2 * n + 1]);
                }
            }
        for (int n = 0; n < 32; n++) c[i * c_stride + n] = sum[n];
    }
}

#if HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct __attribute__((packed)) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

#define WITH_AMX __attribute__((target("amx-tile,amx-bf16")))

static int has_amx(void) {
    static int known = -1;
    if (known < 0)
        known = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return known && amx_allowed;
}

/* Other libraries (oneDNN) keep a configuration in the same registers: it is restored at the end. */
WITH_AMX static void tiles_begin(TileConfig *before) {
    static const TileConfig own = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_storeconfig(before);
    __asm__ volatile("" ::"r"(before) : "memory"); /* the compiler does not know that the instruction writes here */
    _tile_loadconfig(&own);
}

WITH_AMX static void tiles_end(const TileConfig *before) {
    __asm__ volatile("" ::"r"(before) : "memory");
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

WITH_AMX static void product_amx(const bf16 *a, int64_t a_stride, const bf16 *b, int64_t b_stride, float *c,
                                 int64_t c_stride, int64_t steps, int add) {
    if (add) {
        _tile_loadd(0, c, 4 * c_stride);
        _tile_loadd(1, c + 16, 4 * c_stride);
        _tile_loadd(2, c + 16 * c_stride, 4 * c_stride);
        _tile_loadd(3, c + 16 * c_stride + 16, 4 * c_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(4, a + 32 * step, 2 * a_stride);
        _tile_loadd(5, a + 16 * a_stride + 32 * step, 2 * a_stride);
        _tile_loadd(6, b + step * b_stride, 64);
        _tile_loadd(7, b + step * b_stride + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 4 * c_stride);
    _tile_stored(1, c + 16, 4 * c_stride);
    _tile_stored(2, c + 16 * c_stride, 4 * c_stride);
    _tile_stored(3, c + 16 * c_stride + 16, 4 * c_stride);
}

static int has_dot_product(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

/* By AVX-512's dot product of pairs (VDPBF16PS): eight rows of C are in registers. */
__attribute__((target("avx512f,avx512bf16"))) static void product_dot(const bf16 *a, int64_t a_stride, const bf16 *b,
                                                                      int64_t b_stride, float *c, int64_t c_stride,
                                                                      int64_t steps, int add) {
    for (int64_t from = 0; from < 32; from += 8) {
        __m512 sum[8][2];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 2
            for (int n = 0; n < 2; n++)
                sum[i][n] = add ? _mm512_loadu_ps(c + (from + i) * c_stride + 16 * n) : _mm512_setzero_ps();
        for (int64_t step = 0; step < steps; step++)
            for (int64_t pair = 0; pair < 16; pair++) {
                const bf16 *row = b + step * b_stride + 32 * pair;
                const __m512bh left = (__m512bh)_mm512_loadu_si512(row), right = (__m512bh)_mm512_loadu_si512(row + TILE);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    int both;
                    memcpy(&both, a + (from + i) * a_stride + 32 * step + 2 * pair, 4);
                    const __m512bh each = (__m512bh)_mm512_set1_epi32(both);
                    sum[i][0] = _mm512_dpbf16_ps(sum[i][0], each, left);
                    sum[i][1] = _mm512_dpbf16_ps(sum[i][1], each, right);
                }
            }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
#pragma GCC unroll 2
            for (int n = 0; n < 2; n++) _mm512_storeu_ps(c + (from + i) * c_stride + 16 * n, sum[i][n]);
    }
}
#else
typedef int TileConfig;
static int has_amx(void) { return 0; }
static void tiles_begin(TileConfig *before) { (void)before; }
static void tiles_end(const TileConfig *before) { (void)before; }
static int has_dot_product(void) { return 0; }
#define product_amx product_plain
#define product_dot product_plain
#endif

/* C (32 × 32) (+)= A (32 × 32·steps) · B. */
typedef void (*TileProduct)(const bf16 *a, int64_t a_stride, const bf16 *b, int64_t b_stride, float *c, int64_t c_stride,
                            int64_t steps, int add);

static TileProduct fastest_product(void) {
    return has_amx() ? product_amx : has_dot_product() ? product_dot : product_plain;
}

/* C (32 × 32·columns) (+)= A (32 × 32·steps) · B; a step of B is `b_stride` numbers, two tiles per 32 columns. */
static void product(TileProduct by, const bf16 *a, int64_t a_stride, const bf16 *b, int64_t b_stride, float *c,
                    int64_t c_stride, int64_t columns, int64_t steps, int add) {
    for (int64_t n = 0; n < columns; n++)
        by(a, a_stride, b + 2 * n * TILE, b_stride, c + 32 * n, c_stride, steps, add);
}

/* Rows `some` of X (rows × dim) in tiles, as B: a pair is two rows. Rows past the end are zero. */
CLONED static void tiles_of(const bf16 *x, int64_t stride, int64_t rows, Range some, int64_t dim, bf16 *out) {
    for (int64_t at = some.first; at < some.end; at += 2) {
        const bf16 *low = x + at * stride, *high = low + stride;
        bf16 *to = out + at / 32 * 32 * dim + at % 32 / 2 * 32;
        int64_t there = rows - at;
        for (int64_t n = 0; n < dim; n += 16)
            for (int64_t i = 0; i < 16; i++) {
                to[n / 16 * TILE + 2 * i] = there > 0 ? low[n + i] : 0;
                to[n / 16 * TILE + 2 * i + 1] = there > 1 ? high[n + i] : 0;
            }
    }
}

/* Columns `some` of Xᵀ (dim × rows) in tiles, as B: a pair is two dims. A step of 32 dims is 32 · width numbers. */
CLONED static void tiles_of_transpose(const bf16 *x, int64_t stride, int64_t rows, Range some, int64_t width, int64_t dim,
                                      bf16 *out) {
    for (int64_t n = some.first; n < some.end; n++) {
        bf16 *to = out + n / 16 * TILE + n % 16 * 2;
        for (int64_t i = 0; i < dim; i += 2) {
            uint32_t pair = 0;
            if (n < rows) memcpy(&pair, x + n * stride + i, 4);
            memcpy(to + i / 32 * 32 * width + i % 32 * 16, &pair, 4);
        }
    }
}

/* 32 rows of X, zero past the end, and their transpose (dim × 32) unless `turned` is NULL. */
CLONED static void block_of(const bf16 *x, int64_t stride, int64_t rows, int64_t dim, bf16 *out, bf16 *turned) {
    for (int64_t i = 0; i < BLOCK; i++)
        for (int64_t n = 0; n < dim; n++) out[i * dim + n] = i < rows ? x[i * stride + n] : 0;
    if (turned)
        for (int64_t n = 0; n < dim; n++)
            for (int64_t i = 0; i < BLOCK; i++) turned[n * BLOCK + i] = out[i * dim + n];
}

/* Multiplies one query's row by its dropout factors. */
CLONED static void drop(float *x, Range seen, const Shape *shape, uint32_t stream) {
    const uint32_t threshold = (uint32_t)(shape->dropped * 4294967296.0);
    const float scale = 1.0f / (1.0f - shape->dropped);
#pragma omp simd
    for (int64_t i = seen.first; i < seen.end; i++) x[i] *= kept(stream, i, threshold, scale);
}

INLINE uint32_t stream_of(const Shape *shape, int64_t token, int64_t head) {
    return mixed((uint32_t)token ^ mixed((uint32_t)head ^ mixed((uint32_t)shape->seed)));
}

/* Overwrites one query's scores with its probabilities p[from..until), and returns the log-sum-exp of the scores. */
CLONED static float softmax_row(float *p, int64_t from, int64_t until, Range seen, const Shape *shape, uint32_t stream) {
    const float scale = shape->scale;
    float most = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : most)
    for (int64_t i = seen.first; i < seen.end; i++) most = p[i] > most ? p[i] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = seen.first; i < seen.end; i++) {
        p[i] = exp_of((p[i] - most) * scale);
        sum += p[i];
    }
    float share = 1.0f / sum;
    if (shape->dropped > 0) drop(p, seen, shape, stream);
    for (int64_t i = from; i < seen.first; i++) p[i] = 0.0f;
#pragma omp simd
    for (int64_t i = seen.first; i < seen.end; i++) p[i] *= share;
    for (int64_t i = seen.end; i < until; i++) p[i] = 0.0f;
    return most * scale + logf(sum);
}

CLONED static void round_row(const float *x, int64_t from, int64_t until, bf16 *out) {
#pragma omp simd
    for (int64_t i = from; i < until; i++) out[i] = to_bf16(x[i]);
}

CLONED static void store_rows(const float *x, int64_t rows, int64_t dim, bf16 *out, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < dim; n++) out[i * stride + n] = to_bf16(x[i * dim + n]);
}

static bf16 *carve(char **room, int64_t bytes) {
    char *found = *room;
    *room += (bytes + 63) / 64 * 64;
    return (bf16 *)found;
}

/* q: (tokens, heads, dim), k, v: (tokens, kv_heads, dim), with strides; out: (tokens, heads, dim), contiguous;
 * log_sums: (tokens, heads). */
void attention_bf16(const Shape *shape, const Document *documents, int64_t count, Rows q, Rows k, Rows v, bf16 *out,
                    float *log_sums, int threads) {
    const int64_t dim = shape->dim, heads = shape->kv_heads * shape->group;
    const int64_t most = longest(documents, count);
    const TileProduct by = fastest_product();
    const int amx = has_amx();
    Shares shares = shares_of(shape, documents, count, BLOCK, 0, threads);
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(64, (4 * most * dim + BLOCK * (6 * dim + 6 * most) + 1024) / 64 * 64);
        char *room = whole;
        bf16 *keys = carve(&room, 2 * most * dim), *values = carve(&room, 2 * most * dim);
        bf16 *block = carve(&room, 2 * BLOCK * dim), *p = carve(&room, 2 * BLOCK * most);
        float *scores = (float *)carve(&room, 4 * BLOCK * most), *sums = (float *)carve(&room, 4 * BLOCK * dim);
        TileConfig before;
        if (amx) tiles_begin(&before);
        for (const Share *share; (share = take_share(&shares));) {
            const Document *document = share->document;
            const int64_t length = document->k_length, width = filled(length);
            tiles_of_transpose(k.at + document->k * k.token + share->kv * k.head, k.token, length, share->keys, width, dim,
                               keys);
            tiles_of(v.at + document->k * v.token + share->kv * v.head, v.token, length, share->keys, dim, values);
            for (int64_t number = share->blocks.first; number < share->blocks.end; number++) {
                const Queries own = queries_of(shape, document, share->kv, number, BLOCK);
                const int64_t first = own.keys.first, end = own.keys.end, columns = (end - first) / BLOCK;
                block_of(q.at + own.token * q.token + own.head * q.head, q.token, own.rows, dim, block, NULL);
                product(by, block, dim, keys + first * BLOCK, BLOCK * width, scores + first, most, columns, dim / 32, 0);
                for (int64_t i = 0; i < own.rows; i++) {
                    log_sums[(own.token + i) * heads + own.head] =
                        softmax_row(scores + i * most, first, end, seen_by(shape, document, own.from + i), shape,
                                    stream_of(shape, own.token + i, own.head));
                    round_row(scores + i * most, first, end, p + i * most);
                }
                for (int64_t i = own.rows; i < BLOCK; i++) memset(p + i * most + first, 0, 2 * (end - first));
                product(by, p + first, most, values + first * dim, BLOCK * dim, sums, dim, dim / 32, columns, 0);
                store_rows(sums, own.rows, dim, out + (own.token * heads + own.head) * dim, heads * dim);
            }
        }
        if (amx) tiles_end(&before);
        free(whole);
    }
    free_shares(shares);
}

/* For one query: recomputes its probabilities, and overwrites dP with the scores' gradient
 * P ∘ (dP − Σ P ∘ dP) · scale. */
CLONED static void softmax_row_backward(float *scores, float *grad, int64_t from, int64_t until, Range seen,
                                        const Shape *shape, uint32_t stream, float log_sum) {
    const float scale = shape->scale;
    float along = 0.0f;
    if (shape->dropped > 0) drop(grad, seen, shape, stream);
#pragma omp simd reduction(+ : along)
    for (int64_t i = seen.first; i < seen.end; i++) {
        float p = exp_of(scores[i] * scale - log_sum);
        scores[i] = p;
        along += p * grad[i];
    }
#pragma omp simd
    for (int64_t i = seen.first; i < seen.end; i++) grad[i] = scores[i] * (grad[i] - along) * scale;
    if (shape->dropped > 0) drop(scores, seen, shape, stream); /* as they multiplied the values */
    for (int64_t i = from; i < seen.first; i++) scores[i] = grad[i] = 0.0f;
    for (int64_t i = seen.end; i < until; i++) scores[i] = grad[i] = 0.0f;
}

/* Two rows of length until − from, as one row of pairs in the tiles of B. */
CLONED static void pair_of_rows(const float *low, const float *high, int64_t from, int64_t until, bf16 *tiles) {
    for (int64_t n = from; n < until; n += 16)
        for (int64_t i = 0; i < 16; i++) {
            tiles[n / 16 * TILE + 2 * i] = to_bf16(low[n + i]);
            tiles[n / 16 * TILE + 2 * i + 1] = to_bf16(high[n + i]);
        }
}

/* Transposes X (dim × stride) from fp32 into rows of bf16. */
CLONED static void store_turned(const float *x, int64_t stride, int64_t rows, int64_t dim, bf16 *out,
                                int64_t out_stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < dim; n++) out[i * out_stride + n] = to_bf16(x[n * stride + i]);
}

/* grad: gradient of out, (tokens, heads, dim), with strides. grad_q (tokens, heads, dim), grad_k and grad_v
 * (tokens, kv_heads, dim) are contiguous. */
void attention_backward_bf16(const Shape *shape, const Document *documents, int64_t count, Rows q, Rows k, Rows v,
                             const float *log_sums, Rows grad, bf16 *grad_q, bf16 *grad_k, bf16 *grad_v, int threads) {
    const int64_t dim = shape->dim, heads = shape->kv_heads * shape->group;
    const int64_t most = longest(documents, count);
    const TileProduct by = fastest_product();
    const int amx = has_amx();
    Shares shares = shares_of(shape, documents, count, BLOCK, 2 * dim, threads);
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(64, (14 * most * dim + BLOCK * (14 * most + 12 * dim) + 2048) / 64 * 64);
        char *room = whole;
        bf16 *turned_keys = carve(&room, 2 * most * dim), *keys = carve(&room, 2 * most * dim);
        bf16 *turned_values = carve(&room, 2 * most * dim);
        float *sum_k = (float *)carve(&room, 4 * most * dim), *sum_v = (float *)carve(&room, 4 * most * dim);
        bf16 *query = carve(&room, 2 * BLOCK * dim), *turned_query = carve(&room, 2 * BLOCK * dim);
        bf16 *up = carve(&room, 2 * BLOCK * dim), *turned_up = carve(&room, 2 * BLOCK * dim);
        float *p = (float *)carve(&room, 4 * BLOCK * most), *s = (float *)carve(&room, 4 * BLOCK * most);
        bf16 *p_tiles = carve(&room, 2 * BLOCK * most), *s_tiles = carve(&room, 2 * BLOCK * most);
        bf16 *s_rows = carve(&room, 2 * BLOCK * most);
        float *sums = (float *)carve(&room, 4 * BLOCK * dim);
        TileConfig before;
        if (amx) tiles_begin(&before);
        for (const Share *share; (share = take_share(&shares));) {
            const Document *document = share->document;
            const int64_t length = document->k_length, width = filled(length);
            const bf16 *own_k = k.at + document->k * k.token + share->kv * k.head;
            const bf16 *own_v = v.at + document->k * v.token + share->kv * v.head;
            tiles_of_transpose(own_k, k.token, length, share->keys, width, dim, turned_keys);
            tiles_of(own_k, k.token, length, share->keys, dim, keys);
            tiles_of_transpose(own_v, v.token, length, share->keys, width, dim, turned_values);
            const Range cleared = share->parts > 1 ? share->keys : (Range){0, width};
            clear_block(sum_k + cleared.first, width, dim, cleared.end - cleared.first);
            clear_block(sum_v + cleared.first, width, dim, cleared.end - cleared.first);
            for (int64_t number = share->blocks.first; number < share->blocks.end; number++) {
                const Queries own = queries_of(shape, document, share->kv, number, BLOCK);
                const int64_t first = own.keys.first, end = own.keys.end, columns = (end - first) / BLOCK;
                block_of(q.at + own.token * q.token + own.head * q.head, q.token, own.rows, dim, query, turned_query);
                block_of(grad.at + own.token * grad.token + own.head * grad.head, grad.token, own.rows, dim, up,
                         turned_up);
                product(by, query, dim, turned_keys + first * BLOCK, BLOCK * width, p + first, most, columns, dim / 32, 0);
                product(by, up, dim, turned_values + first * BLOCK, BLOCK * width, s + first, most, columns, dim / 32, 0);
                for (int64_t i = 0; i < own.rows; i++)
                    softmax_row_backward(p + i * most, s + i * most, first, end, seen_by(shape, document, own.from + i),
                                         shape, stream_of(shape, own.token + i, own.head),
                                         log_sums[(own.token + i) * heads + own.head]);
                for (int64_t i = own.rows; i < BLOCK; i++) {
                    memset(p + i * most + first, 0, 4 * (end - first));
                    memset(s + i * most + first, 0, 4 * (end - first));
                }
                for (int64_t i = 0; i < BLOCK; i += 2) {
                    pair_of_rows(p + i * most, p + (i + 1) * most, first, end, p_tiles + 16 * i);
                    pair_of_rows(s + i * most, s + (i + 1) * most, first, end, s_tiles + 16 * i);
                    round_row(s + i * most, first, end, s_rows + i * most);
                    round_row(s + (i + 1) * most, first, end, s_rows + (i + 1) * most);
                }
                product(by, s_rows + first, most, keys + first * dim, BLOCK * dim, sums, dim, dim / 32, columns, 0);
                store_rows(sums, own.rows, dim, grad_q + (own.token * heads + own.head) * dim, heads * dim);
                for (int64_t n = 0; n < dim; n += 32) {
                    product(by, turned_up + n * BLOCK, BLOCK, p_tiles + first * BLOCK, 0, sum_v + n * width + first, width,
                            columns, 1, 1);
                    product(by, turned_query + n * BLOCK, BLOCK, s_tiles + first * BLOCK, 0, sum_k + n * width + first,
                            width, columns, 1, 1);
                }
            }
            const int64_t place = (document->k * shape->kv_heads + share->kv) * dim;
            const float *all_k = sum_k, *all_v = sum_v;
            if (share->parts > 1) {
                float *parts_k = share->sums, *parts_v = share->sums + width * dim;
                const int64_t first = share->keys.first, seen = share->keys.end - first;
                wait_for_turn(share);
                add_block(sum_k + first, width, dim, seen, parts_k + first, width);
                add_block(sum_v + first, width, dim, seen, parts_v + first, width);
                end_turn(share);
                all_k = parts_k, all_v = parts_v;
            }
            if (share->part == share->parts - 1) { /* the last to add */
                store_turned(all_k, width, length, dim, grad_k + place, shape->kv_heads * dim);
                store_turned(all_v, width, length, dim, grad_v + place, shape->kv_heads * dim);
            }
        }
        if (amx) tiles_end(&before);
        free(whole);
    }
    free_shares(shares);
}
