/* What attention is over, and how threads share out the work. */

#include <sched.h>

#define BLOCK 32 /* keys are padded to a multiple of it; queries of a block in bf16 */

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

#define SHARES_PER_THREAD 4 /* so that all threads end at about the same time */
#define LEAST_BLOCKS 8      /* in a part on average, since each part copies the keys and values that it needs */

/* What a thread takes at a time: a document and a head of keys or, where there are few of these, a part of its queries. */
typedef struct {
    const Document *document;
    int64_t kv, part, parts;
    Range blocks; /* of queries: those of all heads of the group, then of the next queries */
    Range keys;   /* that they see */
    int *turn;    /* the part that adds next to what all parts of the document and head add up */
    float *sums;  /* for that, if asked for */
} Share;

typedef struct {
    Share *each;
    int64_t count, taken;
    int *turns;
    float *sums;
} Shares;

/* A block of queries of one head. */
typedef struct {
    int64_t head, from, rows, token; /* from: in the document; token: in the row */
    Range keys;                      /* that they see */
} Queries;

INLINE Queries queries_of(const Shape *shape, const Document *document, int64_t kv, int64_t block, int64_t size) {
    const int64_t from = block / shape->group * size, left = document->q_length - from, rows = left < size ? left : size;
    return (Queries){kv * shape->group + block % shape->group, from, rows, document->q + from,
                     seen_by_any(shape, document, from, rows)};
}

static int64_t blocks_of(const Shape *shape, const Document *document, int64_t size) {
    return (document->q_length + size - 1) / size * shape->group;
}

/* Keys that the blocks see, added up: about the time that a document takes. */
static int64_t cost_of(const Shape *shape, const Document *document, int64_t size) {
    int64_t cost = 0;
    for (int64_t block = 0; block < blocks_of(shape, document, size); block += shape->group) {
        const Range keys = queries_of(shape, document, 0, block, size).keys;
        cost += shape->group * (keys.end - keys.first);
    }
    return cost;
}

/* Into how many parts a document and a head of keys is split; `enough`: the cost of a share. */
static int64_t parts_of(const Shape *shape, const Document *document, int64_t size, double enough) {
    const int64_t wanted = (int64_t)((double)cost_of(shape, document, size) / enough);
    const int64_t most = blocks_of(shape, document, size) / LEAST_BLOCKS, parts = wanted < most ? wanted : most;
    return parts > 1 ? parts : 1;
}

/* Adds the shares of a document and a head of keys, of about equal costs. */
static void split(Shares *shares, const Shape *shape, const Document *document, int64_t kv, int64_t parts, int64_t size,
                  int *turn, float *sums) {
    const int64_t blocks = blocks_of(shape, document, size), cost = cost_of(shape, document, size);
    int64_t first = 0, reached = 0;
    for (int64_t part = 0; part < parts; part++) {
        int64_t end = first;
        Range keys = {0, 0};
        while (end < blocks && (part == parts - 1 || reached * parts < cost * (part + 1))) {
            const Range own = queries_of(shape, document, kv, end, size).keys;
            if (end == first) keys.first = own.first;
            keys.end = own.end;
            reached += own.end - own.first;
            end++;
        }
        shares->each[shares->count++] = (Share){document, kv, part, parts, {first, end}, keys, turn, sums};
        first = end;
    }
}

/* For blocks of `size` queries. The parts of a split document add up `per_key` numbers for each key. */
static Shares shares_of(const Shape *shape, const Document *documents, int64_t count, int64_t size, int64_t per_key,
                        int threads) {
    double cost = 0, enough = INFINITY;
    for (int64_t i = 0; i < count; i++) cost += (double)shape->kv_heads * cost_of(shape, documents + i, size);
    if (threads > 1 && cost > 0) enough = cost / (SHARES_PER_THREAD * threads);
    Shares shares = {0};
    int64_t most = 0, keys = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t parts = parts_of(shape, documents + i, size, enough);
        most += parts * shape->kv_heads;
        if (parts > 1) keys += filled(documents[i].k_length) * shape->kv_heads;
    }
    if (keys && per_key && !(shares.sums = calloc(keys * per_key, sizeof(float)))) enough = INFINITY; /* split nothing */
    shares.each = malloc(sizeof(Share) * most);
    shares.turns = calloc(count * shape->kv_heads, sizeof(int));
    float *sums = shares.sums;
    for (int64_t i = 0; i < count; i++) {
        const int64_t parts = parts_of(shape, documents + i, size, enough);
        for (int64_t kv = 0; kv < shape->kv_heads; kv++) {
            split(&shares, shape, documents + i, kv, parts, size, shares.turns + i * shape->kv_heads + kv, sums);
            if (sums && parts > 1) sums += filled(documents[i].k_length) * per_key;
        }
    }
    return shares;
}

static void free_shares(Shares shares) {
    free(shares.each);
    free(shares.turns);
    free(shares.sums);
}

/* The next share, for the thread that asks; NULL at the end. */
INLINE const Share *take_share(Shares *shares) {
    const int64_t taken = __atomic_fetch_add(&shares->taken, 1, __ATOMIC_RELAXED);
    return taken < shares->count ? shares->each + taken : NULL;
}

/* Waits until the parts before this one, which were taken before it, have added what they sum: so the order of the sums
 * does not depend on which part ends first. OpenMP's `ordered` would make all shares wait for those before them. */
static void wait_for_turn(const Share *share) {
    while (__atomic_load_n(share->turn, __ATOMIC_ACQUIRE) != share->part) sched_yield();
}

static void end_turn(const Share *share) { __atomic_store_n(share->turn, (int)share->part + 1, __ATOMIC_RELEASE); }

/* Adds X (rows × columns) to a sum. */
CLONED static void add_block(const float *x, int64_t stride, int64_t rows, int64_t columns, float *sum,
                             int64_t sum_stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < columns; n++) sum[i * sum_stride + n] += x[i * stride + n];
}

CLONED static void clear_block(float *x, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memset(x + i * stride, 0, sizeof(float) * columns);
}
