/* Batch norm of maps with the ReLU after it, channels last: [images, positions, channels], channels a multiple of 16.
 *
 * Every pass reads what it needs once and writes nothing that the next one can make again: a mask is the sign of what
 * is normalised, and where the mean over positions follows, no map is written at all. Sums are float within an image,
 * of four positions at a time, and double over images; their order does not depend on the number of threads.
 */
#include "vectors.h"

#define SUMS 4 /* of a pass at a time */

typedef struct { int images, positions, channels; } Maps;

INLINE __m512 total(const __m512 *sums) {
    return _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
}

/* to[images][2][channels]: mean of every image and sum of squares of distances from it */
TARGET static void statistics_by_image(const num *x, float *to, const Maps *m) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < m->images; b++)
        for (int c = 0; c < m->channels; c += LANES) {
            const num *from = x + (size_t)b * m->positions * m->channels + c;
            __m512 sums[SUMS], squares[SUMS];
            for (int i = 0; i < SUMS; i++) sums[i] = squares[i] = _mm512_setzero_ps();
            for (int p = 0; p < m->positions; p += SUMS)
#pragma GCC unroll 4
                for (int i = 0; i < SUMS; i++)
                    if (p + i < m->positions)
                        sums[i] = _mm512_add_ps(sums[i], load(from + (size_t)(p + i) * m->channels));
            __m512 mean = _mm512_div_ps(total(sums), _mm512_set1_ps(m->positions));
            for (int p = 0; p < m->positions; p += SUMS)
#pragma GCC unroll 4
                for (int i = 0; i < SUMS; i++)
                    if (p + i < m->positions) {
                        __m512 d = _mm512_sub_ps(load(from + (size_t)(p + i) * m->channels), mean);
                        squares[i] = _mm512_fmadd_ps(d, d, squares[i]);
                    }
            _mm512_storeu_ps(to + (size_t)b * 2 * m->channels + c, mean);
            _mm512_storeu_ps(to + ((size_t)b * 2 + 1) * m->channels + c, total(squares));
        }
}

/* mean and variance over images and positions (of all of them, not one fewer); `work` holds images * 2 * channels */
TARGET void statistics(const num *x, float *mean, float *variance, float *work, const Maps *m) {
    statistics_by_image(x, work, m);
#pragma omp parallel for schedule(static)
    for (int c = 0; c < m->channels; c += LANES) {
        double all[LANES] = {0}, squares[LANES] = {0};
        for (int b = 0; b < m->images; b++)
            for (int l = 0; l < LANES; l++) all[l] += work[(size_t)b * 2 * m->channels + c + l];
        for (int l = 0; l < LANES; l++) all[l] /= m->images;
        for (int b = 0; b < m->images; b++)
            for (int l = 0; l < LANES; l++) {
                const float *own = work + (size_t)b * 2 * m->channels + c + l;
                double d = own[0] - all[l];
                squares[l] += own[m->channels] + d * d * m->positions;
            }
        for (int l = 0; l < LANES; l++) {
            mean[c + l] = all[l];
            variance[c + l] = squares[l] / ((double)m->images * m->positions);
        }
    }
}

/* to = max(0, x * scale + shift [+ more]); NaN stays NaN, which is the second operand of max */
TARGET void normalise(const num *x, const num *more, const float *scale, const float *shift, num *to, const Maps *m) {
    size_t image = (size_t)m->positions * m->channels;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < m->images; b++)
        for (size_t p = b * image; p < (b + 1) * image; p += m->channels)
            for (int c = 0; c < m->channels; c += LANES) {
                __m512 y = _mm512_fmadd_ps(load(x + p + c), _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c));
                if (more) y = _mm512_add_ps(y, load(more + p + c));
                store(to + p + c, _mm512_max_ps(_mm512_setzero_ps(), y));
            }
}

/* its mean over positions without `more`, to[images][channels] */
TARGET void normalise_mean(const num *x, const float *scale, const float *shift, num *to, const Maps *m) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < m->images; b++)
        for (int c = 0; c < m->channels; c += LANES) {
            const num *from = x + (size_t)b * m->positions * m->channels + c;
            __m512 sums[SUMS], by = _mm512_loadu_ps(scale + c), plus = _mm512_loadu_ps(shift + c);
            for (int i = 0; i < SUMS; i++) sums[i] = _mm512_setzero_ps();
            for (int p = 0; p < m->positions; p += SUMS)
#pragma GCC unroll 4
                for (int i = 0; i < SUMS; i++)
                    if (p + i < m->positions) {
                        __m512 y = _mm512_fmadd_ps(load(from + (size_t)(p + i) * m->channels), by, plus);
                        sums[i] = _mm512_add_ps(sums[i], _mm512_max_ps(_mm512_setzero_ps(), y));
                    }
            store(to + (size_t)b * m->channels + c, _mm512_div_ps(total(sums), _mm512_set1_ps(m->positions)));
        }
}

/* A gradient that comes back through a ReLU. Its mask is the sign of `out`, where that is given, else of what is made
 * of x again. `grad` is of every position; of every image's mean (POOLED); or the mask has been laid on it (MASKED). */
enum { POSITIONS, POOLED, MASKED };
typedef struct { const num *x, *grad, *out; const float *mean, *scale, *shift; } Backward;

/* the gradient of x * scale + shift at one place */
INLINE __m512 through(const Backward *t, const Maps *m, int b, size_t at, int c, const int kind) {
    if (kind == MASKED) return load(t->grad + at);
    __m512 y = t->out ? load(t->out + at)
                      : _mm512_fmadd_ps(load(t->x + at), _mm512_loadu_ps(t->scale + c), _mm512_loadu_ps(t->shift + c));
    __m512 grad = load(kind == POOLED ? t->grad + (size_t)b * m->channels + c : t->grad + at);
    if (kind == POOLED) grad = _mm512_mul_ps(grad, _mm512_set1_ps(1.0f / m->positions));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NLE_UQ), grad);
}

/* of one image, sums[2][channels]: of the gradient, and of its product with x - mean */
INLINE void sums_of_image(const Backward *t, num *masked, float *sums, const Maps *m, int b, const int kind) {
    for (int c = 0; c < m->channels; c += LANES) {
        __m512 first[SUMS], second[SUMS], mean = _mm512_loadu_ps(t->mean + c);
        for (int i = 0; i < SUMS; i++) first[i] = second[i] = _mm512_setzero_ps();
        for (int p = 0; p < m->positions; p += SUMS)
#pragma GCC unroll 4
            for (int i = 0; i < SUMS; i++)
                if (p + i < m->positions) {
                    size_t at = ((size_t)b * m->positions + p + i) * m->channels + c;
                    __m512 grad = through(t, m, b, at, c, kind);
                    if (masked) store(masked + at, grad);
                    first[i] = _mm512_add_ps(first[i], grad);
                    second[i] = _mm512_fmadd_ps(grad, _mm512_sub_ps(load(t->x + at), mean), second[i]);
                }
        _mm512_storeu_ps(sums + c, total(first));
        _mm512_storeu_ps(sums + m->channels + c, total(second));
    }
}

/* The same over all images. `masked`, where it is not NULL, takes the gradient; `work` holds images * 2 * channels. */
TARGET void gradient_sums(const Backward *t, int kind, num *masked, float *sums, float *work, const Maps *m) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < m->images; b++) {
        float *own = work + (size_t)b * 2 * m->channels;
        if (kind == POOLED) sums_of_image(t, NULL, own, m, b, POOLED);
        else sums_of_image(t, masked, own, m, b, POSITIONS);
    }
#pragma omp parallel for schedule(static)
    for (int c = 0; c < 2 * m->channels; c += LANES) {
        double all[LANES] = {0};
        for (int b = 0; b < m->images; b++)
            for (int l = 0; l < LANES; l++) all[l] += work[(size_t)b * 2 * m->channels + c + l];
        for (int l = 0; l < LANES; l++) sums[c + l] = all[l];
    }
}

INLINE void input_of_image(const Backward *t, const float *first, const float *second, num *to, const Maps *m, int b,
                           const int kind) {
    for (int p = 0; p < m->positions; p++)
        for (int c = 0; c < m->channels; c += LANES) {
            size_t at = ((size_t)b * m->positions + p) * m->channels + c;
            __m512 far = _mm512_sub_ps(load(t->x + at), _mm512_loadu_ps(t->mean + c));
            __m512 grad = _mm512_sub_ps(through(t, m, b, at, c, kind), _mm512_loadu_ps(first + c));
            grad = _mm512_fnmadd_ps(far, _mm512_loadu_ps(second + c), grad);
            store(to + at, _mm512_mul_ps(grad, _mm512_loadu_ps(t->scale + c)));
        }
}

/* to = scale * (gradient - first - (x - mean) * second) */
TARGET void gradient_of_input(const Backward *t, int kind, const float *first, const float *second, num *to,
                              const Maps *m) {
#pragma omp parallel for schedule(static)
    for (int b = 0; b < m->images; b++)
        if (kind == POOLED) input_of_image(t, first, second, to, m, b, POOLED);
        else if (kind == MASKED) input_of_image(t, first, second, to, m, b, MASKED);
        else input_of_image(t, first, second, to, m, b, POSITIONS);
}

/* whether this CPU has the instructions */
int supported(void) {
#ifdef BF16
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
