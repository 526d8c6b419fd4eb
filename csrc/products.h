/* Matrix products for a few rows and a weight matrix that is used at every step.

   The weight matrix is packed once into panels of NR vectors of columns, [panel][k][columns]. A tile
   of up to MR rows and NR vectors of the result stays in registers while k runs. */

typedef void (*tile_function)(
    int64_t depth, const real *a, int64_t a_row, int64_t a_k, const real *b, int64_t b_k,
    const real *start, int64_t start_row, real *c, int64_t c_row);

/* c = start + a b for a tile; start is a matrix, a row for all rows (start_row = 0), or NULL. */
#define TILE(M, N)                                                                                 \
  static void tile_##M##_##N(                                                                \
      int64_t depth, const real *restrict a, int64_t a_row, int64_t a_k, const real *restrict b,   \
      int64_t b_k, const real *start, int64_t start_row, real *c, int64_t c_row) {                 \
    vec sum[M][N];                                                                                 \
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int n = 0; n < N; n++) sum[m][n] =              \
        start ? load(start + m * start_row + n * V) : (vec){0};                                    \
    for (int64_t k = 0; k < depth; k++, a += a_k, b += b_k) {                                      \
      vec right[N];                                                                                \
      UNROLL for (int n = 0; n < N; n++) right[n] = load(b + n * V);                               \
      UNROLL for (int m = 0; m < M; m++) {                                                         \
        vec left = all(a[m * a_row]);                                                              \
        UNROLL for (int n = 0; n < N; n++) sum[m][n] += left * right[n];                           \
      }                                                                                            \
    }                                                                                              \
    UNROLL for (int m = 0; m < M; m++) UNROLL for (int n = 0; n < N; n++)                          \
        store(c + m * c_row + n * V, sum[m][n]);                                                   \
  }
#define TILES(M) TILE(M, 1) TILE(M, 2) TILE(M, 3) TILE(M, 4)

TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)

/* Where it is one vector wide, more rows: the next sum of one waits for the last. */
#define TALL (2 * MR)
TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1)

#define ROW(M) {tile_##M##_1, tile_##M##_2, tile_##M##_3, tile_##M##_4}
#define NARROW(M) {tile_##M##_1, 0, 0, 0}
static const tile_function tiles[TALL][4] = {
    ROW(1),    ROW(2),    ROW(3),    ROW(4),     ROW(5),     ROW(6),
    NARROW(7), NARROW(8), NARROW(9), NARROW(10), NARROW(11), NARROW(12),
};

/* How many tiles of so many vectors the rows are split into. */
INLINE int64_t tile_count(int64_t rows, int64_t width) {
  int64_t most = width == 1 ? TALL : MR;
  return (rows + most - 1) / most;
}

/* Rows first .. last of tile number i when `rows` are split evenly into so many. */
INLINE int64_t tile_start(int64_t rows, int64_t count, int64_t i) { return rows * i / count; }

/* c [rows, vectors] = start + a b, of rows first_k .. first_k + depth - 1 of all that b is packed
   for. c and start are padded to whole vectors. */
static void product_of_part(
    int64_t rows, int64_t vectors, int64_t depth, const real *a, int64_t a_row, const real *packed,
    int64_t packed_depth, int64_t first_k, const real *start, int64_t start_row, real *c,
    int64_t c_row) {
  int64_t block = 0;
  do { /* once also for depth 0, where c = start */
    int64_t here = depth - block < DEPTH ? depth - block : DEPTH;
    for (int64_t first = 0; first < vectors; first += NR) {
      int64_t width = vectors - first < NR ? vectors - first : NR;
      int64_t count = tile_count(rows, width);
      const real *b = packed + first * V * packed_depth + (first_k + block) * width * V;
      for (int64_t i = 0; i < count; i++) {
        int64_t row = tile_start(rows, count, i);
        int64_t height = tile_start(rows, count, i + 1) - row;
        const real *from = start ? start + row * start_row + first * V : 0;
        tiles[height - 1][width - 1](
            here, a + row * a_row + block, a_row, 1, b, width * V, from, start_row,
            c + row * c_row + first * V, c_row);
      }
    }
    start = c;
    start_row = c_row;
    block += here;
  } while (block < depth);
}

/* The same with all that b is packed for. */
INLINE void product(
    int64_t rows, int64_t vectors, int64_t depth, const real *a, int64_t a_row, const real *packed,
    const real *start, int64_t start_row, real *c, int64_t c_row) {
  product_of_part(
      rows, vectors, depth, a, a_row, packed, depth, 0, start, start_row, c, c_row);
}

/* c [columns, vectors] (+)= a^T b over the rows of both: the gradient of a weight matrix. A few
   columns of a at a time, which stay in the cache while all of b passes. */
static void product_over_rows(
    int64_t rows, int64_t columns, int64_t vectors, const real *a, int64_t a_row, const real *b,
    int64_t b_row, int add, real *c, int64_t c_row) {
  for (int64_t begin = 0; begin < columns; begin += COLUMNS) {
    int64_t here = columns - begin < COLUMNS ? columns - begin : COLUMNS;
    for (int64_t first = 0; first < vectors; first += NR) {
      int64_t width = vectors - first < NR ? vectors - first : NR;
      int64_t count = tile_count(here, width);
      for (int64_t i = 0; i < count; i++) {
        int64_t column = begin + tile_start(here, count, i);
        int64_t height = begin + tile_start(here, count, i + 1) - column;
        real *to = c + column * c_row + first * V;
        tiles[height - 1][width - 1](
            rows, a + column, 1, a_row, b + first * V, b_row, add ? to : 0, c_row, to, c_row);
      }
    }
  }
}

/* How rows or columns are grouped: blocks of `size`, of which each is padded with zeros. */
struct grouped {
  int64_t blocks, size, padded;
};

/* Pack the matrix whose entry (k, n) is source[k * by_k + n * by_n]. */
static void pack(
    real *to, const real *source, int64_t by_k, int64_t by_n, struct grouped ks,
    struct grouped ns) {
  int64_t vectors = ns.blocks * ns.padded / V;
  for (int64_t first = 0; first < vectors; first += NR) {
    int64_t width = (vectors - first < NR ? vectors - first : NR) * V;
    const real *column[NR * V];
    for (int64_t n = 0; n < width; n++) {
      int64_t block = (first * V + n) / ns.padded, at = (first * V + n) % ns.padded;
      column[n] = at < ns.size ? source + (block * ns.size + at) * by_n : 0;
    }
    for (int64_t block = 0; block < ks.blocks; block++)
      for (int64_t at = 0; at < ks.padded; at++, to += width) {
        int64_t k = (block * ks.size + at) * by_k;
        for (int64_t n = 0; n < width; n++)
          to[n] = at < ks.size && column[n] ? column[n][k] : 0;
      }
  }
}
