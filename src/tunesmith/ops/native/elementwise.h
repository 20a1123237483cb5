/* Included once for bf16 and once for fp32: T is the type in memory, GET and PUT convert from and to it, NAME adds the
 * suffix. */

/* One row of logits: returns the loss of its label; if wants_grad, overwrites the row with the gradient
 * scale · (softmax − onehot). `room` is scratch space for one row in fp32. */
CLONED static float NAME(cross_entropy_row)(T *z, int64_t label, int64_t vocab, float scale, int wants_grad,
                                            float *room) {
    float most = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < vocab; i++) {
        float v = GET(z[i]) * scale;
        most = v > most ? v : most;
    }
    float own = GET(z[label]) * scale;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < vocab; i++) {
        float e = exp_of(GET(z[i]) * scale - most);
        room[i] = e;
        sum += e;
    }
    if (wants_grad) {
        float share = scale / sum;
        float at_label = room[label] * share - scale;
#pragma omp simd
        for (int64_t i = 0; i < vocab; i++) z[i] = PUT(room[i] * share);
        z[label] = PUT(at_label);
    }
    return logf(sum) + most - own;
}

void NAME(cross_entropy)(T *logits, const int64_t *labels, float *losses, int64_t rows, int64_t vocab, float scale,
                         int wants_grad, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *room = malloc(sizeof(float) * vocab);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            losses[row] = NAME(cross_entropy_row)(logits + row * vocab, labels[row], vocab, scale, wants_grad, room);
        free(room);
    }
}

CLONED static float NAME(rms_norm_row)(const T *x, const T *w, T *y, int64_t hidden, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < hidden; i++) sum += GET(x[i]) * GET(x[i]);
    float scale = 1.0f / sqrtf(sum / hidden + eps);
#pragma omp simd
    for (int64_t i = 0; i < hidden; i++) y[i] = PUT(GET(x[i]) * scale * GET(w[i]));
    return scale;
}

void NAME(rms_norm)(const T *x, const T *w, T *y, float *scales, int64_t rows, int64_t hidden, float eps,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        scales[row] = NAME(rms_norm_row)(x + row * hidden, w, y + row * hidden, hidden, eps);
}

/* ∂x = scale · (g·w − n · mean(g·w·n)) with n = x · scale; ∂w += g · n unless grad_w is NULL. */
CLONED static void NAME(rms_norm_row_backward)(const T *x, const T *w, float scale, const T *g, T *grad_x,
                                               float *grad_w, int64_t hidden) {
    float along = 0.0f;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < hidden; i++) along += GET(g[i]) * GET(w[i]) * GET(x[i]);
    along *= scale * scale / hidden;
#pragma omp simd
    for (int64_t i = 0; i < hidden; i++) grad_x[i] = PUT(scale * (GET(g[i]) * GET(w[i]) - GET(x[i]) * along));
    if (grad_w)
#pragma omp simd
        for (int64_t i = 0; i < hidden; i++) grad_w[i] += GET(g[i]) * GET(x[i]) * scale;
}

/* grad_w: NULL, or (threads, hidden) zeros, one sum per thread. */
void NAME(rms_norm_backward)(const T *x, const T *w, const float *scales, const T *g, T *grad_x, float *grad_w,
                             int64_t rows, int64_t hidden, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        NAME(rms_norm_row_backward)(x + row * hidden, w, scales[row], g + row * hidden, grad_x + row * hidden,
                                    grad_w ? grad_w + thread_number() * hidden : NULL, hidden);
}

/* act(gate) · up, where act is SiLU, or GELU by tanh (Hendrycks & Gimpel 2016, eq. 2), which is g · σ(2 u). */
CLONED static void NAME(gated_piece)(const T *restrict gate, const T *restrict up, T *restrict out, int64_t n, int gelu) {
    if (gelu)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float g = GET(gate[i]);
            float u = 1.5957691216f * (g + 0.044715f * g * g * g);
            out[i] = PUT(g / (1.0f + exp_of(-u)) * GET(up[i]));
        }
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float g = GET(gate[i]);
            out[i] = PUT(g / (1.0f + exp_of(-g)) * GET(up[i]));
        }
}

/* grad_gate may alias gate, and grad_up may alias up: each element is read before it is written. */
CLONED static void NAME(gated_piece_backward)(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up,
                                              int64_t n, int gelu) {
    if (gelu)
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float g = GET(gate[i]), d = GET(grad[i]), u = GET(up[i]);
            float s = 1.0f / (1.0f + exp_of(-1.5957691216f * (g + 0.044715f * g * g * g)));
            float slope = s + g * s * (1.0f - s) * 1.5957691216f * (1.0f + 0.134145f * g * g);
            grad_gate[i] = PUT(d * u * slope);
            grad_up[i] = PUT(d * g * s);
        }
    else
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            float g = GET(gate[i]), d = GET(grad[i]), u = GET(up[i]);
            float s = 1.0f / (1.0f + exp_of(-g));
            grad_gate[i] = PUT(d * u * s * (1.0f + g * (1.0f - s)));
            grad_up[i] = PUT(d * g * s);
        }
}

#define PIECE 4096
void NAME(gated)(const T *gate, const T *up, T *out, int64_t n, int gelu, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < n; at += PIECE)
        NAME(gated_piece)(gate + at, up + at, out + at, n - at < PIECE ? n - at : PIECE, gelu);
}

void NAME(gated_backward)(const T *gate, const T *up, const T *grad, T *grad_gate, T *grad_up, int64_t n, int gelu,
                          int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < n; at += PIECE)
        NAME(gated_piece_backward)(gate + at, up + at, grad + at, grad_gate + at, grad_up + at,
                                   n - at < PIECE ? n - at : PIECE, gelu);
}

CLONED static void NAME(dropout_piece)(const T *x, T *y, int64_t n, uint32_t stream, uint32_t threshold,
                                       float scale) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = PUT(GET(x[i]) * kept(stream, i, threshold, scale));
}

/* y = x with a share of elements zeroed and the rest scaled up. The same seed drops the same elements, so this function
 * is also its own backward pass. */
void NAME(dropout)(const T *x, T *y, int64_t n, int64_t seed, float share, int threads) {
    const uint32_t threshold = (uint32_t)(share * 4294967296.0);
    const float scale = 1.0f / (1.0f - share);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < n; at += PIECE)
        NAME(dropout_piece)(x + at, y + at, n - at < PIECE ? n - at : PIECE,
                            mixed((uint32_t)(at / PIECE) ^ mixed((uint32_t)seed)), threshold, scale);
}
#undef PIECE

/* One token's heads: rotates the pairs (i, i + dim / 2) by the token's angles, or back. */
CLONED static void NAME(rotary_token)(const T *x, const T *cos, const T *sin, T *y, int64_t heads, int64_t stride_head,
                                      int64_t dim, int back) {
    int64_t half = dim / 2;
    for (int64_t head = 0; head < heads; head++) {
        const T *in = x + head * stride_head;
        T *out = y + head * dim;
        if (back)
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float a = GET(in[i]), b = GET(in[i + half]);
                out[i] = PUT(a * GET(cos[i]) + b * GET(sin[i + half]));
                out[i + half] = PUT(b * GET(cos[i + half]) - a * GET(sin[i]));
            }
        else
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float a = GET(in[i]), b = GET(in[i + half]);
                out[i] = PUT(a * GET(cos[i]) - b * GET(sin[i]));
                out[i + half] = PUT(b * GET(cos[i + half]) + a * GET(sin[i + half]));
            }
    }
}

/* x: (tokens, heads, dim) with strides; cos, sin: (tokens, dim); y: (tokens, heads, dim). */
void NAME(rotary)(const T *x, const T *cos, const T *sin, T *y, int64_t tokens, int64_t heads, int64_t dim,
                  int64_t stride_token, int64_t stride_head, int back, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t token = 0; token < tokens; token++)
        NAME(rotary_token)(x + token * stride_token, cos + token * dim, sin + token * dim, y + token * heads * dim,
                           heads, stride_head, dim, back);
}
