/* Dequantizes 4-bit and 8-bit weights. 4 bits: two numbers per byte, the first in the high half, one scale per block of
 * 64. A block's 16 possible values are computed first, then looked up. */

#define QUANTIZED_BLOCK 64

CLONED static void block_plain_bf16(const uint8_t *codes, const bf16 *values, bf16 *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = values[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4];
}

CLONED static void block_plain_fp32(const uint8_t *codes, const float *values, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = values[i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4];
}

#if HAS_AMX
#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

/* 64 numbers: 32 bytes of codes, and 16 values of 16 bits in a register. */
WITH_AVX512 static void block_avx512_bf16(const uint8_t *codes, const bf16 *values, bf16 *out) {
    const __m512i table = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)values));
    const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
    const __m512i first = _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
    const __m512i second = _mm512_permutexvar_epi16(_mm512_and_si512(bytes, _mm512_set1_epi16(15)), table);
    const __m512i low = _mm512_unpacklo_epi16(first, second), high = _mm512_unpackhi_epi16(first, second);
    /* unpack works within 128-bit lanes: put the lanes in order */
    const __m512i order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), rest = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, order, high));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi64(low, rest, high));
}

/* 64 numbers: 16 values of 32 bits in a register. */
WITH_AVX512 static void block_avx512_fp32(const uint8_t *codes, const float *values, float *out) {
    const __m512 table = _mm512_loadu_ps(values);
    for (int i = 0; i < 4; i++) {
        const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + 8 * i)));
        const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
        /* put each byte's two codes side by side: spread 8 elements to 16 */
        const __m512i places = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        __m512i spread = _mm512_permutexvar_epi32(places, pairs);
        spread = _mm512_mask_srli_epi32(spread, 0xaaaa, spread, 16);
        const __m512i codes16 = _mm512_and_si512(spread, _mm512_set1_epi32(15));
        _mm512_storeu_ps(out + 16 * i, _mm512_permutexvar_ps(codes16, table));
    }
}
#else
#define block_avx512_bf16(codes, values, out) block_plain_bf16(codes, values, out, QUANTIZED_BLOCK)
#define block_avx512_fp32(codes, values, out) block_plain_fp32(codes, values, out, QUANTIZED_BLOCK)
#endif

/* codes: (⌈count / 2⌉,); scales: (⌈count / 64⌉,); points: (16,); out: (count,). */
#define FOUR_BITS(T, NAME, PUT)                                                                                        \
    void four_bits_##NAME(const uint8_t *codes, const float *scales, const float *points, T *out, int64_t count,      \
                          int threads) {                                                                               \
        const int wide = has_avx512();                                                                                 \
        _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int64_t at = 0; at < count;            \
                                                                               at += QUANTIZED_BLOCK) {               \
            T values[16];                                                                                              \
            for (int i = 0; i < 16; i++) values[i] = PUT(points[i] * scales[at / QUANTIZED_BLOCK]);                    \
            if (wide && count - at >= QUANTIZED_BLOCK)                                                                 \
                block_avx512_##NAME(codes + at / 2, values, out + at);                                                 \
            else                                                                                                       \
                block_plain_##NAME(codes + at / 2, values, out + at,                                                   \
                                   count - at < QUANTIZED_BLOCK ? count - at : QUANTIZED_BLOCK);                       \
        }                                                                                                              \
    }

FOUR_BITS(bf16, bf16, to_bf16)
FOUR_BITS(float, fp32, )

/* codes: (rows, columns); scales: (rows,): code · scale / 127. */
#define EIGHT_BITS(T, NAME, PUT)                                                                                       \
    CLONED static void eight_bits_row_##NAME(const int8_t *codes, float scale, T *out, int64_t columns) {             \
        for (int64_t i = 0; i < columns; i++) out[i] = PUT(codes[i] * scale);                                          \
    }                                                                                                                  \
    void eight_bits_##NAME(const int8_t *codes, const float *scales, T *out, int64_t rows, int64_t columns,           \
                           int threads) {                                                                              \
        _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int64_t row = 0; row < rows; row++)    \
            eight_bits_row_##NAME(codes + row * columns, scales[row] / 127.0f, out + row * columns, columns);          \
    }

EIGHT_BITS(bf16, bf16, to_bf16)
EIGHT_BITS(float, fp32, )
