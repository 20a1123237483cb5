/* Products with a page of the cache, for paged.h; included by each_width.h. */

/* LANES of the cache's numbers, without their scales. */
FOR_WIDTH INLINE lanes WIDE(NAME(numbers_at))(const CACHED *numbers) {
#ifdef IN_INT8
    typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    typedef int16_t halves __attribute__((vector_size(2 * LANES)));
    typedef int32_t words __attribute__((vector_size(4 * LANES)));
    const halves wider = __builtin_convertvector(*(const bytes *)numbers, halves); /* GCC 12 has no direct conversion */
    return __builtin_convertvector(__builtin_convertvector(wider, words), lanes);
#else
    float wide[LANES];
    for (int i = 0; i < LANES; i++) wide[i] = GET(numbers[i]);
    return *(const lanes *)wide;
#endif
}

/* scores (rows, PAGE) of up to QUERIES rows against one page of keys (dim, PAGE) with scales (PAGE,). */
FOR_WIDTH INLINE void WIDE(NAME(page_scores))(const float *q, const CACHED *keys, const float *scales, int64_t dim,
                                              float *scores, int64_t stride, const int rows) {
    lanes sum[QUERIES][PARTS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) sum[r][n] = (lanes){0};
    for (int64_t d = 0; d < dim; d++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) {
            const lanes key = WIDE(NAME(numbers_at))(keys + d * PAGE + LANES * n);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) sum[r][n] += q[r * dim + d] * key;
        }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) {
#ifdef IN_INT8
            sum[r][n] *= *(const lanes *)(scales + LANES * n);
#endif
            *(lanes *)(scores + r * stride + LANES * n) = sum[r][n];
        }
}

/* sums (rows, 16) += p (rows, PAGE) · values (PAGE, 16) with scales (PAGE,). */
FOR_WIDTH INLINE void WIDE(NAME(page_values))(const float *p, int64_t stride, const CACHED *values, const float *scales,
                                              int64_t width, float *sums, int64_t sums_stride, const int rows) {
    lanes sum[QUERIES][PARTS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) sum[r][n] = *(const lanes *)(sums + r * sums_stride + LANES * n);
    for (int64_t i = 0; i < PAGE; i++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) {
            lanes value = WIDE(NAME(numbers_at))(values + i * width + LANES * n);
#ifdef IN_INT8
            value *= scales[i];
#endif
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) sum[r][n] += p[r * stride + i] * value;
        }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int n = 0; n < PARTS; n++) *(lanes *)(sums + r * sums_stride + LANES * n) = sum[r][n];
}

FOR_WIDTH static void WIDE(NAME(scores_of_page))(const float *q, const CACHED *keys, const float *scales, int64_t dim,
                                                 float *scores, int64_t stride, int64_t rows) {
#define SCORES(N) WIDE(NAME(page_scores))(q, keys, scales, dim, scores, stride, N)
    switch (rows) { ROWS_TO_6(SCORES) }
#undef SCORES
}

FOR_WIDTH static void WIDE(NAME(values_of_page))(const float *p, int64_t stride, const CACHED *values, const float *scales,
                                                 int64_t width, float *sums, int64_t rows) {
#define VALUES(N) WIDE(NAME(page_values))(p, stride, values + n, scales, width, sums + n, width, N)
    for (int64_t n = 0; n < width; n += 16) switch (rows) { ROWS_TO_6(VALUES) }
#undef VALUES
}

