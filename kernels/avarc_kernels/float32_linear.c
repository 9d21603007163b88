/* x W^T + b in float32: float32_linear.py has the contract, and compiles this for its processor.

   M rows of x, K input channels, N output channels. As in GotoBLAS (K. Goto and R. van de Geijn, Anatomy of
   High-Performance Matrix Multiplication, 2008), both matrices are copied in the order in which they are multiplied:
   ROWS rows of x, or COLUMNS of W, with the numbers of one channel beside each other. */

enum { LANES = 8, COLUMNS = 2 * LANES, ROWS = 6 }; /* registers of AVX2 hold the sums of ROWS by COLUMNS, and three more */
enum { DEPTH = 256 }; /* channels at a time: those of a panel, COLUMNS rows of W, are half of a core's first cache */

/* In memory at any address, and of whatever other type is there. */
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

/* The sums are a variable each, because compilers may not keep an array in registers. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

static inline long least(long a, long b) { return a < b ? a : b; }

/* Four rows of numbers become four columns, of a matrix that is `width` wide. */
static inline void transpose_four(const float *rows, long stride, long depth, long width, float *columns) {
    long k = 0;
    for (; k + 4 <= depth; k += 4) {
        const float *from = rows + k;
        const Four a = *(const Four *)from, b = *(const Four *)(from + stride);
        const Four c = *(const Four *)(from + 2 * stride), d = *(const Four *)(from + 3 * stride);
        const Four ab_01 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_23 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Four cd_01 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_23 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        float *to = columns + k * width;
        *(Four *)to = __builtin_shufflevector(ab_01, cd_01, 0, 1, 4, 5);
        *(Four *)(to + width) = __builtin_shufflevector(ab_01, cd_01, 2, 3, 6, 7);
        *(Four *)(to + 2 * width) = __builtin_shufflevector(ab_23, cd_23, 0, 1, 4, 5);
        *(Four *)(to + 3 * width) = __builtin_shufflevector(ab_23, cd_23, 2, 3, 6, 7);
    }
    for (; k < depth; k++)
        for (long i = 0; i < 4; i++) columns[k * width + i] = rows[i * stride + k];
}

/* `width` rows beside each other; those after the first `count` are zeros. */
static inline void pack(const float *rows, long stride, long count, long depth, long width, float *packed) {
    long i = 0;
    for (; i + 4 <= least(count, width); i += 4) transpose_four(rows + i * stride, stride, depth, width, packed + i);
    for (long k = 0; k < depth && i < width; k++)
        for (long j = i; j < width; j++) packed[k * width + j] = j < count ? rows[j * stride + k] : 0;
}

/* y = start + products of packed rows with a panel, over `depth` channels. */
static inline void multiply(const float *x, const float *panel, long depth, const float *start, long start_stride,
                            float *y, long y_stride) {
#define ZERO(i) \
    Vector left##i = {0}, right##i = {0}; \
    __builtin_prefetch(y + i * y_stride, 1);
    EACH_ROW(ZERO)
#pragma GCC unroll 4
    for (long k = 0; k < depth; k++) {
        const Vector *w = (const Vector *)(panel + k * COLUMNS);
        const Vector w_left = w[0], w_right = w[1];
#define ADD(i) \
    left##i += x[k * ROWS + i] * w_left; \
    right##i += x[k * ROWS + i] * w_right;
        EACH_ROW(ADD)
    }
#define STORE(i) \
    *(Vector *)(y + i * y_stride) = *(const Vector *)(start + i * start_stride) + left##i; \
    *(Vector *)(y + i * y_stride + LANES) = *(const Vector *)(start + i * start_stride + LANES) + right##i;
    EACH_ROW(STORE)
}

/* The same for fewer rows or columns than packed ones: beside the last ones of y is what must not be written. */
static void multiply_edge(const float *x, const float *panel, long depth, const float *start, long start_stride,
                          float *y, long y_stride, long rows, long columns) {
    float tile[ROWS * COLUMNS] = {0};
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < columns; n++) tile[i * COLUMNS + n] = start[i * start_stride + n];
    multiply(x, panel, depth, tile, COLUMNS, tile, COLUMNS);
    for (long i = 0; i < rows; i++)
        for (long n = 0; n < columns; n++) y[i * y_stride + n] = tile[i * COLUMNS + n];
}

/* packed: scratch space for `DEPTH` channels of x, in whole ROWS. */
void linear(const float *x_MK, const float *weight_NK, const float *bias_N, float *y_MN, float *packed, long M, long N,
            long K, int threads) {
#pragma omp parallel num_threads(threads)
    for (long k = 0; k < K; k += DEPTH) {
        float panel[DEPTH * COLUMNS] __attribute__((aligned(64)));
        const long depth = least(K - k, DEPTH);
#pragma omp for schedule(static)
        for (long m = 0; m < M; m += ROWS)
            pack(x_MK + m * K + k, K, least(M - m, ROWS), depth, ROWS, packed + m * depth);
#pragma omp for schedule(guided) /* with other programs beside it, one core may be much slower than the rest */
        for (long n = 0; n < N; n += COLUMNS) {
            const long columns = least(N - n, COLUMNS);
            pack(weight_NK + n * K + k, K, columns, depth, COLUMNS, panel);
            for (long m = 0; m < M; m += ROWS) {
                const long rows = least(M - m, ROWS);
                float *y = y_MN + m * N + n;
                const float *start = k ? y : bias_N + n;
                if (rows == ROWS && columns == COLUMNS)
                    multiply(packed + m * depth, panel, depth, start, k ? N : 0, y, N);
                else
                    multiply_edge(packed + m * depth, panel, depth, start, k ? N : 0, y, N, rows, columns);
            }
        }
    }
}

int rows(void) { return ROWS; }
int depth(void) { return DEPTH; }
