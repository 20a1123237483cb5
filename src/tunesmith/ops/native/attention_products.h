/* Products of fp32 matrices that fit in a processor's caches, for attention_fp32.h; included by each_width.h. */

/* c (rows, 2 · LANES) = a · b, or += with `add`; rows of b are BLOCK apart. a is (rows, depth) with rows `stride` apart,
 * or, transposed, (depth, rows). */
FOR_WIDTH INLINE void WIDE(block_tile)(const float *a, int64_t stride, const float *b, float *c, int64_t c_stride,
                                       int64_t depth, int add, const int transposed, const int rows) {
    lanes sum[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int n = 0; n < 2; n++) sum[r][n] = (lanes){0};
    for (int64_t k = 0; k < depth; k++) {
        const lanes left = *(const lanes *)(b + BLOCK * k), right = *(const lanes *)(b + BLOCK * k + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const float each = transposed ? a[k * stride + r] : a[r * stride + k];
            sum[r][0] += each * left;
            sum[r][1] += each * right;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int n = 0; n < 2; n++) {
            lanes *to = (lanes *)(c + r * c_stride + LANES * n);
            if (add) sum[r][n] += *to;
            *to = sum[r][n];
        }
}

#define TILE_OF(N) WIDE(block_tile)(a, stride, b, c, c_stride, depth, add, transposed, N)

/* Up to TILE_ROWS rows. */
FOR_WIDTH INLINE void WIDE(block_tile_of)(const float *a, int64_t stride, const float *b, float *c, int64_t c_stride,
                                          int64_t depth, int add, const int transposed, int64_t rows) {
    switch (rows) { UP_TO_TILE_ROWS(TILE_OF) }
}

/* c (rows, columns) = a (rows, depth) · b (depth, columns). b is in panels of BLOCK columns, `panel` numbers apart. A piece
 * of a, a block of queries, stays in the first cache, and b is read once. */
FOR_WIDTH static void WIDE(block_product)(const float *a, int64_t stride, const float *b, int64_t panel, float *c,
                                          int64_t c_stride, int64_t rows, int64_t columns, int64_t depth) {
    for (int64_t k = 0; k < depth; k += PIECE) {
        const int64_t some = depth - k < PIECE ? depth - k : PIECE;
        for (int64_t n = 0; n < columns; n += 2 * LANES)
            for (int64_t r = 0; r < rows; r += TILE_ROWS)
                WIDE(block_tile_of)(a + r * stride + k, stride, b + n / BLOCK * panel + BLOCK * k + n % BLOCK,
                                    c + r * c_stride + n, c_stride, some, k > 0, 0,
                                    rows - r < TILE_ROWS ? rows - r : TILE_ROWS);
    }
}

/* c (rows, columns) += aᵀ · b with a (depth, rows): a block of queries is b, which stays in the first cache. */
FOR_WIDTH static void WIDE(block_product_transposed)(const float *a, int64_t stride, const float *b, int64_t panel, float *c,
                                                     int64_t c_stride, int64_t rows, int64_t columns, int64_t depth) {
    for (int64_t r = 0; r < rows; r += TILE_ROWS)
        for (int64_t n = 0; n < columns; n += 2 * LANES)
            WIDE(block_tile_of)(a + r, stride, b + n / BLOCK * panel + n % BLOCK, c + r * c_stride + n, c_stride, depth, 1, 1,
                                rows - r < TILE_ROWS ? rows - r : TILE_ROWS);
}

#undef TILE_OF
