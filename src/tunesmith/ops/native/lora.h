/* The products of many LoRA adapters, for inference. A row's result is the same to the bit whatever the other rows are. */

/* One adapter's rows: `rows` from row `first`; a: (rank, in), b: (rank, out). */
typedef struct {
    int64_t first, rows;
    const float *a, *b;
    int64_t rank;
    double scale;
} Adapted;

#define ADAPTED_ROWS 4 /* of one adapter, for which its numbers are read once */

#define KERNELS "lora_rows.h"
#include "each_width.h"

/* y (rows, out) += scale · (x aᵀ) b, for each adapter's rows; x (rows, in). */
void adapt_rows(const float *x, const Adapted *adapters, int64_t count, int64_t inputs, int64_t outputs, float *y,
                int threads) {
    int64_t blocks = 0, rank = 0;
    for (int64_t each = 0; each < count; each++) {
        blocks += (adapters[each].rows + ADAPTED_ROWS - 1) / ADAPTED_ROWS;
        rank = adapters[each].rank > rank ? adapters[each].rank : rank;
    }
#pragma omp parallel num_threads(threads)
    {
        float *sums = malloc(sizeof(float) * ADAPTED_ROWS * (rank + 1));
#pragma omp for schedule(static)
        for (int64_t number = 0; number < blocks; number++) {
            int64_t left = number * ADAPTED_ROWS;
            const Adapted *adapter = adapters;
            for (int64_t own; left >= (own = (adapter->rows + ADAPTED_ROWS - 1) / ADAPTED_ROWS * ADAPTED_ROWS); adapter++)
                left -= own;
            const int64_t row = adapter->first + left, rest = adapter->rows - left;
            BY_WIDTH(adapt_block)
            (x + row * inputs, adapter, inputs, outputs, y + row * outputs, sums,
                        rest < ADAPTED_ROWS ? rest : ADAPTED_ROWS);
        }
        free(sums);
    }
}
