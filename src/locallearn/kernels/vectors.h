/* Numbers and vectors of AVX-512. With BF16 numbers are bfloat16, else float; vectors hold 16 float.
 *
 * With DOT two bfloat16 are multiplied at a time (vdpbf16ps), else every one as float. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#ifdef BF16
typedef uint16_t num;
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#else
typedef float num;
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#endif

#ifdef DOT
typedef num factor; /* what is multiplied */
#define PAIR 2 /* factors of 32 bits */
#define MULTIPLY_ADD(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#else
typedef float factor;
#define PAIR 1
#define MULTIPLY_ADD(sum, a, b) _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
#endif
#define INLINE TARGET static inline __attribute__((always_inline))
#define LANES 16

INLINE __m512 load(const num *from) {
#ifdef BF16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
#else
    return _mm512_loadu_ps(from);
#endif
}

INLINE void store(num *to, __m512 vector) {
#ifdef BF16
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(vector));
#else
    _mm512_storeu_ps(to, vector);
#endif
}
