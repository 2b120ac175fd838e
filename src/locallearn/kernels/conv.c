/* Grouped 3x3 convolutions (padding 1, stride 1 or 2) and their gradients for AVX-512, channels last.
 *
 * A vector register holds 16 output channels, of one group or of several. Every lane multiplies what its own group
 * sees: the input is broadcast where the 16 lanes are of one group, and permuted where they are not. So a group of 4
 * channels costs 4 multiplications an output, where a convolution that is padded to a full vector pays for 16.
 *
 * In bfloat16 two numbers, side by side, are multiplied by one vdpbf16ps. Sums are float, and no order of sums depends
 * on the number of threads, but that of weight_gradient does.
 */
#include "vectors.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define PIXELS 16 /* outputs of one tile: 16 of a row, 8 of two rows, or 4 of four */
#ifndef SCRATCH
#define SCRATCH (64 * 1024) /* bytes of padded input that a thread works on at a time */
#endif

/* What is computed: maps [images, height, width, inputs] to [images, rows, columns, outputs].
 * stride is 1, 2, or -2: the gradient of the input of a convolution with stride 2, whose inputs are outputs here. */
typedef struct { int images, inputs, outputs, groups, stride, height, width, rows, columns; } Shape;

/* How the lanes of a vector read their inputs: pair p at step * p, then by index[p] where permuted. */
typedef struct { int permuted, regrouped, step; __m512i index[LANES]; } Reading;

static int least(int a, int b) { return a < b ? a : b; }

/* NULL where there is no memory, which every user of it looks at */
static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 64 + 63) / 64 * 64); } /* 64 to read beyond */

/* ---- reading inputs ---- */

static factor factor_of(num n) {
#if defined BF16 && !defined DOT
    union { uint32_t bits; float f; } wide = {(uint32_t)n << 16};
    return wide.f;
#else
    return n;
#endif
}

/* n numbers, a multiple of 16, as what is multiplied */
INLINE void factors(const num *from, factor *to, size_t n) {
#if defined BF16 && !defined DOT
    for (size_t i = 0; i < n; i += LANES) _mm512_storeu_ps(to + i, load(from + i));
#else
    memcpy(to, from, n * sizeof(num));
#endif
}

/* for every lane, what its group has at `offset`, where groups of `made` outputs begin `apart` */
INLINE __m512i by_group(int made, int apart, int offset) {
    int lane[LANES];
    for (int l = 0; l < LANES; l++) lane[l] = l / made * apart + offset;
    return _mm512_loadu_si512(lane);
}

INLINE void lanes_of(Reading *to, const Shape *k) {
    int seen = k->inputs / k->groups, made = k->outputs / k->groups, pairs = seen / PAIR;
    to->permuted = made < LANES;
    to->regrouped = to->permuted && LANES / made * pairs > LANES;
    to->step = !to->permuted ? PAIR : to->regrouped ? k->groups * PAIR : 0;
    for (int p = 0; p < LANES; p++) to->index[p] = to->regrouped ? by_group(made, 1, 0) : by_group(made, pairs, p);
}

/* n pairs from [group][pair] to [pair][group], so that pairs of many groups are side by side: as many times as groups
 * can be halved both halves of the pairs are interleaved, to and fro between `to` and `spare`, last into `to` */
INLINE void regroup(const factor *from, factor *to, factor *spare, int groups, int n) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const int32_t *have = (const int32_t *)from;
    for (; groups > 1; groups /= 2) {
        int32_t *made = (int32_t *)(__builtin_ctz(groups) % 2 ? to : spare);
        for (int i = 0; i < n / 2; i += LANES) {
            __m512i a = _mm512_loadu_si512(have + i), b = _mm512_loadu_si512(have + n / 2 + i);
            _mm512_storeu_si512(made + 2 * i, _mm512_permutex2var_epi32(a, first, b));
            _mm512_storeu_si512(made + 2 * i + LANES, _mm512_permutex2var_epi32(a, second, b));
        }
        have = made;
    }
}

/* n rows of an image from row `first` on, which may lie outside, into lines of `width` pixels, `left` of them zero;
 * regrouped where there is `work` for two lines */
TARGET static void pad(const Shape *k, const num *image, factor *to, int first, int n, int width, int left,
                       factor *work) {
    size_t line = (size_t)width * k->inputs, used = (size_t)k->width * k->inputs, before = (size_t)left * k->inputs;
    for (int y = first; y < first + n; y++, to += line) {
        memset(to, 0, line * sizeof(factor));
        if (y < 0 || y >= k->height) continue;
        const num *from = image + y * used;
        factors(from, work ? work : to + before, used);
        for (size_t i = 0; work && i < used; i += k->inputs)
            regroup(work + i, to + before + i, work + line, k->groups, k->inputs / PAIR);
    }
}

/* ---- the convolution, and the gradient of its input ---- */

/* Weights [O, I / G, 3, 3] as [O / 16][row][pair][column][16 lanes][PAIR]. `gradient`: of the convolution's input, so
 * that O and I change places; with stride 1 the kernel is turned around too. */
static void pack(const num *weight, factor *to, const Shape *k, int gradient) {
    int seen = k->inputs / k->groups, made = k->outputs / k->groups;
    for (int v = 0; v < k->outputs; v += LANES)
        for (int ky = 0; ky < 3; ky++)
            for (int p = 0; p < seen; p += PAIR)
                for (int kx = 0; kx < 3; kx++)
                    for (int l = v; l < v + LANES; l++)
                        for (int i = p; i < p + PAIR; i++) {
                            int row = gradient ? l / made * seen + i : l, column = gradient ? l % made : i;
                            int tap = gradient && k->stride == 1 ? 8 - 3 * ky - kx : 3 * ky + kx;
                            *to++ = factor_of(weight[((size_t)row * (gradient ? made : seen) + column) * 9 + tap]);
                        }
}

/* PIXELS outputs of 16 channels: lines[r][ky] is what row r of the tile sees through row ky of the kernel, or NULL */
INLINE void tile(const factor *const lines[4][3], const Shape *k, const Reading *lanes, const factor *weight, num *to,
                 int height, int width, const int stride, const int permuted, const int tall) {
    const int across = PIXELS / tall, pairs = k->inputs / k->groups / PAIR;
    const int reach = stride == 1 ? across + 2 : stride == 2 ? 2 * across + 1 : across / 2 + 1;
    __m512 sum[PIXELS];
#pragma GCC unroll 16
    for (int j = 0; j < PIXELS; j++) sum[j] = _mm512_setzero_ps();
    for (int ky = 0; ky < 3; ky++)
        for (int p = 0; p < pairs; p++, weight += 3 * LANES * PAIR) {
            __m512i w0 = _mm512_loadu_si512(weight), w1 = _mm512_loadu_si512(weight + LANES * PAIR),
                    w2 = _mm512_loadu_si512(weight + 2 * LANES * PAIR), index = lanes->index[p % LANES];
#pragma GCC unroll 4
            for (int r = 0; r < tall; r++) {
                if (!lines[r][ky]) continue;
                const factor *from = lines[r][ky] + p * lanes->step;
                __m512 *row = sum + r * across;
#pragma GCC unroll 33
                for (int j = 0; j < reach; j++, from += k->inputs) {
                    __m512i x = permuted ? _mm512_permutexvar_epi32(index, _mm512_loadu_si512(from))
                                         : _mm512_set1_epi32(*(const int32_t *)from);
                    int at[3] = {j, j - 1, j - 2}; /* where it goes through the kernel's columns */
                    if (stride == 2) at[0] = j % 2 ? -1 : j / 2, at[1] = j % 2 ? j / 2 : -1, at[2] = j % 2 ? -1 : j / 2 - 1;
                    if (stride == -2) at[0] = 2 * j - 1, at[1] = 2 * j, at[2] = 2 * j + 1;
                    if (at[0] >= 0 && at[0] < across) row[at[0]] = MULTIPLY_ADD(row[at[0]], w0, x);
                    if (at[1] >= 0 && at[1] < across) row[at[1]] = MULTIPLY_ADD(row[at[1]], w1, x);
                    if (at[2] >= 0 && at[2] < across) row[at[2]] = MULTIPLY_ADD(row[at[2]], w2, x);
                }
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < tall; r++)
#pragma GCC unroll 16
        for (int j = 0; j < across; j++)
            if (r < height && j < width) store(to + ((size_t)r * k->columns + j) * k->outputs, sum[r * across + j]);
}

/* n rows of outputs, from padded lines of `width` pixels */
INLINE void band(const Shape *k, const Reading *lanes, const factor *padded, int width, const factor *weight, num *to, int n,
                 const int stride, const int permuted, const int tall) {
    int seen = k->inputs / k->groups, made = k->outputs / k->groups, across = PIXELS / tall;
    size_t line = (size_t)width * k->inputs;
    for (int v = 0; v < k->outputs; v += LANES) {
        const factor *start = padded + v / made * (lanes->regrouped ? PAIR : seen), *own = weight + (size_t)v * seen * 9;
        for (int r = 0; r < n; r += tall)
            for (int c = 0; c < k->columns; c += across) {
                const factor *lines[4][3];
                for (int i = 0; i < tall; i++)
                    for (int ky = 0; ky < 3; ky++) {
                        int y = stride == -2 ? (r + i + 1 - ky) / 2 : (r + i) * stride + ky;
                        const factor *from = start + y * line + (size_t)(stride == -2 ? c / 2 : c * stride) * k->inputs;
                        lines[i][ky] = r + i >= n || (stride == -2 && (r + i + 1 - ky) % 2) ? NULL : from;
                    }
                tile(lines, k, lanes, own, to + ((size_t)r * k->columns + c) * k->outputs + v, n - r, k->columns - c,
                     stride, permuted, tall);
            }
    }
}

#define BAND(name, stride, permuted, tall)                                                                            \
    TARGET static void name(const Shape *k, const Reading *lanes, const factor *padded, int width,                   \
                            const factor *weight, num *to, int n) {                                                                         \
        band(k, lanes, padded, width, weight, to, n, stride, permuted, tall);                                         \
    }
#define BANDS(name, stride)                                                                                           \
    BAND(name##_of_1, stride, 0, 1) BAND(name##_of_2, stride, 0, 2) BAND(name##_of_4, stride, 0, 4)                   \
    BAND(name##_permuted_of_1, stride, 1, 1) BAND(name##_permuted_of_2, stride, 1, 2)                                 \
    BAND(name##_permuted_of_4, stride, 1, 4)
BANDS(by_1, 1) BANDS(by_2, 2) BANDS(to_2, -2)

typedef void (*Band)(const Shape *, const Reading *, const factor *, int, const factor *, num *, int);
#define TALL(name) {name##_of_1, name##_of_2, name##_of_4}
static const Band bands[3][2][3] = {{TALL(by_1), TALL(by_1_permuted)}, {TALL(by_2), TALL(by_2_permuted)},
                                    {TALL(to_2), TALL(to_2_permuted)}}; /* by stride, reading and rows of a tile */

/* rows of outputs that are computed at a time; an even number, so that every band of stride -2 begins alike */
static int rows_at_once(size_t line_bytes, int stride, int rows) {
    int lines = (int)(SCRATCH / line_bytes) - 3, n = stride == -2 ? 2 * lines : lines / stride;
    return least(n < 2 ? 2 : n / 2 * 2, rows);
}

int pair(void) { return PAIR; } /* channels of a group that are multiplied at a time */

/* Both functions below return 0, or 1 where there is no memory for their scratch space. */

TARGET int convolve(const num *x, const num *weight, num *y, const Shape *k, int gradient) {
    int seen = k->inputs / k->groups, s = k->stride, tall = k->columns <= 4 ? 4 : k->columns <= 8 ? 2 : 1, across = PIXELS / tall;
    int wide = (k->columns + across - 1) / across * across, left = s == -2 ? 0 : 1;
    int width = s == 1 ? wide + 2 : s == 2 ? 2 * wide + 1 : wide / 2 + 1;
    size_t line = (size_t)width * k->inputs;
    int most = rows_at_once(line * sizeof(factor), s, k->rows), a_map = (k->rows + most - 1) / most;
    int lines = s == -2 ? most / 2 + 2 : (most - 1) * s + 3;
    Reading lanes;
    lanes_of(&lanes, k);
    Band run = bands[s == 1 ? 0 : s == 2 ? 1 : 2][lanes.permuted][tall / 2];
    factor *packed = allocate((size_t)k->outputs * seen * 9 * sizeof(factor));
    if (!packed) return 1;
    int failed = 0;
    pack(weight, packed, k, gradient);
#pragma omp parallel reduction(| : failed)
    {
        factor *padded = allocate(lines * line * sizeof(factor));
        factor *work = lanes.regrouped ? allocate(2 * line * sizeof(factor)) : NULL;
        failed = !padded || (lanes.regrouped && !work);
#pragma omp for schedule(static)
        for (int t = 0; t < k->images * a_map; t++) {
            if (failed) continue;
            int image = t / a_map, first = t % a_map * most, n = least(most, k->rows - first);
            int top = s == -2 ? first / 2 : first * s - 1, needed = s == -2 ? n / 2 + 1 : (n - 1) * s + 3;
            pad(k, x + (size_t)image * k->height * k->width * k->inputs, padded, top, needed, width, left,
                work);
            run(k, &lanes, padded, width, packed, y + ((size_t)image * k->rows + first) * k->columns * k->outputs, n);
        }
        free(padded), free(work);
    }
    free(packed);
    return failed;
}

/* ---- the gradient of its weight ---- */

/* n pixels, or pairs of them `apart` pixels from one to the other with both values of a channel side by side */
INLINE void side_by_side(const num *from, int32_t *to, int n, int apart, int channels) {
#ifdef DOT
    for (int q = 0; q < n; q++, from += 2 * (size_t)apart * channels, to += channels)
        for (int c = 0; c < channels; c += LANES) {
            __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + c)));
            __m512i two = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + c + apart * channels)));
            _mm512_storeu_si512(to + c, _mm512_or_si512(one, _mm512_slli_epi32(two, 16)));
        }
#else
    (void)apart;
    factors(from, (factor *)to, (size_t)n * channels);
#endif
}

/* Pixels, or pairs of them, that begin at every column of the kernel. One kind may serve several columns, a shift of
 * the gradient apart: all three, where stride and PAIR are 1; the outer two, where one of them is 2. */
#define KINDS(stride) ((stride) * PAIR > 2 ? 3 : (stride) * PAIR)
#define MARGIN 2 /* zero pixels, or pairs of them, at both ends of a line of the gradient */

/* N input channels of one row of the kernel for 16 outputs, over `rows` rows of n pairs: adds to sums[N][3][16] */
INLINE void correlate(const int32_t *x, size_t kind, size_t x_line, size_t x_step, const int32_t *grad, size_t grad_line,
                      int outputs, int rows, int n, const __m512i *index, float *sums, const int kinds,
                      const int permuted, const int N) {
    __m512 sum[24];
#pragma GCC unroll 24
    for (int i = 0; i < 3 * N; i++) sum[i] = _mm512_loadu_ps(sums + i * LANES);
    for (int r = 0; r < rows; r++) {
        const int32_t *g = grad + r * grad_line, *from = x + r * x_line;
        for (int q = 0; q < n + 2 / kinds; q++, g += outputs, from += x_step)
#pragma GCC unroll 3
            for (int a = 0; a < kinds; a++)
#pragma GCC unroll 8
                for (int i = 0; i < N; i++) {
                    const int32_t *at = from + a * kind;
                    __m512i seen = permuted ? _mm512_permutexvar_epi32(index[i], _mm512_loadu_si512(at))
                                            : _mm512_set1_epi32(at[i]);
#pragma GCC unroll 3
                    for (int kx = a, shift = 0; kx < 3; kx += kinds, shift++)
                        sum[3 * i + kx] =
                            MULTIPLY_ADD(sum[3 * i + kx], _mm512_loadu_si512(g - shift * outputs), seen);
                }
    }
#pragma GCC unroll 24
    for (int i = 0; i < 3 * N; i++) _mm512_storeu_ps(sums + i * LANES, sum[i]);
}

/* The padded input as it is read here: pair q of kind a in row r at a * kind + r * line + q * step. */
typedef struct { const int32_t *start; size_t kind, line, step; } Seen;

/* what a band of `rows` rows adds to sums [O / 16][row][I / G][column][16] */
INLINE void correlate_band(const Shape *k, const Seen *x, const int32_t *grad, int rows, int n, const Reading *lanes,
                           float *sums, const int kinds) {
    int seen = k->inputs / k->groups, made = k->outputs / k->groups;
    size_t grad_line = (size_t)(n + 2 * MARGIN) * k->outputs;
    for (int v = 0; v < k->outputs; v += LANES)
        for (int ky = 0; ky < 3; ky++)
            for (int i = 0, N; i < seen; i += N) {
                const int32_t *from = x->start + ky * x->line + v / made * seen + (lanes->permuted ? 0 : i);
                float *to = sums + (((size_t)v / LANES * 3 + ky) * seen + i) * 3 * LANES;
#define CORRELATE(permuted, count)                                                                                    \
    correlate(from, x->kind, k->stride * x->line, x->step, grad + MARGIN * k->outputs + v, grad_line, k->outputs,     \
              rows, n, lanes->index + i, to, kinds, permuted, N = count)
                if (lanes->permuted && seen - i >= 4) CORRELATE(1, 4);
                else if (lanes->permuted && seen - i >= 2) CORRELATE(1, 2);
                else if (lanes->permuted) CORRELATE(1, 1);
                else if (seen - i >= 8) CORRELATE(0, 8);
                else CORRELATE(0, 1);
            }
}

#define CORRELATE_BAND(kinds)                                                                                         \
    TARGET static void correlate_band_##kinds(const Shape *k, const Seen *x, const int32_t *grad, int rows, int n,   \
                                              const Reading *lanes, float *sums) {                                    \
        correlate_band(k, x, grad, rows, n, lanes, sums, kinds);                                                      \
    }
CORRELATE_BAND(1) CORRELATE_BAND(2) CORRELATE_BAND(3)

typedef void (*Correlation)(const Shape *, const Seen *, const int32_t *, int, int, const Reading *, float *);
static const Correlation correlations[] = {correlate_band_1, correlate_band_2, correlate_band_3};

TARGET int weight_gradient(const num *grad, const num *x, float *to, const Shape *k) {
    int seen = k->inputs / k->groups, s = k->stride, n = (k->columns + PAIR - 1) / PAIR, kinds = KINDS(s);
    size_t line = (size_t)(PAIR * (n + 1) * s + 3) * k->inputs, x_line = (size_t)(n + 2) * k->inputs;
    size_t grad_line = (size_t)(n + 2 * MARGIN) * k->outputs, size = (size_t)k->outputs * seen * 9;
    int most = rows_at_once(kinds * x_line * 4, s, k->rows), a_map = (k->rows + most - 1) / most;
    int lines = (most - 1) * s + 3, threads = omp_get_max_threads();
    Reading lanes = {.permuted = k->outputs / k->groups < LANES};
    for (int i = 0; i < LANES; i++) lanes.index[i] = by_group(k->outputs / k->groups, seen, i);
    float *sums = calloc(threads * size, sizeof(float));
    if (!sums) return 1;
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        factor *padded = allocate(lines * line * sizeof(factor));
        num *last = calloc(PAIR * grad_line + LANES, sizeof(num));
        int32_t *x_pairs = allocate(PAIR == 1 ? 0 : kinds * lines * x_line * 4);
        int32_t *grad_pairs = calloc(most * grad_line, 4);
        failed = !padded || !last || !x_pairs || !grad_pairs;
        Seen seen_x = PAIR == 1 ? (Seen){(const int32_t *)padded, k->inputs, line, (size_t)s * k->inputs}
                                : (Seen){x_pairs, lines * x_line, x_line, k->inputs};
#pragma omp for schedule(static)
        for (int t = 0; t < k->images * a_map; t++) {
            if (failed) continue;
            int image = t / a_map, first = t % a_map * most, rows = least(most, k->rows - first);
            int needed = (rows - 1) * s + 3;
            pad(k, x + (size_t)image * k->height * k->width * k->inputs, padded, first * s - 1, needed,
                line / k->inputs, 1, NULL);
            for (int a = 0; PAIR == 2 && a < kinds; a++)
                for (int r = 0; r < needed; r++)
                    side_by_side((const num *)padded + r * line + a * k->inputs, x_pairs + (a * lines + r) * x_line,
                                 n + 2 / kinds, s, k->inputs);
            for (int r = 0; r < rows; r++) {
                const num *g = grad + ((size_t)image * k->rows + first + r) * k->columns * k->outputs;
                if (k->columns % PAIR) g = memcpy(last, g, (size_t)k->columns * k->outputs * sizeof(num));
                side_by_side(g, grad_pairs + r * grad_line + MARGIN * k->outputs, n, 1, k->outputs);
            }
            correlations[kinds - 1](k, &seen_x, grad_pairs, rows, n, &lanes, sums + size * omp_get_thread_num());
        }
        free(padded), free(last), free(x_pairs), free(grad_pairs);
    }
    for (int o = 0; o < k->outputs; o++)
        for (int i = 0; i < seen; i++)
            for (int tap = 0; tap < 9; tap++, to++) {
                size_t at = ((((size_t)o / LANES * 3 + tap / 3) * seen + i) * 3 + tap % 3) * LANES + o % LANES;
                *to = 0;
                for (int t = 0; t < threads; t++) *to += sums[t * size + at];
            }
    free(sums);
    return failed;
}
