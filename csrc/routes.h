/* What comes back from each step to the one before, told apart by route and bin of lags.

   The pull-back is linear, so rows that share a bin are added before they go through a step. The
   program gives what comes back by each route, one behind the other. No step needs another one. */

struct routes_run {
  const struct routes *routes;
  struct runner runner;
  real *scratch;
  int64_t of_part, parts; /* who shares out the steps */
};

/* The rows of each bin at a step as one: how many bins have rows, which, and their exponents. */
static int64_t sum_bins(
    const struct routes *p, int64_t k, struct rows here, int64_t *bins, int64_t *tops) {
  int64_t count = 0;
  for (int64_t start = 0, end; start < p->rows; start = end) {
    const int64_t bin = p->places[start * p->steps + k];
    int64_t top = NO_EXPONENT;
    for (end = start; end < p->rows && p->places[end * p->steps + k] == bin; end++)
      top = most_of(top, p->exponents[end * p->steps + k]);
    if (top == NO_EXPONENT)
      continue;
    real *to = here.at + count * here.row, weights[ADDED];
    const real *rows[ADDED];
    int64_t some = 0;
    int add = 0;
    for (int64_t n = start; n < end; n++) {
      const int64_t exponent = p->exponents[n * p->steps + k];
      if (exponent != NO_EXPONENT) {
        rows[some] = (const real *)p->values + n * p->row + k * p->step;
        weights[some++] = (real)two_to(exponent - top);
      }
      if (some < ADDED && n + 1 < end)
        continue;
      add_some_rows(some, rows, weights, add, p->samples, p->size, to, here.sample);
      add = 1;
      some = 0;
    }
    bins[count] = bin;
    tops[count++] = top;
  }
  return count;
}

/* A row to where it is asked for, times factors if there are any; whether it is not all zeros. */
static int hand_out_way(const real *from, const real *factors, int64_t size, real *to) {
  int_vec most = {0};
  int64_t j = 0;
  for (; j + V <= size; j += V) {
    vec value = load(from + j);
    if (factors)
      value *= load(factors + j);
    store(to + j, value);
    most = larger(most, size_bits(value));
  }
  if (j < size) {
    vec value = load_some(from + j, size - j);
    if (factors)
      value *= load_some(factors + j, size - j);
    store_some(to + j, value, size - j);
    most = larger(most, size_bits(value));
  }
  return largest_of(most) != 0;
}

static void routes_of_step(
    const struct routes_run *run, struct work_rows *w, struct rows before, int64_t *bins,
    int64_t *tops, int64_t k) {
  const struct routes *p = run->routes;
  const int64_t B = p->samples, S = p->size, K = p->steps, sums = p->ways * p->bins;
  for (int64_t i = 0; i < sums; i++)
    p->units[i * K + k] = NO_EXPONENT;
  const int64_t count = sum_bins(p, k, w->registers[0], bins, tops);
  if (!count)
    return;
  through_step(&run->runner, w, before, p->first + k, 0, B, count, count <= FEW_ROWS);
  const real *passed = p->boundaries ? (const real *)p->boundaries[k] : 0;
  for (int64_t way = 0; way < p->ways; way++)
    for (int64_t i = 0; i < count; i++) {
      const int64_t sum = way * p->bins + bins[i];
      int some = 0;
      for (int64_t b = 0; b < B; b++)
        some |= hand_out_way(
            before.at + b * before.sample + i * before.row + way * S, passed ? passed + b * S : 0,
            S, (k ? (real *)p->sums + (sum * K + k - 1) * B * S : (real *)p->last + sum * B * S) +
                   b * S);
      if (some)
        p->units[sum * K + k] = tops[i];
    }
}

static void routes_parts(int64_t begin, int64_t end, void *context) {
  const struct routes_run *run = context;
  const struct routes *p = run->routes;
  const int64_t B = p->samples, M = p->bins, wide = odd_row(p->ways * p->size + V);
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    real *free_ = run->scratch + part * run->of_part;
    struct work_rows w = work_on(&run->runner, p->size, B, M, 0, &free_);
    const struct rows before = {taken(&free_, B * M * wide), M * wide, wide};
    int64_t *bins = (int64_t *)taken(&free_, 2 * M * (int64_t)(sizeof(int64_t) / sizeof(real)));
    for (int64_t k = part; k < p->steps; k += run->parts)
      routes_of_step(run, &w, before, bins, bins + M, k);
  }
  restore_denormals(control);
}

static int64_t routes(const struct routes *p) {
  struct routes_run run = {.routes = p, .runner = runner_of(&p->program)};
  const int64_t B = p->samples, M = p->bins;
  int64_t work = run.runner.work * M * B * p->steps;
  run.parts = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  if (run.parts > p->steps)
    run.parts = p->steps;
  run.of_part = of_work(&run.runner, p->size, B, M, 0) +
                padded_to(B * M * odd_row(p->ways * p->size + V), 64) +
                padded_to(2 * M * (int64_t)(sizeof(int64_t) / sizeof(real)), 64);
  void *raw;
  real *free_ = memory(run.runner.of_packed + run.parts * run.of_part, &raw);
  if (!free_)
    return 1;
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (run.parts < 2 || p->parallel(0, run.parts, 1, routes_parts, &run))
    routes_parts(0, run.parts, &run);
  free(raw);
  return 0;
}
