/* How large the gradients are that rows of adjoints make of the parameters, step by step:

       || sum_b da_b (x) u_b ||^2 = sum_{b,b'} <da_b, da_b'> <u_b, u_b'>

   and how much of a given gradient G is in them:

       < sum_b da_b (x) u_b, G > = sum_b < da_b, G u_b >

   da_b are the adjoints of some blocks side by side, which all parameters that follow from them
   share. Nothing is kept of them but these sums. */

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
  int whole;     /* rows can be read where they lie */
};

/* What one row at a time needs. */
struct work_sizes {
  real *adjoints;     /* those of a group, [B in whole corners, width] */
  real *square, *own; /* for each operand of a group the lanes of two sums */
};

INLINE int64_t tiles_of(int64_t samples) {
  int64_t corners = (samples + CORNER - 1) / CORNER;
  return corners * (corners + 1) / 2;
}

/* The products <u_b, u_b'> of each operand as weights, in the order of `add_products`. Each pair of
   samples comes once, and so counts twice. The largest is brought into range. */
static void find_weights(const struct sizes_run *run) {
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples;
  real *weights = run->weights;
  double *unit = run->units;
  for (int64_t step = p->first; step < p->first + p->steps; step++) {
    const double *of = p->operands + step * B * B;
    for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++)
      for (int64_t u = 0; u < g->operands; u++, of += p->all_steps * B * B) {
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

/* sum_b <row b, image b>. */
static double inner_product(
    int64_t samples, const real *rows, int64_t row, int64_t width, const struct operand *image,
    int64_t step) {
  const real *at = (const real *)image->at + step * image->step;
  vec sum[4] = {{0}};
  for (int64_t b = 0; b < samples; b++, rows += row, at += image->sample) {
    int64_t j = 0;
    for (; j + 4 * V <= width; j += 4 * V)
      UNROLL for (int64_t k = 0; k < 4; k++) sum[k] += load(rows + j + k * V) * load(at + j + k * V);
    for (; j < width; j += V)
      sum[0] += load_some(rows + j, width - j) * load_some(at + j, width - j);
  }
  return sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
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
    for (int64_t u = 0; p->images && u < g->operands; u++)
      p->inner[((operand + u) * p->rows + n) * p->steps + k] =
          inner_product(B, w->adjoints, run->width, P, p->images + operand + u, step);
    if (!p->operands) {
      operand += g->operands;
      continue;
    }
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

static void sizes_parts(int64_t begin, int64_t end, void *context) {
  const struct sizes_run *run = context;
  const struct sizes_of_rows *p = run->sizes;
  const int64_t B = p->samples, S = p->size, corners = padded_to(B, CORNER);
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    int64_t first = p->rows * part / run->parts, last = p->rows * (part + 1) / run->parts;
    real *free_ = run->scratch + part * run->of_part;
    struct work_rows rows = work_on(&run->runner, S, B, run->rows, 1, &free_);
    const struct rows copied = rows.registers[0];
    struct work_sizes w;
    w.adjoints = taken(&free_, corners * run->width);
    w.square = taken(&free_, run->operands * V);
    w.own = taken(&free_, run->operands * V);
    memset(w.adjoints, 0, (size_t)(corners * run->width) * sizeof(real));
    for (int64_t k = 0; k < p->steps; k++)
      for (int64_t n = first; n < last; n += run->rows) {
        int64_t here = last - n < run->rows ? last - n : run->rows;
        const real *values = (const real *)p->values + n * p->row + k * p->step;
        if (run->whole) /* they are only read */
          rows.registers[0] = (struct rows){(real *)(uintptr_t)values, S, p->row};
        else
          for (int64_t b = 0; b < B; b++)
            for (int64_t row = 0; row < here; row++)
              memcpy(
                  copied.at + b * copied.sample + row * copied.row,
                  values + row * p->row + b * S, (size_t)S * sizeof(real));
        through_step(
            &run->runner, &rows, rows.registers[0], p->first + k, 0, B, here,
            p->rows <= FEW_ROWS || !p->program.products);
        /* Those that follow: of this step, or the first ones of the next, if there is one. */
        const real *next = values + run->rows * p->row;
        if (n + run->rows >= last)
          next = (const real *)p->values + first * p->row + (k + (k + 1 < p->steps)) * p->step;
        for (int64_t row = 0; row < here; row++)
          sizes_of_row(run, &rows, &w, n + row, k, row, next + row * p->row);
      }
  }
  restore_denormals(control);
}

static int64_t sizes(const struct sizes_of_rows *p) {
  struct sizes_run run = {.sizes = p, .runner = runner_of(&p->program), .whole = p->size % V == 0};
  const int64_t B = p->samples, N = p->rows;
  int64_t work = 0;
  run.tiles = p->operands ? tiles_of(B) : 0;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    run.width = most_of(run.width, odd_row(g->blocks * g->height + V));
    run.operands += g->operands;
    run.whole &= g->height % V == 0;
    work += g->blocks * g->height * B;
  }
  for (const struct node *node = p->program.all_nodes;
       node < p->program.all_nodes + p->program.nodes; node++)
    run.whole &= node->width % V == 0;
  for (int64_t i = 0; i < p->program.products; i++)
    run.whole &= p->program.all_products[i].height % V == 0;
  work = (work + run.runner.work) * N * B * p->steps;
  run.parts = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  if (run.parts > N)
    run.parts = N;
  int64_t most = (N + run.parts - 1) / run.parts;
  run.rows = p->program.products ? most : (TOGETHER + B - 1) / B;
  if (run.rows > most)
    run.rows = most;
  run.of_part = of_work(&run.runner, p->size, B, run.rows, 1) +
                padded_to(B, CORNER) * run.width + 2 * run.operands * V + 3 * 64;
  const int64_t of_weights = padded_to(p->steps * run.tiles * run.operands * TILE_SIZE, 64);
  const int64_t of_units =
      padded_to(p->steps * run.operands, 64) * (int64_t)(sizeof(double) / sizeof(real));
  void *raw;
  real *free_ =
      memory(run.runner.of_packed + of_weights + of_units + run.parts * run.of_part, &raw);
  if (!free_)
    return 1;
  pack_all(&run.runner, &free_);
  run.weights = taken(&free_, of_weights);
  run.units = (double *)taken(&free_, of_units);
  if (p->operands)
    find_weights(&run);
  run.scratch = free_;
  if (run.parts < 2 || p->parallel(0, run.parts, 1, sizes_parts, &run))
    sizes_parts(0, run.parts, &run);
  free(raw);
  return 0;
}
