/* The products of one adapter with a few rows, for lora.h; included by each_width.h. */

/* At the same time, ranks of an adapter: for one row, and for several. Their sums fill at most 16 registers of AVX-512, and
 * eight of others. */
#define RANKS (LANES == 16 ? 8 : 4)
#define RANKS_OF_SEVERAL (LANES == 16 ? 2 : 1)

/* sums (rows, stride) = x (rows, inputs) · aᵀ for `ranks` ranks, with 16 partial sums for each. */
FOR_WIDTH INLINE void WIDE(rank_sums)(const float *x, const float *a, int64_t inputs, float *sums, int64_t stride,
                                      const int rows, const int ranks) {
    lanes part[RANKS][ADAPTED_ROWS][PARTS];
#pragma GCC unroll 8
    for (int r = 0; r < ranks; r++)
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
            for (int n = 0; n < PARTS; n++) part[r][row][n] = (lanes){0};
    int64_t k = 0;
    for (; k + 16 <= inputs; k += 16)
#pragma GCC unroll 8
        for (int r = 0; r < ranks; r++)
#pragma GCC unroll 4
            for (int n = 0; n < PARTS; n++) {
                const lanes own = *(const lanes *)(a + r * inputs + k + LANES * n);
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++)
                    part[r][row][n] += own * *(const lanes *)(x + row * inputs + k + LANES * n);
            }
#pragma GCC unroll 8
    for (int r = 0; r < ranks; r++)
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            float sum = 0.0f;
#pragma GCC unroll 4
            for (int n = 0; n < PARTS; n++)
                for (int i = 0; i < LANES; i++) sum += part[r][row][n][i];
            for (int64_t rest = k; rest < inputs; rest++) sum += a[r * inputs + rest] * x[row * inputs + rest];
            sums[row * stride + r] = sum;
        }
}

/* `registers` · LANES numbers of y (rows, outputs) += sums (rows, rank) · b (rank, outputs), rank by rank. */
FOR_WIDTH INLINE void WIDE(add_ranks)(const float *sums, const float *b, int64_t rank, int64_t outputs, float *y,
                                      const int rows, const int registers) {
    lanes sum[ADAPTED_ROWS][2];
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int n = 0; n < registers; n++) sum[row][n] = *(const lanes *)(y + row * outputs + LANES * n);
    for (int64_t r = 0; r < rank; r++)
#pragma GCC unroll 2
        for (int n = 0; n < registers; n++) {
            const lanes own = *(const lanes *)(b + r * outputs + LANES * n);
#pragma GCC unroll 4
            for (int row = 0; row < rows; row++) sum[row][n] += sums[row * rank + r] * own;
        }
#pragma GCC unroll 4
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int n = 0; n < registers; n++) *(lanes *)(y + row * outputs + LANES * n) = sum[row][n];
}

/* y (rows, outputs) += scale · (x (rows, inputs) · aᵀ) · b; sums: room for rows · rank numbers. */
FOR_WIDTH INLINE void WIDE(adapt_few)(const float *x, const Adapted *adapter, int64_t inputs, int64_t outputs, float *y,
                                      float *sums, const int rows) {
    const int64_t rank = adapter->rank;
    const int together = rows == 1 ? RANKS : RANKS_OF_SEVERAL;
    int64_t r = 0, n = 0;
    for (; r + together <= rank; r += together)
        WIDE(rank_sums)(x, adapter->a + r * inputs, inputs, sums + r, rank, rows, together);
    for (; r < rank; r++) WIDE(rank_sums)(x, adapter->a + r * inputs, inputs, sums + r, rank, rows, 1);
    for (int64_t each = 0; each < rows * rank; each++) sums[each] *= (float)adapter->scale;
    for (; n + 2 * LANES <= outputs; n += 2 * LANES) WIDE(add_ranks)(sums, adapter->b + n, rank, outputs, y + n, rows, 2);
    for (; n + LANES <= outputs; n += LANES) WIDE(add_ranks)(sums, adapter->b + n, rank, outputs, y + n, rows, 1);
    for (; n < outputs; n++)
        for (int row = 0; row < rows; row++)
            for (r = 0; r < rank; r++) y[row * outputs + n] += sums[row * rank + r] * adapter->b[r * outputs + n];
}

FOR_WIDTH static void WIDE(adapt_block)(const float *x, const Adapted *adapter, int64_t inputs, int64_t outputs, float *y,
                                        float *sums, int64_t rows) {
    if (rows == ADAPTED_ROWS)
        WIDE(adapt_few)(x, adapter, inputs, outputs, y, sums, ADAPTED_ROWS);
    else
        for (int64_t row = 0; row < rows; row++)
            WIDE(adapt_few)(x + row * inputs, adapter, inputs, outputs, y + row * outputs, sums, 1);
}

#undef RANKS
#undef RANKS_OF_SEVERAL
