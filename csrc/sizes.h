/* How large the gradients are that rows of adjoints make of the parameters, step by step:

       || sum_b da_b (x) u_b ||^2 = sum_{b,b'} <da_b, da_b'> <u_b, u_b'>

   and how much of a given gradient is in them (pushing.h). da_b are the adjoints of some blocks side
   by side, which all parameters that follow from them share. Nothing is kept of them but these
   sums. */

#define TOGETHER 256 /* rows times samples that go through the nodes together */
#define CORNER (NR > 2 ? 4 : 3) /* a tile of products of samples, as registers allow */
#define TILE_SIZE (CORNER * CORNER)

struct sizes_run {
  const struct sizes_of_rows *sizes;
  struct runner runner;
  real *scratch;
  int64_t of_part, parts, rows, width; /* rows at a time; numbers of a row of the widest group */
  int64_t tiles, operands;             /* of products of samples; of all groups */
  real *weights; /* what products of samples are multiplied by, [step][group][tile][operand] */
  double *units; /* that these are in, [step][operand] */
  real *gradients; /* packed */
  int whole;       /* rows can be read where they lie */
};

/* What one row at a time needs. */
struct work_sizes {
  real *adjoints;     /* those of a group, [B in whole corners, width] */
  real *square, *own; /* for each operand of a group the lanes of two sums */
  real *pushed;       /* what a gradient changes of the state, for each operand, [U, B, row] */
  int64_t row;
  struct pushing pushing;
};

INLINE int64_t tiles_of(int64_t samples) {
  int64_t corners = (samples + CORNER - 1) / CORNER;
  return corners * (corners + 1) / 2;
}

/* <u_b, u_b'> */
INLINE double product_of_samples(const real *one, const real *other, int64_t size) {
  double sum[8] = {0};
  int64_t j = 0;
  for (; j + 8 <= size; j += 8)
    UNROLL for (int64_t i = 0; i < 8; i++) sum[i] += (double)one[j + i] * other[j + i];
  double total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  for (; j < size; j++)
    total += (double)one[j] * other[j];
  return total;
}

/* The same of all pairs of samples at a step, [B, B], each of which stands once. */
static void products_of_samples(
    const struct operand *u, int64_t step, int64_t samples, double *products) {
  const real *at = (const real *)u->at + step * u->step;
  for (int64_t a = 0; a < samples; a++)
    for (int64_t b = a; b < samples; b++)
      products[a * samples + b] =
          u->at ? product_of_samples(at + a * u->sample, at + b * u->sample, u->width) : 1;
}

/* The products <u_b, u_b'> of each operand as weights, in the order of `add_products`. Each pair of
   samples comes once, and so counts twice. The largest is brought into range. */
static void find_weights(const struct sizes_run *run, double *of) {
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples;
  real *weights = run->weights;
  double *unit = run->units;
  for (int64_t step = p->first; step < p->first + p->steps; step++) {
    const struct operand *operand = p->all_operands;
    for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++)
      for (int64_t u = 0; u < g->operands; u++, operand++) {
        products_of_samples(operand, step, B, of);
        double most = 0;
        for (int64_t b = 0; b < B; b++)
          most = of[b * B + b] > most ? of[b * B + b] : most;
        int exponent = 0;
        if (most > 0x1p-1000 && most < 0x1p+1000)
          frexp(most, &exponent);
        const double scale = ldexp(1, -exponent);
        *unit++ = ldexp(1, exponent);
        real *to = weights + u * TILE_SIZE;
        for (int64_t i = 0; i < B; i += CORNER)
          for (int64_t j = i; j < B; j += CORNER, to += g->operands * TILE_SIZE)
            for (int64_t a = i; a < i + CORNER; a++)
              for (int64_t b = j; b < j + CORNER; b++) {
                double counts = a > b || b >= B ? 0 : a < b ? 2 : 1;
                to[(a - i) * CORNER + b - j] = counts ? (real)(counts * of[a * B + b] * scale) : 0;
              }
        if (u == g->operands - 1)
          weights += run->tiles * g->operands * TILE_SIZE;
      }
  }
}

/* sum_{a,b} <row a, row b> weight[a, b] for each operand, and the part of it with a = b. What is
   read next is fetched meanwhile, so many bytes on with each vector. */
static void add_products(
    int64_t samples, const real *rows, int64_t row, int64_t vectors, int64_t operands,
    const real *weights, const char *next, int64_t bytes, real *square, real *own) {
  memset(square, 0, (size_t)(operands * V) * sizeof(real));
  memset(own, 0, (size_t)(operands * V) * sizeof(real));
  for (int64_t i = 0; i < samples; i += CORNER)
    for (int64_t j = i; j < samples; j += CORNER) {
      vec sum[CORNER][CORNER] = {{{0}}};
      const real *left = rows + i * row, *right = rows + j * row;
      for (int64_t v = 0; v < vectors; v++, left += V, right += V, next += bytes) {
        vec some[CORNER];
        __builtin_prefetch(next, 0, 2);
        UNROLL for (int64_t b = 0; b < CORNER; b++) some[b] = load(right + b * row);
        UNROLL for (int64_t a = 0; a < CORNER; a++) {
          vec one = load(left + a * row);
          UNROLL for (int64_t b = 0; b < CORNER; b++) sum[a][b] += one * some[b];
        }
      }
      for (int64_t u = 0; u < operands; u++, weights += TILE_SIZE) {
        vec total = load(square + u * V), itself = {0};
        UNROLL for (int64_t a = 0; a < CORNER; a++) {
          vec part = sum[a][0] * weights[a * CORNER];
          UNROLL for (int64_t b = 1; b < CORNER; b++) part += sum[a][b] * weights[a * CORNER + b];
          total += part;
          itself += sum[a][a] * weights[a * CORNER + a];
        }
        store(square + u * V, total);
        if (i == j)
          store(own + u * V, load(own + u * V) + itself);
      }
    }
}

/* The same of a single sample. */
static void add_square(
    const real *row, int64_t vectors, int64_t operands, const real *weights, real *square) {
  vec sum[4] = {{0}};
  int64_t v = 0;
  for (; v + 4 <= vectors; v += 4)
    UNROLL for (int64_t k = 0; k < 4; k++) {
      vec value = load(row + (v + k) * V);
      sum[k] += value * value;
    }
  for (; v < vectors; v++)
    sum[0] += load(row + v * V) * load(row + v * V);
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int64_t u = 0; u < operands; u++)
    store(square + u * V, sum[0] * weights[u * TILE_SIZE]);
}

/* sum_b <row b, pushed b> of some rows at a step and all operands, [U, N, K] from the place of the
   first row on; a tile of both at a time. */
static void find_inner_products(
    const struct sizes_of_rows *p, const real *values, int64_t rows, const real *pushed,
    int64_t operands, int64_t of_sample, double *inner) {
  const int64_t B = p->samples, S = p->size;
  for (int64_t n = 0; n < rows; n += CORNER)
    for (int64_t u = 0; u < operands; u += CORNER) {
      const real *left[CORNER], *right[CORNER]; /* the last ones again beyond the end */
      for (int64_t i = 0; i < CORNER; i++) {
        left[i] = values + (n + i < rows ? n + i : rows - 1) * p->row;
        right[i] = pushed + (u + i < operands ? u + i : operands - 1) * B * of_sample;
      }
      vec sum[CORNER][CORNER] = {{{0}}};
      for (int64_t b = 0; b < B; b++)
        for (int64_t j = 0; j < S; j += V) {
          vec some[CORNER];
          UNROLL for (int64_t c = 0; c < CORNER; c++) some[c] = load(right[c] + b * of_sample + j);
          UNROLL for (int64_t a = 0; a < CORNER; a++) {
            const real *at = left[a] + b * S + j;
            vec one = j + V <= S ? load(at) : load_some(at, S - j);
            UNROLL for (int64_t c = 0; c < CORNER; c++) sum[a][c] += one * some[c];
          }
        }
      for (int64_t a = 0; a < CORNER && n + a < rows; a++)
        for (int64_t c = 0; c < CORNER && u + c < operands; c++)
          inner[((u + c) * p->rows + n + a) * p->steps] = sum_of(sum[a][c]);
    }
}

/* One row of all samples at one step: what its adjoints make of the operands of every group. */
static void sizes_of_row(
    const struct sizes_run *run, const struct work_rows *rows, const struct work_sizes *w,
    int64_t n, int64_t k, int64_t at, const real *next) {
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, step = p->first + k;
  const double doubt = 16384 * (sizeof(real) == 4 ? 0x1p-23 : 0x1p-52);
  const struct segment *s = p->of_groups;
  const real *weights = run->weights + k * run->tiles * run->operands * TILE_SIZE;
  const double *unit = run->units + k * run->operands;
  int64_t operand = 0;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    const int64_t P = g->blocks * g->height;
    side_by_side(g, s, rows, at, step, B, w->adjoints, run->width);
    s += g->segments;
    const int64_t padded = padded_to(P, V);
    for (int64_t b = 0; b < B && P < padded; b++)
      memset(w->adjoints + b * run->width + P, 0, (size_t)(padded - P) * sizeof(real));
    if (B == 1)
      add_square(w->adjoints, padded / V, g->operands, weights, w->square);
    else {
      const int64_t bytes = B * p->size * (int64_t)sizeof(real) / (run->tiles * padded / V);
      add_products(
          B, w->adjoints, run->width, padded / V, g->operands, weights, (const char *)next, bytes,
          w->square, w->own);
    }
    weights += run->tiles * g->operands * TILE_SIZE;
    for (int64_t u = 0; u < g->operands; u++, operand++) {
      const int64_t to = (operand * p->rows + n) * p->steps + k;
      const double square = sum_of(load(w->square + u * V));
      p->squares[to] = square * unit[operand];
      p->cancels[to] = B > 1 && square < doubt * ((double)B * sum_of(load(w->own + u * V)));
    }
  }
}

/* Some rows at a step, and what is read behind them. */
static void sizes_of_some(
    const struct sizes_run *run, struct work_rows *rows, const struct rows *copied,
    const struct work_sizes *w, int64_t k, int64_t n, int64_t count, const real *next) {
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, S = p->size;
  const real *values = (const real *)p->values + n * p->row + k * p->step;
  if (p->gradients)
    find_inner_products(
        p, values, count, w->pushed, run->operands, w->row, p->inner + n * p->steps + k);
  if (!p->squares)
    return;
  if (run->whole) /* they are only read */
    rows->registers[0] = (struct rows){(real *)(uintptr_t)values, S, p->row};
  else
    for (int64_t b = 0; b < B; b++)
      for (int64_t row = 0; row < count; row++)
        memcpy(
            copied->at + b * copied->sample + row * copied->row, values + row * p->row + b * S,
            (size_t)S * sizeof(real));
  through_step(
      &run->runner, rows, rows->registers[0], p->first + k, 0, B, count,
      p->rows <= FEW_ROWS || !p->program.products);
  for (int64_t row = 0; row < count; row++)
    sizes_of_row(run, rows, w, n + row, k, row, next + row * p->row);
}

/* A part of the steps, or of the rows where there are fewer steps. */
static void sizes_parts(int64_t begin, int64_t end, void *context) {
  const struct sizes_run *run = context;
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, S = p->size, corners = padded_to(B, CORNER);
  const int64_t parts = run->parts, by_rows = p->steps < parts;
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    const int64_t first = by_rows ? p->rows * part / parts : 0;
    const int64_t last = by_rows ? p->rows * (part + 1) / parts : p->rows;
    const int64_t stop = by_rows ? p->steps : p->steps * (part + 1) / parts;
    real *free_ = run->scratch + part * run->of_part;
    struct work_rows rows = work_on(&run->runner, S, B, run->rows, 1, &free_);
    const struct rows copied = rows.registers[0];
    struct work_sizes w = {.row = padded_to(S, V)};
    w.adjoints = taken(&free_, corners * run->width);
    w.square = taken(&free_, run->operands * V);
    w.own = taken(&free_, run->operands * V);
    memset(w.adjoints, 0, (size_t)(corners * run->width) * sizeof(real));
    if (p->gradients) {
      w.pushed = taken(&free_, run->operands * B * w.row);
      memset(w.pushed, 0, (size_t)(run->operands * B * w.row) * sizeof(real));
      w.pushing = pushing_with(p, run->gradients, run->width, &free_);
    }
    for (int64_t k = by_rows ? 0 : p->steps * part / parts; k < stop; k++) {
      if (p->gradients)
        push_all(p, p->first + k, &w.pushing, w.pushed, w.row);
      int64_t end = last; /* rows that have not entered yet stand behind the others */
      while (p->lags && end > first && p->lags[(end - 1) * p->steps + k] < 0)
        end--;
      for (int64_t n = first; n < end; n += run->rows) {
        const int64_t here = end - n < run->rows ? end - n : run->rows;
        /* Those that follow: of this step, or the first ones of the next, if there is one. */
        const int64_t on = n + here < end ? (n + here) * p->row + k * p->step
                                           : first * p->row + (k + (k + 1 < stop)) * p->step;
        sizes_of_some(run, &rows, &copied, &w, k, n, here, (const real *)p->values + on);
      }
    }
  }
  restore_denormals(control);
}

static int64_t sizes(const struct sizes_of_rows *p) {
  struct sizes_run run = {.sizes = p, .runner = runner_of(&p->program), .whole = p->size % V == 0};
  const int64_t B = p->samples, N = p->rows, wide = (int64_t)(sizeof(double) / sizeof(real));
  const struct operand *u = p->all_operands;
  int64_t work = 0, of_gradients = 0;
  run.tiles = p->squares ? tiles_of(B) : 0;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    run.width = most_of(run.width, odd_row(g->blocks * g->height + V));
    run.operands += g->operands;
    run.whole &= g->height % V == 0;
    work += g->blocks * g->height * B;
    for (const struct operand *end = u + g->operands; p->gradients && u < end; u++)
      of_gradients += of_gradient(g, u);
  }
  for (const struct node *node = p->program.all_nodes;
       node < p->program.all_nodes + p->program.nodes; node++)
    run.whole &= node->width % V == 0;
  for (int64_t i = 0; i < p->program.products; i++)
    run.whole &= p->program.all_products[i].height % V == 0;
  work = (work + run.runner.work) * N * B * p->steps;
  run.parts = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  if (run.parts > most_of(N, p->steps))
    run.parts = most_of(N, p->steps);
  int64_t most = p->steps < run.parts ? (N + run.parts - 1) / run.parts : N;
  run.rows = p->program.products ? most : (TOGETHER + B - 1) / B;
  if (run.rows > most)
    run.rows = most;
  run.of_part = of_work(&run.runner, p->size, B, run.rows, 1) +
                padded_to(B, CORNER) * run.width + 2 * run.operands * V + 3 * 64;
  if (p->gradients)
    run.of_part += run.operands * B * padded_to(p->size, V) + of_pushing(p, run.width) + 64;
  const int64_t of_weights = padded_to(p->steps * run.tiles * run.operands * TILE_SIZE, 64);
  const int64_t of_units = padded_to(p->steps * run.operands, 64) * wide;
  const int64_t of_products = padded_to(B * B, 64) * wide;
  void *raw;
  real *free_ = memory(
      run.runner.of_packed + of_weights + of_units + of_products + of_gradients +
          run.parts * run.of_part,
      &raw);
  if (!free_)
    return 1;
  pack_all(&run.runner, &free_);
  run.weights = taken(&free_, of_weights);
  run.units = (double *)taken(&free_, of_units);
  double *products = (double *)taken(&free_, of_products);
  if (p->squares)
    find_weights(&run, products);
  run.gradients = taken(&free_, of_gradients);
  if (p->gradients)
    pack_gradients(p, run.gradients);
  run.scratch = free_;
  if (run.parts < 2 || p->parallel(0, run.parts, 1, sizes_parts, &run))
    sizes_parts(0, run.parts, &run);
  free(raw);
  return 0;
}
