/* A whole transformer block of the Llama kind for inference, in fp32, from the kernels above: one call where PyTorch's
 * modules make twenty. For one row, calling costs as much as computing. */

enum { LINEAR_Q, LINEAR_K, LINEAR_V, LINEAR_O, LINEAR_GATE, LINEAR_UP, LINEAR_DOWN, LINEARS };

typedef struct {
    Packed weights[LINEARS];
    const float *biases[LINEARS]; /* (out,) or NULL */
    const float *norms[2];        /* before the attention and before the feed-forward: (hidden,) */
    float epsilons[2];
    Paged attention;
    const float *sinks; /* (heads,) or NULL */
    int64_t gelu;
} Block;

/* What changes with each batch. adapters: those of each linear layer, or NULL. */
typedef struct {
    const float *cos, *sin; /* (rows, dim) */
    const Part *parts;
    int64_t count;
    const int64_t *pages;
    PagedCache cache;
    const Adapted *adapters[LINEARS];
    int64_t adapter_counts[LINEARS];
} Step;

static void block_linears(const Block *block, const Step *step, int first, int count, const float *x, float **ys,
                          int64_t rows, int threads) {
    const Packed *weights[3];
    for (int each = 0; each < count; each++) weights[each] = &block->weights[first + each];
    const int64_t inputs = weights[0]->inputs;
    packed_linears(weights, block->biases + first, ys, count, x, inputs, rows, threads);
    for (int each = 0; each < count; each++)
        if (step->adapters[first + each])
            adapt_rows(x, step->adapters[first + each], step->adapter_counts[first + each], inputs,
                       weights[each]->outputs, ys[each], threads);
}

CLONED static void add_to(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* hidden (rows, hidden) is overwritten; room: as many numbers as modules/served_block.py counts. */
void block(const Block *own, const Step *step, float *hidden, float *room, int64_t rows, int threads) {
    const Paged *shape = &own->attention;
    const int64_t width = own->weights[LINEAR_Q].inputs, inner = own->weights[LINEAR_GATE].outputs;
    const int64_t heads = shape->kv_heads * shape->group, q_width = heads * shape->dim;
    const int64_t kv_width = shape->kv_heads * shape->dim, v_width = shape->kv_heads * shape->value_dim;
    float *x = room, *scales = x + rows * width, *out = scales + rows, *q = out + rows * width, *k = q + rows * q_width;
    float *v = k + rows * kv_width, *turned = v + rows * v_width, *attended = turned + rows * (q_width + kv_width);
    float *turned_k = turned + rows * q_width;
    rms_norm_fp32(hidden, own->norms[0], x, scales, rows, width, own->epsilons[0], threads);
    block_linears(own, step, LINEAR_Q, 3, x, (float *[]){q, k, v}, rows, threads);
    rotary_fp32(q, step->cos, step->sin, turned, rows, heads, shape->dim, q_width, shape->dim, 0, threads);
    rotary_fp32(k, step->cos, step->sin, turned_k, rows, shape->kv_heads, shape->dim, kv_width, shape->dim, 0, threads);
    (step->cache.key_scales ? paged_attention_int8_fp32 : paged_attention_fp32)(
        shape, step->parts, step->count, step->pages, (PagedRows){turned, q_width, shape->dim},
        (PagedRows){turned_k, kv_width, shape->dim}, (PagedRows){v, v_width, shape->value_dim}, &step->cache, own->sinks,
        attended, threads);
    block_linears(own, step, LINEAR_O, 1, attended, &out, rows, threads);
    add_to(hidden, out, rows * width);
    rms_norm_fp32(hidden, own->norms[1], x, scales, rows, width, own->epsilons[1], threads);
    float *gate = q, *up = gate + rows * inner; /* the attention's room is free again */
    block_linears(own, step, LINEAR_GATE, 2, x, (float *[]){gate, up}, rows, threads);
    float *product = up + rows * inner;
    gated_fp32(gate, up, product, rows * inner, own->gelu, threads);
    block_linears(own, step, LINEAR_DOWN, 1, product, &out, rows, threads);
    add_to(hidden, out, rows * width);
}
