/* x W^T + b by products of 16-bit integers: int16_linear.py has the contract, and compiles this for its processor.

   M rows of x, K input channels, N output channels. K is even and N a multiple of COLUMNS; weights are padded with zeros. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BW__)
typedef __m512i Vector;
#define OP(name) _mm512_##name
#else
typedef __m256i Vector;
#define OP(name) _mm256_##name
#endif

/* ROWS by COLUMNS sums stay in registers, in a variable each, because compilers may not keep an array there. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4)
enum { ROWS = 5, LANES = sizeof(Vector) / sizeof(int32_t), COLUMNS = 2 * LANES };
enum { BLOCK = 64 * ROWS }; /* rows at a time: AT_ONCE of their channels fit a core's second cache */
_Static_assert(AT_ONCE % 2 == 0, "channels are multiplied in pairs");

int rows(void) { return ROWS; }
int columns(void) { return COLUMNS; }

static inline Vector load(const int16_t *at) {
    Vector values;
    memcpy(&values, at, sizeof values);
    return values;
}

/* Adds two products of 16-bit integers to each 32-bit sum. */
static inline Vector add_products(Vector sums, Vector x, Vector w) {
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sums, x, w);
#elif defined(__AVX512BW__)
    return _mm512_add_epi32(sums, _mm512_madd_epi16(x, w));
#elif defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sums, x, w);
#else
    const Vector products = _mm256_madd_epi16(x, w);
    __asm__("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products)); /* left to gcc 12, sums would move to memory and back */
    return sums;
#endif
}

static inline int32_t load_pair(const int16_t *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return pair;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* A row as 16-bit integers times a scale, which is returned: NaN unless all numbers are finite. */
static float quantize(const float *x_K, int16_t *q_K, long K, float levels) {
    uint32_t largest_bits = bits_of(1e-30f); /* rows of zeros stay zeros */
    for (long k = 0; k < K; k++) { /* bits of magnitudes compare as the numbers do, and those of NaN are the largest */
        const uint32_t bits = bits_of(x_K[k]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    const float factor = levels / largest;
    for (long k = 0; k < K; k++) /* the sum is rounded to an integer, which is in its last bits */
        q_K[k] = (int16_t)bits_of(x_K[k] * factor + 0x1.8p23f);
    return largest < INFINITY ? largest / levels : NAN;
}

/* Sums of products of ROWS rows with the COLUMNS channels of a panel of the weight, over `depth` input channels. */
static void multiply(const int16_t *q, long K, const int16_t *panel, long depth, int32_t sums[ROWS][COLUMNS]) {
#define START(i) \
    const int16_t *row##i = q + i * K; \
    Vector left##i = OP(set1_epi32)(0), right##i = left##i;
    EACH_ROW(START)
    for (long k = 0; k < depth; k += 2) {
        const Vector w_left = load(panel + k * COLUMNS), w_right = load(panel + k * COLUMNS + 2 * LANES);
#define ADD(i) \
    { \
        const Vector x = OP(set1_epi32)(load_pair(row##i + k)); \
        left##i = add_products(left##i, x, w_left); \
        right##i = add_products(right##i, x, w_right); \
    }
        EACH_ROW(ADD)
    }
#define STORE(i) \
    memcpy(sums[i], &left##i, sizeof left##i); \
    memcpy(sums[i] + LANES, &right##i, sizeof right##i);
    EACH_ROW(STORE)
}

/* The output channels of one panel, for M rows. Sums over AT_ONCE input channels fit 32 bits; they are added in float32. */
static void panel_product(const int16_t *q_MK, const float *scale_M, const int16_t *panel, const float *scale,
                          const float *bias, float *y, long M, long N, long K) {
    for (long start = 0; start < K; start += AT_ONCE) {
        const long depth = K - start < AT_ONCE ? K - start : AT_ONCE;
        for (long m = 0; m < M; m += ROWS) {
            int32_t sums[ROWS][COLUMNS];
            multiply(q_MK + m * K + start, K, panel + start * COLUMNS, depth, sums);
            for (long i = m; i < m + ROWS && i < M; i++) {
                float *out = y + i * N;
                for (long n = 0; n < COLUMNS; n++) {
                    const float sum = (start ? out[n] : 0) + (float)sums[i - m][n];
                    out[n] = start + depth < K ? sum : sum * (scale_M[i] * scale[n]) + bias[n];
                }
            }
        }
    }
}

/* q_MK, which has whole ROWS, and scale_M are scratch space for the quantized x; the products of what is not written in
   them, the last column of an odd number of channels and the last rows, meet zeros or are dropped. */
void linear(const float *x_MK, const int16_t *packed, const float *scale_N, const float *bias_N, float *y_MN,
            int16_t *q_MK, float *scale_M, long M, long N, long K, long channels, float levels, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long m = 0; m < M; m++) scale_M[m] = quantize(x_MK + m * channels, q_MK + m * K, channels, levels);
        for (long m = 0; m < M; m += BLOCK)
#pragma omp for schedule(guided) nowait /* with other programs beside it, one core may be much slower than the rest */
            for (long n = 0; n < N; n += COLUMNS)
                panel_product(q_MK + m * K, scale_M + m, packed + n * K, scale_N + n, bias_N + n, y_MN + m * N + n,
                              M - m < BLOCK ? M - m : BLOCK, N, K);
    }
}
