/* Attention over paged caches of keys and values, for inference. A query's result
 * is the same to the bit whatever else is in the batch, and however its prompt was cut into pieces: keys are visited from
 * the first to the last, in pages, and a page's masked keys add exactly zero.
 *
 * A layer's cache: keys (pages, kv_heads, dim, PAGE), values (pages, kv_heads, PAGE, value_width), where value_width is
 * value_dim rounded up to a multiple of 16. With IN_INT8 they are codes, each a number divided by the scale of its token
 * and head; else T. Included for fp32 and for bf16, each with both. */

#ifndef PAGE
#define PAGE 16    /* tokens */
#define QUERIES 6  /* rows per tile */
#define UNIT 32    /* queries of a sequence per piece of work */

/* Part of a sequence: `queries` tokens from row `first` of the batch; `position` tokens are before them in the cache;
 * its pages start at `pages` in the table of pages. */
typedef struct {
    int64_t first, queries, position, pages;
} Part;

typedef struct {
    int64_t kv_heads, group, dim, value_dim; /* heads of keys and values; heads of queries to each */
    float scale, softcap;                    /* softcap 0: none */
    int64_t window;                          /* 0: none */
} Paged;

/* A layer's cache; scales: (pages, kv_heads, PAGE), NULL unless IN_INT8. */
typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales;
} PagedCache;

/* Rows of T. */
typedef struct {
    const void *at;
    int64_t token, head;
} PagedRows;

#define LEAST_SCALE 1e-30f /* of numbers that are all zero, so that nothing is divided by zero */

static int64_t value_width(const Paged *shape) { return (shape->value_dim + 15) / 16 * 16; }

/* 1 − 2 / (e^2x + 1) */
INLINE float tanh_of(float x) { return 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f); }

/* One row's scores[from, until) become probabilities, zero outside [first, end). `from`, `until`: multiples of PAGE. */
CLONED static void paged_softmax(float *scores, int64_t from, int64_t until, int64_t first, int64_t end,
                                 const Paged *shape, const float *sink) {
    float most[PAGE], sum[PAGE];
    for (int i = 0; i < PAGE; i++) most[i] = -INFINITY;
    for (int i = 0; i < PAGE; i++) sum[i] = 0.0f;
    for (int64_t at = from; at < until; at += PAGE)
        for (int i = 0; i < PAGE; i++) {
            float score = scores[at + i] * shape->scale;
            if (shape->softcap > 0) score = shape->softcap * tanh_of(score / shape->softcap);
            score = at + i >= first && at + i < end ? score : -INFINITY;
            scores[at + i] = score;
            most[i] = score > most[i] ? score : most[i];
        }
    float highest = sink ? *sink : -INFINITY;
    for (int i = 0; i < PAGE; i++) highest = most[i] > highest ? most[i] : highest;
    for (int64_t at = from; at < until; at += PAGE)
        for (int i = 0; i < PAGE; i++) {
            const float e = at + i >= first && at + i < end ? exp_of(scores[at + i] - highest) : 0.0f;
            scores[at + i] = e;
            sum[i] += e;
        }
    float total = sink ? exp_of(*sink - highest) : 0.0f;
    for (int i = 0; i < PAGE; i++) total += sum[i];
    const float share = 1.0f / total;
    for (int64_t at = from; at < until; at += PAGE)
        for (int i = 0; i < PAGE; i++) scores[at + i] *= share;
}
#endif

#define ROW_AT(rows, row, own_head) ((const T *)(rows).at + (row) * (rows).token + (own_head) * (rows).head)
#define PAGE_OF(page, head) ((page) * shape->kv_heads + (head))
#define KEYS_AT(cache, page, head) ((CACHED *)(cache)->keys + PAGE_OF(page, head) * shape->dim * PAGE)
#define VALUES_AT(cache, page, head) ((CACHED *)(cache)->values + PAGE_OF(page, head) * PAGE * value_width(shape))
#ifdef IN_INT8
#define CACHED int8_t
#define SCALES_AT(scales, page, head) ((scales) + PAGE_OF(page, head) * PAGE)
#else
#define CACHED T
#define SCALES_AT(scales, page, head) NULL
#endif

#define KERNELS "page_products.h"
#include "each_width.h"

CLONED static void NAME(gather_query)(const T *q, int64_t dim, float *out) {
    for (int64_t d = 0; d < dim; d++) out[d] = GET(q[d]);
}

CLONED static void NAME(store_sums)(const float *sums, int64_t dim, T *out) {
    for (int64_t d = 0; d < dim; d++) out[d] = PUT(sums[d]);
}

/* out[d · apart] = x[d]; in int8 its code, with the scale at `place`. */
CLONED static void NAME(store_numbers)(const T *x, int64_t dim, CACHED *out, int64_t apart, float *scales, int64_t place) {
#ifdef IN_INT8
    float most = 0.0f;
    for (int64_t d = 0; d < dim; d++) {
        const float size = fabsf(GET(x[d]));
        most = size > most ? size : most;
    }
    const float scale = most / 127.0f > LEAST_SCALE ? most / 127.0f : LEAST_SCALE, codes = 1.0f / scale;
    for (int64_t d = 0; d < dim; d++) out[d * apart] = (int8_t)rintf(GET(x[d]) * codes);
    scales[place] = scale;
#else
    for (int64_t d = 0; d < dim; d++) out[d * apart] = x[d];
#endif
}

/* Put the batch's keys and values at their places in the cache. */
static void NAME(store_in_cache)(const Paged *shape, const Part *parts, int64_t count, const int64_t *pages,
                                 PagedRows k, PagedRows v, const PagedCache *cache, int threads) {
    const int64_t width = value_width(shape);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t each = 0; each < count; each++)
        for (int64_t query = 0; query < parts[each].queries; query++) {
            const int64_t at = parts[each].position + query, token = parts[each].first + query;
            const int64_t page = pages[parts[each].pages + at / PAGE];
            for (int64_t head = 0; head < shape->kv_heads; head++) {
                const int64_t place = PAGE_OF(page, head) * PAGE + at % PAGE;
                NAME(store_numbers)(ROW_AT(k, token, head), shape->dim, KEYS_AT(cache, page, head) + at % PAGE, PAGE,
                                    cache->key_scales, place);
                NAME(store_numbers)(ROW_AT(v, token, head), shape->value_dim,
                                    VALUES_AT(cache, page, head) + at % PAGE * width, 1, cache->value_scales, place);
            }
        }
}

/* Up to UNIT queries of one sequence from `from`, and the heads of one head of keys. */
static void NAME(attend_unit)(const Paged *shape, const Part *part, const int64_t *pages, int64_t from, int64_t head,
                              PagedRows q, const PagedCache *cache, const float *sinks, T *out, float *room,
                              int64_t longest) {
    const int64_t dim = shape->dim, group = shape->group, width = value_width(shape), heads = shape->kv_heads * group;
    const int64_t some = part->queries - from < UNIT ? part->queries - from : UNIT;
    float *scores = room, *queries = scores + QUERIES * longest, *sums = queries + QUERIES * dim;
    for (int64_t at = 0; at < some * group; at += QUERIES) { /* a row is a query and one of its heads */
        const int64_t rows = some * group - at < QUERIES ? some * group - at : QUERIES;
        int64_t token[QUERIES], own[QUERIES], first[QUERIES], end[QUERIES], start = INT64_MAX, until = 0;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t query = from + (at + r) / group;
            token[r] = part->first + query;
            own[r] = head * group + (at + r) % group;
            end[r] = part->position + query + 1;
            first[r] = shape->window && end[r] > shape->window ? end[r] - shape->window : 0;
            start = first[r] < start ? first[r] : start;
            until = end[r] > until ? end[r] : until;
            NAME(gather_query)(ROW_AT(q, token[r], own[r]), dim, queries + r * dim);
        }
        start = start / PAGE * PAGE;
        until = (until + PAGE - 1) / PAGE * PAGE;
        const int64_t *page = pages + part->pages;
        for (int64_t key = start; key < until; key += PAGE)
            BY_WIDTH(NAME(scores_of_page))
            (queries, KEYS_AT(cache, page[key / PAGE], head),
                                 SCALES_AT(cache->key_scales, page[key / PAGE], head), dim, scores + key - start, longest, rows);
        for (int64_t r = 0; r < rows; r++)
            paged_softmax(scores + r * longest, 0, until - start, first[r] - start, end[r] - start, shape,
                          sinks ? sinks + own[r] : NULL);
        memset(sums, 0, sizeof(float) * rows * width);
        for (int64_t key = start; key < until; key += PAGE)
            BY_WIDTH(NAME(values_of_page))
            (scores + key - start, longest, VALUES_AT(cache, page[key / PAGE], head),
                                 SCALES_AT(cache->value_scales, page[key / PAGE], head), width, sums, rows);
        for (int64_t r = 0; r < rows; r++)
            NAME(store_sums)(sums + r * width, shape->value_dim, out + (token[r] * heads + own[r]) * shape->value_dim);
    }
}

/* q: (tokens, heads, dim), k: (tokens, kv_heads, dim), v: (tokens, kv_heads, value_dim), with strides; pages: the pages
 * of each part's sequence, one after another; sinks: (heads,) or NULL; out: (tokens, heads, value_dim). */
void NAME(paged_attention)(const Paged *shape, const Part *parts, int64_t count, const int64_t *pages,
                           PagedRows q, PagedRows k, PagedRows v, const PagedCache *cache,
                           const float *sinks, T *out, int threads) {
    int64_t units = 0, longest = 0;
    for (int64_t each = 0; each < count; each++) {
        units += (parts[each].queries + UNIT - 1) / UNIT * shape->kv_heads;
        const int64_t length = parts[each].position + parts[each].queries;
        longest = length > longest ? length : longest;
    }
    longest = (longest + PAGE - 1) / PAGE * PAGE + PAGE; /* a window may start within a page */
    NAME(store_in_cache)(shape, parts, count, pages, k, v, cache, threads);
#pragma omp parallel num_threads(threads)
    {
        float *room = aligned_alloc(64, (sizeof(float) * QUERIES * (longest + shape->dim + value_width(shape)) + 63) / 64 * 64);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; unit++) {
            int64_t left = unit;
            const Part *part = parts;
            for (;; part++) {
                const int64_t own = (part->queries + UNIT - 1) / UNIT * shape->kv_heads;
                if (left < own) break;
                left -= own;
            }
            NAME(attend_unit)(shape, part, pages, left / shape->kv_heads * UNIT, left % shape->kv_heads, q, cache, sinks,
                              out, room, longest);
        }
        free(room);
    }
}

#undef ROW_AT
#undef PAGE_OF
#undef KEYS_AT
#undef VALUES_AT
#undef CACHED
#undef SCALES_AT
