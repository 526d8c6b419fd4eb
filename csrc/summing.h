/* Rows on scales of their own: how they are kept in range, and how some of them become one.

   Where all that is asked of the rows of a scan are sums of them, each step of a sample is summed
   while it is at hand, and no row is written anywhere. A row is in units of its own in each sample
   then, so that samples need to know nothing of each other; in the end those of a sum are brought to
   the largest of them. */

#define CENTRE 32 /* these as in engine/scaling.py and engine/adjoint.py */
#define SLACK 24
#define AHEAD 20

/* The power of two that brings a row of this squared norm back into range (engine/scaling.py), to
   the end of it that is farther from where it went, or as near as a power of two itself can; 0 for a
   row that is inside, or without a norm. */
INLINE int64_t into_range(double square) {
  const int64_t farthest = sizeof(real) == 4 ? 126 : 1022;
  const double least = ldexp(1, 2 * (CENTRE - SLACK)), most = ldexp(1, 2 * (CENTRE + SLACK));
  if ((square >= least && square <= most) || !(square > 0) || !isfinite(square))
    return 0;
  int exponent;
  frexp(square, &exponent);
  const int64_t by = (square < least ? CENTRE + AHEAD : CENTRE - AHEAD) - exponent / 2;
  return by < farthest ? by : farthest;
}

/* 2^exponent, put together from its bits; 0 and infinity beyond ordinary numbers. */
INLINE double two_to(int64_t exponent) {
  const int64_t biased = exponent < -1022 ? 0 : exponent > 1023 ? 2047 : exponent + 1023;
  const uint64_t bits = (uint64_t)biased << 52;
  double found;
  memcpy(&found, &bits, sizeof found);
  return found;
}

/* to [B, .] (+)= the sum of some rows at one step, each times a weight. */
INLINE void add_rows(
    int64_t count, const real *const *rows, const real *weights, int add, int64_t samples,
    int64_t size, real *to, int64_t to_row) {
  for (int64_t b = 0; b < samples; b++, to += to_row) {
    int64_t j = 0;
    for (; j + V <= size; j += V) {
      vec sum = add ? load(to + j) : (vec){0};
      for (int64_t n = 0; n < count; n++)
        sum += all(weights[n]) * load(rows[n] + b * size + j);
      store(to + j, sum);
    }
    if (j == size)
      continue;
    vec sum = add ? load_some(to + j, size - j) : (vec){0};
    for (int64_t n = 0; n < count; n++)
      sum += all(weights[n]) * load_some(rows[n] + b * size + j, size - j);
    store_some(to + j, sum, size - j);
  }
}

#define ADDED 4 /* rows that are read side by side */

/* Up to ADDED rows likewise. */
static void add_some_rows(
    int64_t count, const real *const *rows, const real *weights, int add, int64_t samples,
    int64_t size, real *to, int64_t to_row) {
  if (count == 4)
    add_rows(4, rows, weights, add, samples, size, to, to_row);
  else if (count == 3)
    add_rows(3, rows, weights, add, samples, size, to, to_row);
  else if (count == 2)
    add_rows(2, rows, weights, add, samples, size, to, to_row);
  else if (count == 1)
    add_rows(1, rows, weights, add, samples, size, to, to_row);
}

INLINE void multiply(real *row, int64_t size, real by) {
  for (int64_t j = 0; j < size; j++)
    row[j] *= by;
}

/* The sum of the squares of a row. */
INLINE double square_of(const real *row, int64_t size) {
  vec sum[4] = {{0}};
  int64_t j = 0;
  for (; j + 4 * V <= size; j += 4 * V)
    UNROLL for (int64_t k = 0; k < 4; k++) {
      vec value = load(row + j + k * V);
      sum[k] += value * value;
    }
  for (; j < size; j += V) {
    vec value = load_some(row + j, size - j);
    sum[0] += value * value;
  }
  return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* What is known of the rows of a sample: the exponents of what they are in units of, beside those
   that they came in, and whether they are not 0. */
struct scales {
  int64_t *units;
  uint8_t *there;
};

/* Bring rows of a sample into range; returns whether all are finite. */
static int bring_into_range(
    const struct rows *rows, int64_t count, int64_t size, const struct scales *scales) {
  const int64_t far = sizeof(real) == 4 ? 64 : 512; /* to where squares are not 0 */
  int finite = 1;
  for (int64_t n = 0; n < count; n++) {
    real *row = rows->at + n * rows->row;
    const double square = square_of(row, size);
    int64_t by = into_range(square);
    scales->there[n] = square != 0 || !all_zero(row, 1, size, size);
    if (square == 0 && scales->there[n])
      by = far;
    if (by) {
      multiply(row, size, (real)ldexp(1, (int)by));
      scales->units[n] -= by;
    }
    finite &= isfinite(square) != 0;
  }
  return finite;
}

/* Rows of a sample at step k, each added to its sum, and the exponents of these, [sums, K] from step
   k on. The rows are numbers first, first + 1, ... */
static void sum_sample(
    const struct scan *p, const struct rows *rows, int64_t first, int64_t count, int64_t k,
    const struct scales *scales, int64_t *tops, real *sums) {
  const int64_t K = p->steps, S = p->size, row_of_sums = K * p->samples * S;
  const int64_t *places = p->places + first * K + k;
  for (int64_t m = 0; m < p->sums; m++) {
    tops[m * K] = NO_EXPONENT;
    memset(sums + m * row_of_sums, 0, (size_t)S * sizeof(real));
  }
  for (int64_t n = 0; n < count; n++)
    if (scales->there[n] && places[n * K] >= 0) {
      int64_t *top = tops + places[n * K] * K;
      *top = most_of(*top, p->units[first + n] + scales->units[n]);
    }
  const real *some[ADDED];
  real weights[ADDED];
  int64_t found = 0, place = 0;
  for (int64_t n = 0; n <= count; n++) {
    if (n < count && (!scales->there[n] || places[n * K] < 0))
      continue;
    if (found == ADDED || (found && (n == count || places[n * K] != place))) {
      add_some_rows(found, some, weights, 1, 1, S, sums + place * row_of_sums, S);
      found = 0;
    }
    if (n == count)
      break;
    place = places[n * K];
    some[found] = rows->at + n * rows->row;
    weights[found++] = (real)two_to(p->units[first + n] + scales->units[n] - tops[place * K]);
  }
}

/* Sums [number, K, B, S] that each sample has in units of its own, in those of the largest one; from
   one to the next there are `of_sum` numbers. Other parts of the rows have theirs in `more`, one
   behind the other, which are added. */
static void join_sums(
    int64_t parts, int64_t samples, int64_t number, int64_t steps, int64_t size,
    const int64_t *units, real *sums, int64_t of_sum, const real *more, int64_t *joined) {
  const int64_t count = number * steps;
  for (int64_t i = 0; i < count; i++) {
    int64_t top = NO_EXPONENT;
    for (int64_t n = 0; n < parts * samples; n++)
      top = most_of(top, units[n * count + i]);
    joined[i] = top;
    for (int64_t n = 0; n < parts * samples; n++) {
      const int64_t unit = units[n * count + i], b = n % samples;
      const real scale = (real)two_to(unit - top);
      real *to = sums + i / steps * of_sum + (i % steps * samples + b) * size;
      if (n >= samples && unit != NO_EXPONENT) {
        const real *from = more + (((n / samples - 1) * count + i) * samples + b) * size;
        add_rows(1, &from, &scale, 1, 1, size, to, size);
      } else if (n < samples && unit == NO_EXPONENT)
        memset(to, 0, (size_t)size * sizeof(real));
      else if (n < samples && unit != top)
        multiply(to, size, scale);
    }
  }
}
