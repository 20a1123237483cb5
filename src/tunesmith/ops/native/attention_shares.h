/* What attention is over, and how threads share out the work. */

#define BLOCK 32 /* keys are padded to a multiple of it */

typedef struct {
    int64_t kv_heads, group, dim; /* heads of keys and values; heads of queries to each; dim a multiple of 32 */
    float scale;
    int64_t window; /* each query attends to this many of the latest keys; 0: to all */
    int causal;
    float dropped; /* dropout share of the probabilities */
    int64_t seed;
} Shape;

/* One document: the start and number of its queries and of its keys; the queries belong to the last keys. */
typedef struct {
    int64_t q, q_length, k, k_length;
} Document;

typedef struct {
    int64_t first, end;
} Range;

/* The keys that a query attends to. */
INLINE Range seen_by(const Shape *shape, const Document *document, int64_t query) {
    int64_t at = query + document->k_length - document->q_length;
    Range range = {0, document->k_length};
    if (shape->causal) range.end = at + 1;
    if (shape->window && at + 1 > shape->window) range.first = at + 1 - shape->window;
    return range;
}

static int64_t filled(int64_t length) { return (length + BLOCK - 1) / BLOCK * BLOCK; }

/* The keys, in whole blocks, that at least one of some queries attends to. */
INLINE Range seen_by_any(const Shape *shape, const Document *document, int64_t from, int64_t queries) {
    if (!queries) return (Range){0, 0};
    Range first = seen_by(shape, document, from), last = seen_by(shape, document, from + queries - 1);
    return (Range){first.first / BLOCK * BLOCK, filled(last.end)};
}

/* The most keys of a document, in whole blocks. */
static int64_t longest(const Document *documents, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++)
        if (documents[i].k_length > most) most = documents[i].k_length;
    return filled(most);
}

#define SHARES 4 /* for each thread, so that all end at about the same time */
#define LEAST 4  /* blocks in a part, at least: each part copies the keys and values that it needs */

/* What a thread takes at a time: a document and a head of keys or, where there are few of these, a part of its queries. */
typedef struct {
    const Document *document;
    int64_t kv, part, parts;
    Range numbers; /* of blocks of queries: those of all heads of the group, then of the next queries */
    Range keys;    /* that they see */
    float *sums;   /* what the parts add up; NULL if there is one part */
} Share;

typedef struct {
    Share *each;
    int64_t count;
    float *sums;
} Shares;

static double cost_of(const Document *document) { return (double)document->q_length * document->k_length; }

static int64_t blocks_of(const Shape *shape, const Document *document, int64_t size) {
    return (document->q_length + size - 1) / size * shape->group;
}

/* Into how many parts a document and a head of keys is split; `enough`: the cost of a share. */
static int64_t parts_of(const Shape *shape, const Document *document, int64_t size, double enough) {
    const int64_t wanted = (int64_t)(cost_of(document) / enough), most = blocks_of(shape, document, size) / LEAST;
    const int64_t parts = wanted < most ? wanted : most;
    return parts > 1 ? parts : 1;
}

/* For blocks of `size` queries. The parts of a split document add up `per_key` numbers for each key. */
static Shares shares_of(const Shape *shape, const Document *documents, int64_t count, int64_t size, int64_t per_key,
                        int threads) {
    double cost = 0;
    for (int64_t i = 0; i < count; i++) cost += cost_of(documents + i) * shape->kv_heads;
    const double enough = threads > 1 && cost > 0 ? cost / (SHARES * threads) : INFINITY;
    int64_t most = 0, summed = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t parts = parts_of(shape, documents + i, size, enough);
        most += parts * shape->kv_heads;
        if (parts > 1) summed += filled(documents[i].k_length) * shape->kv_heads * per_key;
    }
    Shares shares = {malloc(sizeof(Share) * most), 0, summed ? calloc(summed, sizeof(float)) : NULL};
    float *room = shares.sums;
    for (int64_t i = 0; i < count; i++)
        for (int64_t kv = 0; kv < shape->kv_heads; kv++) {
            const Document *document = documents + i;
            const int64_t blocks = blocks_of(shape, document, size), parts = parts_of(shape, document, size, enough);
            for (int64_t part = 0; part < parts; part++) {
                const Range numbers = {blocks * part / parts, blocks * (part + 1) / parts};
                const int64_t from = numbers.first / shape->group * size;
                const int64_t until = (numbers.end + shape->group - 1) / shape->group * size;
                const int64_t queries = (until < document->q_length ? until : document->q_length) - from;
                shares.each[shares.count++] = (Share){
                    document, kv, part, parts, numbers, seen_by_any(shape, document, from, queries), parts > 1 ? room : NULL};
            }
            if (parts > 1) room += filled(document->k_length) * per_key;
        }
    return shares;
}

static void free_shares(Shares shares) {
    free(shares.each);
    free(shares.sums);
}

/* A block of queries of one head. */
typedef struct {
    int64_t head, from, rows, token; /* from: in the document; token: in the row */
    Range keys;                      /* that they see */
} Queries;

INLINE Queries queries_of(const Shape *shape, const Share *share, int64_t number, int64_t size) {
    const Document *document = share->document;
    const int64_t from = number / shape->group * size, left = document->q_length - from, rows = left < size ? left : size;
    return (Queries){share->kv * shape->group + number % shape->group, from, rows, document->q + from,
                     seen_by_any(shape, document, from, rows)};
}

/* Adds X (rows × columns) to a sum. */
CLONED static void add_block(const float *x, int64_t stride, int64_t rows, int64_t columns, float *sum,
                             int64_t sum_stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < columns; n++) sum[i * sum_stride + n] += x[i * stride + n];
}
