/* Products of a piece of a panel, for packed.h; included by each_width.h. */

/* LANES of a panel's numbers, from number `at`, in fp32 or bf16. */
FOR_WIDTH INLINE lanes WIDE(weights_at)(const void *w, int64_t at, const int is_bf16) {
    typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    typedef uint32_t words __attribute__((vector_size(4 * LANES)));
    if (is_bf16) return (lanes)(__builtin_convertvector(*(const halves *)((const bf16 *)w + at), words) << 16);
    return *(const lanes *)((const float *)w + at);
}

/* sums (rows, registers · LANES) += x (rows, depth) · w (depth, registers · LANES); rows of w and of sums are PANEL apart. */
FOR_WIDTH INLINE void WIDE(tile)(const float *x, int64_t stride, const void *w, int64_t depth, float *sums,
                                 const int is_bf16, const int rows, const int registers) {
    lanes sum[12][PANEL / LANES];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int n = 0; n < registers; n++) sum[r][n] = (lanes){0};
    for (int64_t k = 0; k < depth; k++) {
        const char *ahead = (const char *)w + PANEL * k * (is_bf16 ? 2 : 4) + AHEAD;
        __builtin_prefetch(ahead);
        if (!is_bf16) __builtin_prefetch(ahead + 64);
        lanes weights[PANEL / LANES];
#pragma GCC unroll 8
        for (int n = 0; n < registers; n++) weights[n] = WIDE(weights_at)(w, PANEL * k + LANES * n, is_bf16);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int n = 0; n < registers; n++) sum[r][n] += x[r * stride + k] * weights[n];
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int n = 0; n < registers; n++) *(lanes *)(sums + PANEL * r + LANES * n) += sum[r][n];
}

#define TILE_OF(N) WIDE(tile)(x, stride, w, depth, sums, is_bf16, N, 2)

/* Two registers of the columns of up to TILE_ROWS rows. */
FOR_WIDTH INLINE void WIDE(tile_of)(const float *x, int64_t stride, const void *w, int64_t depth, float *sums, int64_t rows,
                                    const int is_bf16) {
    switch (rows) { UP_TO_TILE_ROWS(TILE_OF) }
}

/* sums (rows, 32) += x (rows, depth) · w (depth, 32), in tiles of about the same number of rows. */
FOR_WIDTH INLINE void WIDE(product)(const float *x, int64_t stride, const void *w, int64_t depth, float *sums, int64_t rows,
                                    const int is_bf16) {
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, height = (rows + tiles - 1) / tiles;
    if (rows == 1) {
        WIDE(tile)(x, stride, w, depth, sums, is_bf16, 1, PANEL / LANES);
        return;
    }
    for (int64_t r = 0; r < rows; r += height) {
        const int64_t some = rows - r < height ? rows - r : height;
        for (int n = 0; n < PANEL; n += 2 * LANES)
            WIDE(tile_of)(x + r * stride, stride, (const char *)w + n * (is_bf16 ? 2 : 4), depth, sums + PANEL * r + n,
                          some, is_bf16);
    }
}

FOR_WIDTH static void WIDE(product_fp32)(const float *x, int64_t stride, const void *w, int64_t depth, float *sums,
                                         int64_t rows) {
    WIDE(product)(x, stride, w, depth, sums, rows, 0);
}

FOR_WIDTH static void WIDE(product_bf16)(const float *x, int64_t stride, const void *w, int64_t depth, float *sums,
                                         int64_t rows) {
    WIDE(product)(x, stride, w, depth, sums, rows, 1);
}

FOR_WIDTH static void WIDE(expand_bf16)(const bf16 *codes, int64_t depth, float *out) {
    for (int64_t k = 0; k < depth; k++) {
        __builtin_prefetch((const char *)(codes + PANEL * k) + AHEAD);
        for (int n = 0; n < PANEL; n += LANES)
            *(lanes *)(out + PANEL * k + n) = WIDE(weights_at)(codes, PANEL * k + n, 1);
    }
}

#undef TILE_OF
