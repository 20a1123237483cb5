/* Inner products of many int8 vectors with one vector, for search. int8 · int16 is summed in int32, which vectorizes to
 * multiply-add instructions of every processor; the caller scales the int16 vector so that no sum overflows. */

#define VECTORS 4096 /* per piece of work */

CLONED static void inner_products_piece(const int8_t *codes, const float *scales, const int16_t *question, int64_t count,
                                        int64_t size, float *out) {
    for (int64_t n = 0; n < count; n++) {
        const int8_t *code = codes + n * size;
        int32_t sum = 0;
        for (int64_t i = 0; i < size; i++) {
            int16_t wide = code[i];
            sum += (int32_t)wide * (int32_t)question[i];
        }
        out[n] = sum * scales[n];
    }
}

/* codes: (count, size); scales: (count,); question: (size,); out: (count,). */
void inner_products_int8(const int8_t *codes, const float *scales, const int16_t *question, int64_t count, int64_t size,
                         float *out, int threads) {
    _Pragma("omp parallel for schedule(static) num_threads(threads)") for (int64_t at = 0; at < count; at += VECTORS)
        inner_products_piece(codes + at * size, scales + at, question, count - at < VECTORS ? count - at : VECTORS, size,
                             out + at);
}
