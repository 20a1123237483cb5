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

/* X (rows × dim) in panels; rows past the end are zero. */
CLONED static void panels_of_rows(const float *x, int64_t stride, int64_t rows, int64_t filled, int64_t dim, float *out) {
    for (int64_t n = 0; n < dim; n += BLOCK)
        for (int64_t i = 0; i < filled; i++)
            for (int64_t j = 0; j < BLOCK; j++) out[n * filled + BLOCK * i + j] = i < rows ? x[i * stride + n + j] : 0.0f;
}

/* Xᵀ (dim × rows) in panels. */
CLONED static void panels_of_columns(const float *x, int64_t stride, int64_t rows, int64_t filled, int64_t dim,
                                     float *out) {
    for (int64_t i = 0; i < filled; i++) {
        float *to = out + i / BLOCK * BLOCK * dim + i % BLOCK;
        for (int64_t n = 0; n < dim; n++) to[BLOCK * n] = i < rows ? x[i * stride + n] : 0.0f;
    }
}

static float *carve_floats(char **room, int64_t count) { return (float *)carve(room, sizeof(float) * count); }

/* As attention_bf16. */
void attention_fp32(const Shape *shape, const Document *documents, int64_t count, RowsFp32 q, RowsFp32 k, RowsFp32 v,
                    float *out, float *log_sums, int threads) {
    const int64_t dim = shape->dim, group = shape->group, heads = shape->kv_heads * group;
    const int64_t most = longest(documents, count), stride = most + PAST;
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(64, (sizeof(float) * (2 * most * dim + QUERY_BLOCK * stride) + 256) / 64 * 64);
        char *room = whole;
        float *keys = carve_floats(&room, most * dim), *values = carve_floats(&room, most * dim);
        float *p = carve_floats(&room, QUERY_BLOCK * stride);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t each = 0; each < count; each++)
            for (int64_t kv = 0; kv < shape->kv_heads; kv++) {
                const Document *document = documents + each;
                const int64_t width = filled(document->k_length);
                panels_of_columns(k.at + document->k * k.token + kv * k.head, k.token, document->k_length, width, dim, keys);
                panels_of_rows(v.at + document->k * v.token + kv * v.head, v.token, document->k_length, width, dim, values);
                for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                    for (int64_t from = 0; from < document->q_length; from += QUERY_BLOCK) {
                        const int64_t left = document->q_length - from, rows = left < QUERY_BLOCK ? left : QUERY_BLOCK;
                        const int64_t token = document->q + from;
                        const Range blocks = blocks_seen(shape, document, from, rows);
                        const int64_t first = blocks.first * BLOCK, end = blocks.end * BLOCK;
                        BY_WIDTH(block_product)(q.at + token * q.token + head * q.head, q.token, keys + first * dim,
                                                BLOCK * dim, p + first, stride, rows, end - first, dim);
                        for (int64_t i = 0; i < rows; i++)
                            log_sums[(token + i) * heads + head] =
                                softmax_row(p + i * stride, first, end, seen_by(shape, document, from + i), shape,
                                            stream_of(shape, token + i, head));
                        BY_WIDTH(block_product)(p + first, stride, values + first * BLOCK, BLOCK * width,
                                                out + (token * heads + head) * dim, heads * dim, rows, dim, end - first);
                    }
            }
        free(whole);
    }
}

/* As attention_backward_bf16. */
void attention_backward_fp32(const Shape *shape, const Document *documents, int64_t count, RowsFp32 q, RowsFp32 k,
                             RowsFp32 v, const float *log_sums, RowsFp32 grad, float *grad_q, float *grad_k,
                             float *grad_v, int threads) {
    const int64_t dim = shape->dim, group = shape->group, kv_heads = shape->kv_heads, heads = kv_heads * group;
    const int64_t most = longest(documents, count), stride = most + PAST;
#pragma omp parallel num_threads(threads)
    {
        char *whole = aligned_alloc(
            64, (sizeof(float) * (3 * most * dim + 2 * QUERY_BLOCK * (dim + stride)) + 512) / 64 * 64);
        char *room = whole;
        float *turned_keys = carve_floats(&room, most * dim), *keys = carve_floats(&room, most * dim);
        float *turned_values = carve_floats(&room, most * dim);
        float *query = carve_floats(&room, QUERY_BLOCK * dim), *up = carve_floats(&room, QUERY_BLOCK * dim);
        float *p = carve_floats(&room, QUERY_BLOCK * stride), *s = carve_floats(&room, QUERY_BLOCK * stride);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t each = 0; each < count; each++)
            for (int64_t kv = 0; kv < kv_heads; kv++) {
                const Document *document = documents + each;
                const int64_t length = document->k_length, width = filled(length);
                const float *own_k = k.at + document->k * k.token + kv * k.head;
                float *own_grad_k = grad_k + (document->k * kv_heads + kv) * dim;
                float *own_grad_v = grad_v + (document->k * kv_heads + kv) * dim;
                panels_of_columns(own_k, k.token, length, width, dim, turned_keys);
                panels_of_rows(own_k, k.token, length, width, dim, keys);
                panels_of_columns(v.at + document->k * v.token + kv * v.head, v.token, length, width, dim, turned_values);
                for (int64_t i = 0; i < length; i++) {
                    memset(own_grad_k + i * kv_heads * dim, 0, sizeof(float) * dim);
                    memset(own_grad_v + i * kv_heads * dim, 0, sizeof(float) * dim);
                }
                for (int64_t head = kv * group; head < (kv + 1) * group; head++)
                    for (int64_t from = 0; from < document->q_length; from += QUERY_BLOCK) {
                        const int64_t left = document->q_length - from, rows = left < QUERY_BLOCK ? left : QUERY_BLOCK;
                        const int64_t token = document->q + from;
                        const Range blocks = blocks_seen(shape, document, from, rows);
                        const int64_t first = blocks.first * BLOCK, end = blocks.end * BLOCK;
                        const int64_t seen = (end < length ? end : length) - first;
                        const float *own_q = q.at + token * q.token + head * q.head;
                        const float *own_grad = grad.at + token * grad.token + head * grad.head;
                        panels_of_rows(own_q, q.token, rows, QUERY_BLOCK, dim, query);
                        panels_of_rows(own_grad, grad.token, rows, QUERY_BLOCK, dim, up);
                        BY_WIDTH(block_product)(own_q, q.token, turned_keys + first * dim, BLOCK * dim, p + first, stride,
                                                rows, end - first, dim);
                        BY_WIDTH(block_product)(own_grad, grad.token, turned_values + first * dim, BLOCK * dim, s + first,
                                                stride, rows, end - first, dim);
                        for (int64_t i = 0; i < rows; i++)
                            softmax_row_backward(p + i * stride, s + i * stride, first, end,
                                                 seen_by(shape, document, from + i), shape,
                                                 stream_of(shape, token + i, head),
                                                 log_sums[(token + i) * heads + head]);
                        BY_WIDTH(block_product)(s + first, stride, keys + first * BLOCK, BLOCK * width,
                                                grad_q + (token * heads + head) * dim, heads * dim, rows, dim, end - first);
                        BY_WIDTH(block_product_transposed)(p + first, stride, up, BLOCK * QUERY_BLOCK,
                                                           own_grad_v + first * kv_heads * dim, kv_heads * dim, seen, dim,
                                                           rows);
                        BY_WIDTH(block_product_transposed)(s + first, stride, query, BLOCK * QUERY_BLOCK,
                                                           own_grad_k + first * kv_heads * dim, kv_heads * dim, seen, dim,
                                                           rows);
                    }
            }
        free(whole);
    }
}
