/* Attention over packed documents in fp32, as attention.h computes it in bf16. Products run on a block of queries at a time,
 * with sums in registers. Their right-hand sides are copied into panels of BLOCK columns, (columns / BLOCK, depth, BLOCK), so
 * that a tile reads them in order. */

#define PIECE 64 /* depth of a product whose operands stay in the first cache */
#define QUERY_BLOCK 48 /* a multiple of the rows of a tile, for all widths */
#define PAST 16 /* numbers between two rows of scores, so that rows do not share a place in the cache */

#define KERNELS "attention_products.h"
#include "each_width.h"

/* (token, head, dim) with strides in elements; dim is contiguous. */
typedef struct {
    const float *at;
    int64_t token, head;
} RowsFp32;

/* 4 × 4 numbers, transposed in registers: one by one it takes an eighth of attention's time. */
INLINE void transpose_4(const float *x, int64_t stride, float *out, int64_t out_stride) {
#ifdef __clang__
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
    typedef int32_t places __attribute__((vector_size(16)));
#define MIX(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif
    const lanes_4 a = *(const lanes_4 *)x, b = *(const lanes_4 *)(x + stride);
    const lanes_4 c = *(const lanes_4 *)(x + 2 * stride), d = *(const lanes_4 *)(x + 3 * stride);
    const lanes_4 ab = MIX(a, b, 0, 4, 1, 5), cd = MIX(c, d, 0, 4, 1, 5);
    const lanes_4 ab_2 = MIX(a, b, 2, 6, 3, 7), cd_2 = MIX(c, d, 2, 6, 3, 7);
    *(lanes_4 *)out = MIX(ab, cd, 0, 1, 4, 5);
    *(lanes_4 *)(out + out_stride) = MIX(ab, cd, 2, 3, 6, 7);
    *(lanes_4 *)(out + 2 * out_stride) = MIX(ab_2, cd_2, 0, 1, 4, 5);
    *(lanes_4 *)(out + 3 * out_stride) = MIX(ab_2, cd_2, 2, 3, 6, 7);
#undef MIX
}

/* Rows `some` of X (rows × dim) in panels, whose depth is `width`; rows past the end are zero. */
CLONED static void panels_of_rows(const float *x, int64_t stride, int64_t rows, Range some, int64_t width, int64_t dim,
                                  float *out) {
    for (int64_t n = 0; n < dim; n += BLOCK)
        for (int64_t i = some.first; i < some.end; i++)
            for (int64_t j = 0; j < BLOCK; j++) out[n * width + BLOCK * i + j] = i < rows ? x[i * stride + n + j] : 0.0f;
}

/* Columns `some` of Xᵀ (dim × rows) in panels. */
CLONED static void panels_of_columns(const float *x, int64_t stride, int64_t rows, Range some, int64_t dim, float *out) {
    int64_t i = some.first;
    for (; i + 4 <= (some.end < rows ? some.end : rows); i += 4)
        for (int64_t n = 0; n < dim; n += 4)
            transpose_4(x + i * stride + n, stride, out + i / BLOCK * BLOCK * dim + i % BLOCK + BLOCK * n, BLOCK);
    for (; i < some.end; i++)
        for (int64_t n = 0; n < dim; n++)
            out[i / BLOCK * BLOCK * dim + i % BLOCK + BLOCK * n] = i < rows ? x[i * stride + n] : 0.0f;
}

static float *carve_floats(char **room, int64_t count) { return (float *)carve(room, sizeof(float) * count); }

/* As attention_bf16. */
void attention_fp32(const Shape *shape, const Document *documents, int64_t count, RowsFp32 q, RowsFp32 k, RowsFp32 v,
                    float *out, float *log_sums, int threads) {
    const int64_t dim = shape->dim, heads = shape->kv_heads * shape->group;
    const int64_t most = longest(documents, count), stride = most + PAST;
    Shares shares = shares_of(shape, documents, count, QUERY_BLOCK, 0, threads);
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(64, (sizeof(float) * (2 * most * dim + QUERY_BLOCK * stride) + 256) / 64 * 64);
        char *room = whole;
        float *keys = carve_floats(&room, most * dim), *values = carve_floats(&room, most * dim);
        float *p = carve_floats(&room, QUERY_BLOCK * stride);
        for (const Share *share; (share = take_share(&shares));) {
            const Document *document = share->document;
            const int64_t length = document->k_length, width = filled(length);
            panels_of_columns(k.at + document->k * k.token + share->kv * k.head, k.token, length, share->keys, dim, keys);
            panels_of_rows(v.at + document->k * v.token + share->kv * v.head, v.token, length, share->keys, width, dim,
                           values);
            for (int64_t number = share->blocks.first; number < share->blocks.end; number++) {
                const Queries own = queries_of(shape, document, share->kv, number, QUERY_BLOCK);
                const int64_t first = own.keys.first, end = own.keys.end;
                BY_WIDTH(block_product)(q.at + own.token * q.token + own.head * q.head, q.token, keys + first * dim,
                                        BLOCK * dim, p + first, stride, own.rows, end - first, dim);
                for (int64_t i = 0; i < own.rows; i++)
                    log_sums[(own.token + i) * heads + own.head] =
                        softmax_row(p + i * stride, first, end, seen_by(shape, document, own.from + i), shape,
                                    stream_of(shape, own.token + i, own.head));
                BY_WIDTH(block_product)(p + first, stride, values + first * BLOCK, BLOCK * width,
                                        out + (own.token * heads + own.head) * dim, heads * dim, own.rows, dim,
                                        end - first);
            }
        }
        free(whole);
    }
    free_shares(shares);
}

/* As attention_backward_bf16. */
void attention_backward_fp32(const Shape *shape, const Document *documents, int64_t count, RowsFp32 q, RowsFp32 k,
                             RowsFp32 v, const float *log_sums, RowsFp32 grad, float *grad_q, float *grad_k,
                             float *grad_v, int threads) {
    const int64_t dim = shape->dim, kv_heads = shape->kv_heads, heads = kv_heads * shape->group;
    const int64_t most = longest(documents, count), stride = most + PAST;
    Shares shares = shares_of(shape, documents, count, QUERY_BLOCK, 0, threads);
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(
            64, (sizeof(float) * (5 * most * dim + 2 * QUERY_BLOCK * (dim + stride)) + 640) / 64 * 64);
        char *room = whole;
        float *turned_keys = carve_floats(&room, most * dim), *keys = carve_floats(&room, most * dim);
        float *turned_values = carve_floats(&room, most * dim);
        float *query = carve_floats(&room, QUERY_BLOCK * dim), *up = carve_floats(&room, QUERY_BLOCK * dim);
        float *p = carve_floats(&room, QUERY_BLOCK * stride), *s = carve_floats(&room, QUERY_BLOCK * stride);
        float *part_k = carve_floats(&room, most * dim), *part_v = carve_floats(&room, most * dim);
        for (const Share *share; (share = take_share(&shares));) {
            const Document *document = share->document;
            const int64_t length = document->k_length, width = filled(length);
            const float *own_k = k.at + document->k * k.token + share->kv * k.head;
            const float *own_v = v.at + document->k * v.token + share->kv * v.head;
            float *own_grad_k = grad_k + (document->k * kv_heads + share->kv) * dim;
            float *own_grad_v = grad_v + (document->k * kv_heads + share->kv) * dim;
            float *sum_k = share->parts > 1 ? part_k : own_grad_k, *sum_v = share->parts > 1 ? part_v : own_grad_v;
            const int64_t next = share->parts > 1 ? dim : kv_heads * dim; /* from a key's sums to the next one's */
            const Range all = {0, QUERY_BLOCK};
            panels_of_columns(own_k, k.token, length, share->keys, dim, turned_keys);
            panels_of_rows(own_k, k.token, length, share->keys, width, dim, keys);
            panels_of_columns(own_v, v.token, length, share->keys, dim, turned_values);
            const Range cleared = share->parts > 1 ? share->keys : (Range){0, length};
            clear_block(sum_k + cleared.first * next, next, cleared.end - cleared.first, dim);
            clear_block(sum_v + cleared.first * next, next, cleared.end - cleared.first, dim);
            for (int64_t number = share->blocks.first; number < share->blocks.end; number++) {
                const Queries own = queries_of(shape, document, share->kv, number, QUERY_BLOCK);
                const int64_t first = own.keys.first, end = own.keys.end, seen = (end < length ? end : length) - first;
                const float *own_q = q.at + own.token * q.token + own.head * q.head;
                const float *own_grad = grad.at + own.token * grad.token + own.head * grad.head;
                panels_of_rows(own_q, q.token, own.rows, all, QUERY_BLOCK, dim, query);
                panels_of_rows(own_grad, grad.token, own.rows, all, QUERY_BLOCK, dim, up);
                BY_WIDTH(block_product)(own_q, q.token, turned_keys + first * dim, BLOCK * dim, p + first, stride,
                                        own.rows, end - first, dim);
                BY_WIDTH(block_product)(own_grad, grad.token, turned_values + first * dim, BLOCK * dim, s + first, stride,
                                        own.rows, end - first, dim);
                for (int64_t i = 0; i < own.rows; i++)
                    softmax_row_backward(p + i * stride, s + i * stride, first, end,
                                         seen_by(shape, document, own.from + i), shape,
                                         stream_of(shape, own.token + i, own.head),
                                         log_sums[(own.token + i) * heads + own.head]);
                BY_WIDTH(block_product)(s + first, stride, keys + first * BLOCK, BLOCK * width,
                                        grad_q + (own.token * heads + own.head) * dim, heads * dim, own.rows, dim,
                                        end - first);
                BY_WIDTH(block_product_transposed)(p + first, stride, up, BLOCK * QUERY_BLOCK, sum_v + first * next, next,
                                                   seen, dim, own.rows);
                BY_WIDTH(block_product_transposed)(s + first, stride, query, BLOCK * QUERY_BLOCK, sum_k + first * next,
                                                   next, seen, dim, own.rows);
            }
            if (share->parts > 1) {
                const int64_t row = kv_heads * dim, first = share->keys.first;
                const int64_t seen = (share->keys.end < length ? share->keys.end : length) - first;
                wait_for_turn(share);
                if (share->part == 0) {
                    clear_block(own_grad_k, row, length, dim);
                    clear_block(own_grad_v, row, length, dim);
                }
                add_block(sum_k + first * dim, dim, seen, dim, own_grad_k + first * row, row);
                add_block(sum_v + first * dim, dim, seen, dim, own_grad_v + first * row, row);
                end_turn(share);
            }
        }
        free(whole);
    }
    free_shares(shares);
}
