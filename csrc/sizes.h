/* How large the gradients are that rows of adjoints make of the parameters, step by step:

       || sum_b da_b (x) u_b ||^2 = sum_{b,b'} <da_b, da_b'> <u_b, u_b'>

   da_b are the adjoints of some blocks side by side, which all parameters that follow from them
   share. Nothing is kept of them but these sums. */

#define TOGETHER 32 /* rows times samples that go through the nodes together */
#define CORNER 4    /* a tile of products of samples */

struct sizes_run {
  const struct sizes_of_rows *sizes;
  struct runner runner;
  real *scratch;
  int64_t of_part, parts, rows, width; /* rows at a time; numbers of a row of the widest group */
};

INLINE real sum_of(vec x) {
  real lanes[V];
  store(lanes, x);
  UNROLL for (int64_t half = V / 2; half > 0; half /= 2)
    for (int64_t k = 0; k < half; k++)
      lanes[k] += lanes[k + half];
  return lanes[0];
}

/* products[i, j] = <row i, row j> for i <= j, of rows that come in whole corners. */
static void products_of_rows(
    int64_t count, const real *rows, int64_t row, int64_t vectors, double *products) {
  if (count == 1) {
    vec sum[4] = {{0}};
    int64_t v = 0;
    for (; v + 4 <= vectors; v += 4)
      UNROLL for (int64_t k = 0; k < 4; k++) {
        vec value = load(rows + (v + k) * V);
        sum[k] += value * value;
      }
    for (; v < vectors; v++)
      sum[0] += load(rows + v * V) * load(rows + v * V);
    products[0] = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    return;
  }
  for (int64_t i = 0; i < count; i += CORNER)
    for (int64_t j = i; j < count; j += CORNER) {
      vec sum[CORNER][CORNER] = {{{0}}};
      const real *left = rows + i * row, *right = rows + j * row;
      for (int64_t v = 0; v < vectors; v++, left += V, right += V) {
        vec some[CORNER];
        UNROLL for (int64_t b = 0; b < CORNER; b++) some[b] = load(right + b * row);
        UNROLL for (int64_t a = 0; a < CORNER; a++) {
          vec one = load(left + a * row);
          UNROLL for (int64_t b = 0; b < CORNER; b++) sum[a][b] += one * some[b];
        }
      }
      for (int64_t a = 0; a < CORNER && i + a < count; a++)
        for (int64_t b = 0; b < CORNER && j + b < count; b++)
          if (i + a <= j + b)
            products[(i + a) * count + j + b] = sum_of(sum[a][b]);
    }
}

/* One row of all samples at one step: what its adjoints make of the operands of every group. */
static void sizes_of_row(
    const struct sizes_run *run, const struct work_rows *w, int64_t n, int64_t k, int64_t at,
    real *adjoints, double *products) {
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, step = p->first + k;
  const double doubt = 16384 * (sizeof(real) == 4 ? 0x1p-23 : 0x1p-52);
  const struct segment *s = p->of_groups;
  int64_t operand = 0;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    const int64_t P = g->blocks * g->height;
    side_by_side(g, s, w, at, step, B, adjoints, run->width);
    s += g->segments;
    const int64_t padded = padded_to(P, V);
    for (int64_t b = 0; b < B && P < padded; b++)
      memset(adjoints + b * run->width + P, 0, (size_t)(padded - P) * sizeof(real));
    products_of_rows(B, adjoints, run->width, padded / V, products);
    for (int64_t u = 0; u < g->operands; u++, operand++) {
      const double *of = p->operands + (operand * p->all_steps + step) * B * B;
      double square = 0, own = 0;
      for (int64_t a = 0; a < B; a++) {
        own += products[a * B + a] * of[a * B + a];
        for (int64_t b = a + 1; b < B; b++)
          square += products[a * B + b] * of[a * B + b];
      }
      square = 2 * square + own;
      const int64_t to = (operand * p->rows + n) * p->steps + k;
      p->squares[to] = square;
      p->cancels[to] = B > 1 && square < doubt * ((double)B * own);
    }
  }
}

static void sizes_parts(int64_t begin, int64_t end, void *context) {
  const struct sizes_run *run = context;
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, S = p->size;
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    int64_t first = p->rows * part / run->parts, last = p->rows * (part + 1) / run->parts;
    real *free_ = run->scratch + part * run->of_part;
    struct work_rows w = work_on(&run->runner, S, B, run->rows, 1, &free_);
    real *adjoints = taken(&free_, padded_to(B, CORNER) * run->width);
    memset(adjoints, 0, (size_t)(padded_to(B, CORNER) * run->width) * sizeof(real));
    double *products = (double *)taken(&free_, B * B * (int64_t)(sizeof(double) / sizeof(real)));
    for (; first < last; first += run->rows) {
      int64_t rows = last - first < run->rows ? last - first : run->rows;
      for (int64_t k = 0; k < p->steps; k++) {
        for (int64_t b = 0; b < B; b++)
          for (int64_t n = 0; n < rows; n++)
            memcpy(
                w.registers[0].at + b * w.registers[0].sample + n * w.registers[0].row,
                (const real *)p->values + (first + n) * p->row + k * p->step + b * S,
                (size_t)S * sizeof(real));
        through_step(
            &run->runner, &w, w.registers[0], p->first + k, 0, B, rows, p->rows <= FEW_ROWS);
        for (int64_t n = 0; n < rows; n++)
          sizes_of_row(run, &w, first + n, k, n, adjoints, products);
      }
    }
  }
  restore_denormals(control);
}

static int64_t sizes(const struct sizes_of_rows *p) {
  struct sizes_run run = {.sizes = p, .runner = runner_of(&p->program)};
  const int64_t B = p->samples, N = p->rows;
  int64_t work = 0;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    run.width = most_of(run.width, odd_row(g->blocks * g->height + V));
    work += g->blocks * g->height * B;
  }
  work = (work + run.runner.work) * N * B * p->steps;
  run.parts = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  if (run.parts > N)
    run.parts = N;
  int64_t most = (N + run.parts - 1) / run.parts;
  run.rows = p->program.products ? most : (TOGETHER + B - 1) / B;
  if (run.rows > most)
    run.rows = most;
  run.of_part = of_work(&run.runner, p->size, B, run.rows, 1) +
                padded_to(B, CORNER) * run.width + 2 * B * B + 128;
  void *raw;
  real *free_ = memory(run.runner.of_packed + run.parts * run.of_part, &raw);
  if (!free_)
    return 1;
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (run.parts < 2 || p->parallel(0, run.parts, 1, sizes_parts, &run))
    sizes_parts(0, run.parts, &run);
  free(raw);
  return 0;
}
