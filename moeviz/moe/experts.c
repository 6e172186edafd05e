/* The experts' sum and its gradients in float32, for one kind of processor a build (see setup.py).

   The tokens of an expert go through it in panels of at most PANEL, a token a column: then every product reads the
   weights once, as they are stored, and what lies between two products stays in the cache. Shapes: T tokens, K experts
   a token, E experts, width D, hidden width F; D and F are multiples of V. A pair is t K + k; N = T K pairs.

   All memory is Python's, so that none is lost with a thread and too little of it is Python's error. */

#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { V = 16, R = 8 }; /* floats of a register; rows of a block, so that its sums fill half of the registers */
#define LEVEL "x86-64-v4"
#elif defined(__AVX2__)
enum { V = 8, R = 4 };
#define LEVEL "x86-64-v3"
#else
#error "without such vectors torch is faster"
#endif
enum { PANEL = 2 * V, TILE = 128 };

typedef int64_t Int;
typedef float Vec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * V), aligned(4), may_alias));
#if defined(__AVX512F__)
#define LOW ((Bits){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#else
#define LOW ((Bits){0, 8, 1, 9, 2, 10, 3, 11})
#endif
#define AT(pointer) (*(Vec *)(pointer))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16") for

int runs_here(void) { return __builtin_cpu_supports(LEVEL) != 0; }
const int WIDTH = V, TILE_TOKENS = TILE;
const uint32_t SOURCE = SOURCE_CRC; /* of this file, from setup.py: compiled.py uses no build of another one */

typedef struct {
    const float *at; /* element (row, column) is at[row * of_row + column * of_column] */
    Int of_row, of_column;
} Matrix;

/* C (R, n V) = or += A (R, depth) B (depth, n V). Rows of B and C are b_row and c_row floats apart. */
INLINE void block(int n, int add, Int depth, Matrix a, const float *b, Int b_row, float *c, Int c_row) {
    Vec sum[R][2];
    UNROLL(int r = 0; r < R; r++) UNROLL(int i = 0; i < n; i++) sum[r][i] = add ? AT(c + r * c_row + i * V) : (Vec){0};
    for (Int k = 0; k < depth; k++, a.at += a.of_column, b += b_row) {
        /* weights come from beyond the cache, and nothing but this tells the processor which are next */
        if (a.of_row == 1) __builtin_prefetch(a.at + V);
        else if (k % 16 == 0) UNROLL(int r = R; r < 2 * R; r++) __builtin_prefetch(a.at + r * a.of_row);
        Vec right[2];
        UNROLL(int i = 0; i < n; i++) right[i] = AT(b + i * V);
        UNROLL(int r = 0; r < R; r++) UNROLL(int i = 0; i < n; i++) sum[r][i] += a.at[r * a.of_row] * right[i];
    }
    UNROLL(int r = 0; r < R; r++) UNROLL(int i = 0; i < n; i++) AT(c + r * c_row + i * V) = sum[r][i];
}

/* C (R, columns) = or += A (R, depth) B (depth, columns) */
INLINE void strip(int add, Int columns, Int depth, Matrix a, const float *b, Int b_row, float *c, Int c_row) {
    Int j = 0;
    for (; j + PANEL <= columns; j += PANEL) block(2, add, depth, a, b + j, b_row, c + j, c_row);
    if (j < columns) block(1, add, depth, a, b + j, b_row, c + j, c_row);
}

INLINE Vec at_most(Vec x, float limit) {
    Vec limits = (Vec){0} + limit;
    Bits over = x > limits; /* not so of NaN, which stays */
    return (Vec)(((Bits)limits & over) | ((Bits)x & ~over));
}

/* 1 / (1 + exp(-x)); exp(y) = 2^n exp(rest), |rest| <= ln(2) / 2, by its series */
INLINE Vec sigmoid(Vec x) {
    const float shift = 12582912.0f; /* 1.5 2^23: adding it rounds to a whole number, in the low bits */
    Vec y = at_most(-at_most(x, 87.0f), 88.0f), shifted = y * 1.44269504f + shift, n = shifted - shift;
    Vec rest = y - n * 0.693145752f - n * 1.42860677e-6f, series = (Vec){0} + 1.0f / 720;
    series = series * rest + 1.0f / 120;
    series = series * rest + 1.0f / 24;
    series = series * rest + 1.0f / 6;
    series = series * rest + 0.5f;
    series = series * rest + 1;
    series = series * rest + 1;
    return 1 / (1 + (Vec)((Bits)series + ((Bits)shifted << 23)));
}

/* One expert's tokens of one tile, in panels. */
typedef struct {
    Int count, panels; /* tokens; panels of PANEL tokens, but the last */
} Tile;

static Tile tile_of(Int left) {
    Int count = left < TILE ? left : TILE;
    return (Tile){count, (count + PANEL - 1) / PANEL};
}
static Int tokens(Tile tile, Int panel) { return panel + 1 < tile.panels ? PANEL : tile.count - panel * PANEL; }
static Int columns(Tile tile, Int panel) { return tokens(tile, panel) > V ? PANEL : V; }

/* out, panels of (rows, columns) = A (rows, depth) times `in`, panels of (depth, columns) */
static void through(Tile tile, Int rows, Int depth, Matrix a, const float *in, float *out) {
    for (Int i = 0; i < rows; i += R, a.at += R * a.of_row)
        for (Int p = 0; p < tile.panels; p++) {
            Int wide = columns(tile, p);
            strip(0, wide, depth, a, in + p * PANEL * depth, wide, out + p * PANEL * rows + i * wide, wide);
        }
}

/* C (rows, width) = or += the sum over tokens of A's panels (rows, columns) times their rows of B (tokens, width) */
static void outer(Tile tile, int add, Int rows, Int width, const float *a, const float *b, float *c) {
    for (Int i = 0; i < rows; i += R)
        for (Int p = 0; p < tile.panels; p++) {
            Matrix left = {a + p * PANEL * rows + i * columns(tile, p), columns(tile, p), 1};
            const float *right = b + p * PANEL * width;
            if (add || p) strip(1, width, tokens(tile, p), left, right, width, c + i * width, width);
            else strip(0, width, tokens(tile, p), left, right, width, c + i * width, width);
        }
}

/* Rows of V floats become columns, by log2(V) rounds that interleave the two halves. */
INLINE void transpose(Vec rows[V]) {
    UNROLL(int round = 1; round < V; round *= 2) {
        Vec mixed[V];
        UNROLL(int i = 0; i < V / 2; i++) {
            mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + V / 2], LOW);
            mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + V / 2], LOW + V / 2);
        }
        UNROLL(int i = 0; i < V; i++) rows[i] = mixed[i];
    }
}

/* The tokens' rows of x as columns of panels, 0 beyond the last, and, unless it is null, as rows. */
static void gather(Tile tile, const Int *pair, Int K, Int D, const float *x, float *panels, float *rows) {
    for (Int p = 0; p < tile.panels; p++, panels += PANEL * D)
        for (Int j = 0, wide = columns(tile, p), many = tokens(tile, p); j < wide; j += V) {
            const Int *here = pair + p * PANEL + j;
            for (Int d = 0; d < D; d += V) {
                Vec part[V];
                UNROLL(int i = 0; i < V; i++) part[i] = j + i < many ? AT(x + here[i] / K * D + d) : (Vec){0};
                if (rows)
                    for (Int i = 0; i < V && j + i < many; i++) AT(rows + (p * PANEL + j + i) * D + d) = part[i];
                transpose(part);
                UNROLL(int i = 0; i < V; i++) AT(panels + (d + i) * wide + j) = part[i];
            }
        }
}

/* The columns of the panels as rows: token j's at out + place[j] D, or out + j D where place is null. */
static void scatter(Tile tile, Int D, const float *panels, const Int *place, float *out) {
    for (Int p = 0; p < tile.panels; p++, panels += PANEL * D)
        for (Int j = 0, wide = columns(tile, p), many = tokens(tile, p); j < many; j += V)
            for (Int d = 0; d < D; d += V) {
                Vec part[V];
                UNROLL(int i = 0; i < V; i++) part[i] = AT(panels + (d + i) * wide + j);
                transpose(part);
                for (Int i = 0; i < V && j + i < many; i++) {
                    Int row = p * PANEL + j + i;
                    AT(out + (place ? place[row] : row) * D + d) = part[i];
                }
            }
}

/* y[t] = the sum over k of w[t, k] terms[t, k], where there is an expert; w may be null, for ones */
static void combine(int threads, Int T, Int K, Int E, Int D, const Int *ids, const float *w, const float *terms, float *y) {
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (Int t = 0; t < T; t++)
        for (Int d = 0; d < D; d += V) {
            Vec sum = {0};
            for (Int pair = t * K; pair < (t + 1) * K; pair++)
                if (ids[pair] >= 0 && ids[pair] < E) sum += (w ? w[pair] : 1.0f) * AT(terms + pair * D + d);
            AT(y + t * D + d) = sum;
        }
}

static Int padded(Int count) { return (count + V - 1) / V * V; }

/* The pairs by expert, in order: pairs[starts[e]] to pairs[starts[e + 1]]; and where e's panels begin in hidden. */
static void sort(Int N, Int E, const Int *ids, Int *starts, Int *panels, Int *pairs) {
    memset(starts, 0, (E + 1) * sizeof(Int));
    for (Int i = 0; i < N; i++)
        if (ids[i] >= 0 && ids[i] < E) starts[ids[i] + 1]++;
    Int *next = panels;
    for (Int e = 0; e < E; e++) {
        starts[e + 1] += starts[e];
        next[e] = starts[e];
    }
    for (Int i = 0; i < N; i++)
        if (ids[i] >= 0 && ids[i] < E) pairs[next[ids[i]]++] = i;
    for (Int e = 0, begin = 0; e < E; e++) {
        panels[e] = begin;
        begin += padded(starts[e + 1] - starts[e]);
    }
}

/* y (T, D). Keeps for backward: runs, that is starts (E + 1), panels (E), pairs (N); and hidden (N + E (V - 1), 2F)
   unless it is null. Works in: for each thread (2D + 3F, TILE), then terms (N, D). */
void forward(int threads, Int T, Int K, Int E, Int D, Int F, const float *x, const Int *ids, const float *w,
             const float *gate_up, const float *down, Int *runs, float *hidden, float *work, float *y) {
    const Int own_size = (2 * D + 3 * F) * TILE;
    Int *starts = runs, *panels = starts + E + 1, *pairs = panels + E;
    float *terms = work + threads * own_size;
    sort(T * K, E, ids, starts, panels, pairs);
#pragma omp parallel for schedule(dynamic) if (threads > 1) num_threads(threads)
    for (Int e = 0; e < E; e++) {
        float *in = work + omp_get_thread_num() * own_size, *out = in + D * TILE;
        float *act = out + D * TILE, *own = act + F * TILE;
        for (Int from = starts[e]; from < starts[e + 1]; from += TILE) {
            Tile tile = tile_of(starts[e + 1] - from);
            float *h = hidden ? hidden + (panels[e] + from - starts[e]) * 2 * F : own;
            gather(tile, pairs + from, K, D, x, in, NULL);
            through(tile, 2 * F, D, (Matrix){gate_up + e * 2 * F * D, D, 1}, in, h);
            for (Int p = 0; p < tile.panels; p++) {
                Int size = F * columns(tile, p);
                const float *gate = h + p * PANEL * 2 * F, *up = gate + size;
                for (Int i = 0; i < size; i += V)
                    AT(act + p * PANEL * F + i) = AT(gate + i) * sigmoid(AT(gate + i)) * AT(up + i);
            }
            through(tile, D, F, (Matrix){down + e * D * F, F, 1}, act, out);
            scatter(tile, D, out, pairs + from, terms);
        }
    }
    combine(threads, T, K, E, D, ids, w, terms, y);
}

/* The gradients dx, dw, dgate_up, ddown of dy (T, D), from what forward was given and kept. Works in: for each thread
   (3D + 4F, TILE), then terms (N, D). */
void backward(int threads, Int T, Int K, Int E, Int D, Int F, const float *x, const Int *ids, const float *w,
              const float *gate_up, const float *down, const Int *runs, const float *hidden, const float *dy,
              float *work, float *dx, float *dw, float *dgate_up, float *ddown) {
    const Int own_size = (3 * D + 4 * F) * TILE;
    const Int *starts = runs, *panels = starts + E + 1, *pairs = panels + E;
    float *terms = work + threads * own_size;
    memset(dw, 0, T * K * sizeof(float));
#pragma omp parallel for schedule(dynamic) if (threads > 1) num_threads(threads)
    for (Int e = 0; e < E; e++) {
        float *in = work + omp_get_thread_num() * own_size, *x_rows = in + D * TILE, *dact = x_rows + D * TILE;
        float *act_rows = dact + F * TILE, *dh = act_rows + F * TILE, *out = dh + 2 * F * TILE;
        float *dgu = dgate_up + e * 2 * F * D, *dd = ddown + e * D * F;
        if (starts[e] == starts[e + 1]) {
            memset(dgu, 0, 2 * F * D * sizeof(float));
            memset(dd, 0, F * D * sizeof(float));
        }
        for (Int from = starts[e]; from < starts[e + 1]; from += TILE) {
            Tile tile = tile_of(starts[e + 1] - from);
            const Int *pair = pairs + from;
            const float *h = hidden + (panels[e] + from - starts[e]) * 2 * F;
            gather(tile, pair, K, D, x, out, x_rows);
            gather(tile, pair, K, D, dy, in, NULL);
            through(tile, F, D, (Matrix){down + e * D * F, 1, F}, in, dact); /* of the unweighted output */
            for (Int p = 0; p < tile.panels; p++) {
                Int wide = columns(tile, p), many = tokens(tile, p), size = F * wide;
                const float *gate = h + p * PANEL * 2 * F, *up = gate + size;
                float *dgate = dh + p * PANEL * 2 * F, *dup = dgate + size, *da = dact + p * PANEL * F;
                float weight[PANEL] = {0}, product[PANEL];
                for (Int j = 0; j < many; j++) weight[j] = w[pair[p * PANEL + j]];
                for (Int c = 0; c < wide; c += V) {
                    Vec sum = {0}, each = AT(weight + c);
                    for (Int i = c; i < size; i += wide) {
                        Vec s = sigmoid(AT(gate + i)), silu = s * AT(gate + i), act = silu * AT(up + i), d = AT(da + i);
                        sum += act * d;
                        d *= each;
                        AT(dgate + i) = d * AT(up + i) * (s + silu * (1 - s));
                        AT(dup + i) = d * silu;
                        AT(da + i) = each * act;
                    }
                    AT(product + c) = sum;
                }
                for (Int j = 0; j < many; j++) dw[pair[p * PANEL + j]] = product[j];
            }
            scatter(tile, F, dact, NULL, act_rows);
            outer(tile, from > starts[e], D, F, in, act_rows, dd);
            outer(tile, from > starts[e], 2 * F, D, dh, x_rows, dgu);
            through(tile, D, 2 * F, (Matrix){gate_up + e * 2 * F * D, 1, D}, dh, out);
            scatter(tile, D, out, pair, terms);
        }
    }
    combine(threads, T, K, E, D, ids, NULL, terms, dx);
}
