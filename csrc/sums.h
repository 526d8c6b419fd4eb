/* The gradients that rows of adjoints make of the parameters, rows of many steps in one product:

       sum_k sum_b da_kb (x) u_kb      of all rows that belong to a sum

   The pull-back is linear, so rows of a step that share a sum are added before it. What is added
   comes on the scale of the largest row of each step. Steps whose scales lie too far apart for one
   product are told apart, and put together in float64. */

#define TOGETHER_ROWS 256 /* steps times samples whose adjoints are in a product together */
#define BAND 64           /* the powers of two that lie between the scales of a product */

/* Of a group: the numbers of its adjoints, of its operands side by side, and of the wide ones among
   these; whether 1 is one of them. */
struct sides {
  int64_t adjoints, row, columns, wide, ones;
};

struct sums_run {
  const struct sums_of_rows *sums;
  struct runner runner;
  struct sides sides[SCAN_PRODUCTS]; /* of each group */
  int64_t *starts, *order, *tops;    /* of each sum and step: its rows, and their largest exponent */
  real *operands;                    /* of each group side by side, [K * B, columns] */
  real *scratch;
  int64_t together, of_part, parts; /* steps in a product; who shares out the sums */
};

/* The rows of each sum at each step one after the other. */
static void sort_rows(struct sums_run *run) {
  const struct sums_of_rows *p = run->sums;
  const int64_t K = p->steps, places = p->sums * K;
  for (int64_t at = 0; at < places; at++)
    run->tops[at] = NO_EXPONENT;
  memset(run->starts, 0, (size_t)(places + 1) * sizeof(int64_t));
  for (int64_t n = 0; n < p->rows; n++)
    for (int64_t k = 0; k < K; k++) {
      const int64_t place = p->places[n * K + k], exponent = p->exponents[n * K + k];
      if (place < 0 || exponent == NO_EXPONENT)
        continue;
      run->starts[place * K + k + 1]++;
      run->tops[place * K + k] = most_of(run->tops[place * K + k], exponent);
    }
  for (int64_t at = 0; at < places; at++)
    run->starts[at + 1] += run->starts[at];
  for (int64_t n = 0; n < p->rows; n++)
    for (int64_t k = 0; k < K; k++) {
      const int64_t place = p->places[n * K + k];
      if (place >= 0 && p->exponents[n * K + k] != NO_EXPONENT)
        run->order[run->starts[place * K + k]++] = n;
    }
  memmove(run->starts + 1, run->starts, (size_t)places * sizeof(int64_t)); /* they have moved on */
  run->starts[0] = 0;
}

/* The operands of each group at all steps, side by side and padded. */
static void pack_operands(const struct sums_run *run) {
  const struct sums_of_rows *p = run->sums;
  const struct operand *u = p->all_operands;
  real *to = run->operands;
  for (int64_t g = 0; g < p->groups; g++) {
    const int64_t columns = run->sides[g].columns;
    int64_t first = 0;
    for (int64_t i = 0; i < p->all_groups[g].operands; i++, u++) {
      const int64_t padded = u->at ? padded_to(u->width, V) : 0;
      for (int64_t row = 0; u->at && row < p->steps * p->samples; row++) {
        const int64_t k = p->first + row / p->samples, b = row % p->samples;
        const real *from = (const real *)u->at + k * u->step + b * u->sample;
        real *at = to + row * columns + first;
        memcpy(at, from, (size_t)u->width * sizeof(real));
        memset(at + u->width, 0, (size_t)(padded - u->width) * sizeof(real));
      }
      first += padded;
    }
    to += p->steps * p->samples * columns;
  }
}

/* The rows of a sum at one step as one, in units of 2^unit. */
static void sum_rows(
    const struct sums_run *run, int64_t m, int64_t k, int64_t unit, real *to, int64_t to_row) {
  const struct sums_of_rows *p = run->sums;
  const int64_t end = run->starts[m * p->steps + k + 1], start = run->starts[m * p->steps + k];
  for (int64_t at = start; at < end; at += ADDED) {
    const int64_t count = end - at < ADDED ? end - at : ADDED;
    const real *rows[ADDED];
    real weights[ADDED];
    for (int64_t i = 0; i < count; i++) {
      const int64_t n = run->order[at + i];
      rows[i] = (const real *)p->values + n * p->row + k * p->step;
      weights[i] = (real)two_to(p->exponents[n * p->steps + k] - unit);
    }
    add_some_rows(count, rows, weights, at > start, p->samples, p->size, to, to_row);
  }
}

/* to [width] (+)= the sum of some rows; whole vectors are read and written. */
static void sum_over_rows(
    int64_t rows, int64_t width, const real *from, int64_t row, int add, real *to) {
  for (int64_t j = 0; j < width; j += V) {
    vec sum = add ? load(to + j) : (vec){0};
    for (int64_t n = 0; n < rows; n++)
      sum += load(from + n * row + j);
    store(to + j, sum);
  }
}

/* Whether an operand fills so little of a vector that adjoints had better do. */
INLINE int is_narrow(const struct operand *u) { return 2 * u->width <= V; }

/* Steps first .. last - 1, all of which have rows of the sum: their product, in units of 2^unit. */
static void add_steps(
    const struct sums_run *run, struct work_rows *w, real *adjoints, int64_t m, int64_t first,
    int64_t last, int64_t unit, int add) {
  const struct sums_of_rows *p = run->sums;
  const int64_t B = p->samples, rows = (last - first) * B;
  for (int64_t k = first; k < last; k++) {
    const struct segment *s = p->of_groups;
    real *to = adjoints;
    sum_rows(run, m, k, unit, w->registers[0].at, w->registers[0].sample);
    through_step(&run->runner, w, w->registers[0], p->first + k, 0, B, 1, 1);
    for (int64_t g = 0; g < p->groups; g++) {
      const int64_t row = run->sides[g].row;
      side_by_side(p->all_groups + g, s, w, 0, p->first + k, B, to + (k - first) * B * row, row);
      s += p->all_groups[g].segments;
      to += run->together * B * row;
    }
  }
  const real *operands = run->operands, *da = adjoints;
  const struct operand *u = p->all_operands;
  real *to = (real *)p->recent + m * p->of_sum;
  for (int64_t g = 0; g < p->groups; g++) {
    const struct sides *s = run->sides + g;
    const int64_t padded = padded_to(s->adjoints, V);
    const real *here = operands + first * B * s->columns;
    real *narrow = to + s->adjoints * s->wide;
    for (const struct operand *end = u + p->all_groups[g].operands; u < end; u++) {
      if (!u->at)
        continue;
      const int64_t vectors = padded_to(u->width, V) / V;
      if (is_narrow(u)) {
        product_over_rows(
            rows, u->width, padded / V, here, s->columns, da, s->row, add, narrow, padded);
        narrow += u->width * padded;
      } else {
        product_over_rows(
            rows, s->adjoints, vectors, da, s->row, here, s->columns, add, to, s->wide);
        to += vectors * V;
      }
      here += vectors * V;
    }
    to = narrow;
    if (s->ones) {
      sum_over_rows(rows, s->adjoints, da, s->row, add, to);
      to += padded;
    }
    operands += p->steps * B * s->columns;
    da += run->together * B * s->row;
  }
}

static void scale_recent(const struct sums_of_rows *p, int64_t m, real factor) {
  real *recent = (real *)p->recent + m * p->of_sum;
  for (int64_t i = 0; i < p->of_sum; i++)
    recent[i] *= factor;
}

/* What is recent goes to what was put aside before, on the larger of both scales. */
static void put_aside(const struct sums_of_rows *p, int64_t m, int64_t recent) {
  const real *from = (const real *)p->recent + m * p->of_sum;
  double *to = p->aside + m * p->of_sum;
  int64_t *unit = p->units + 2 * p->sums + m;
  const int64_t before = *unit;
  *unit = most_of(before, recent);
  const double ours = two_to(recent - *unit), theirs = two_to(before - *unit);
  if (before == NO_EXPONENT)
    for (int64_t i = 0; i < p->of_sum; i++)
      to[i] = from[i];
  else
    for (int64_t i = 0; i < p->of_sum; i++)
      to[i] = to[i] * theirs + from[i] * ours;
}

/* The steps before `end` that go with what is recent, whose exponents are put between both ends:
   the first of them. */
static int64_t run_of_steps(
    const struct sums_run *run, int64_t m, int64_t end, int64_t *least, int64_t *most) {
  const int64_t *tops = run->tops + m * run->sums->steps;
  int64_t k = end;
  for (; k > 0; k--) {
    const int64_t top = tops[k - 1];
    if (top == NO_EXPONENT)
      continue;
    const int64_t low = *least == NO_EXPONENT || top < *least ? top : *least;
    const int64_t high = most_of(*most, top);
    if (high - low > BAND)
      break;
    *least = low;
    *most = high;
  }
  return k;
}

/* Whether any sum has to be put aside. */
static int some_apart(const struct sums_run *run) {
  const struct sums_of_rows *p = run->sums;
  for (int64_t m = 0; m < p->sums; m++) {
    int64_t most = p->units[m], least = p->units[p->sums + m];
    if (run_of_steps(run, m, p->steps, &least, &most) > 0)
      return 1;
  }
  return 0;
}

/* All rows of a sum, from the last step to the first. */
static void add_to_sum(
    const struct sums_run *run, struct work_rows *w, real *adjoints, int64_t m) {
  const struct sums_of_rows *p = run->sums;
  const int64_t *tops = run->tops + m * p->steps;
  int64_t *unit = p->units + m, *least = p->units + p->sums + m;
  for (int64_t last = p->steps; last > 0;) {
    int64_t most = *unit;
    const int64_t first = run_of_steps(run, m, last, least, &most);
    int add = *unit != NO_EXPONENT;
    if (add && most > *unit)
      scale_recent(p, m, (real)two_to(*unit - most));
    *unit = most;
    for (int64_t k = last; k > first;) {
      const int64_t stop = k;
      while (k > first && tops[k - 1] != NO_EXPONENT && stop - k < run->together)
        k--;
      if (k < stop) {
        add_steps(run, w, adjoints, m, k, stop, most, add);
        add = 1;
      } else
        k--;
    }
    if (first > 0) {
      put_aside(p, m, most);
      *unit = *least = NO_EXPONENT;
    }
    last = first;
  }
}

static void sums_parts(int64_t begin, int64_t end, void *context) {
  const struct sums_run *run = context;
  const struct sums_of_rows *p = run->sums;
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    real *free_ = run->scratch + part * run->of_part;
    struct work_rows w = work_on(&run->runner, p->size, p->samples, 1, 1, &free_);
    for (int64_t m = part; m < p->sums; m += run->parts)
      add_to_sum(run, &w, free_, m);
  }
  restore_denormals(control);
}

static int64_t sums(const struct sums_of_rows *p) {
  struct sums_run run = {.sums = p, .runner = runner_of(&p->program)};
  const int64_t B = p->samples, K = p->steps, places = p->sums * K;
  const struct operand *u = p->all_operands;
  int64_t work = run.runner.work, of_operands = 0, of_adjoints = 0;
  for (int64_t g = 0; g < p->groups; g++) {
    struct sides *s = run.sides + g;
    s->adjoints = p->all_groups[g].blocks * p->all_groups[g].height;
    s->row = odd_row(s->adjoints);
    for (int64_t i = 0; i < p->all_groups[g].operands; i++, u++) {
      const int64_t padded = u->at ? padded_to(u->width, V) : 0;
      s->columns += padded;
      s->wide += is_narrow(u) ? 0 : padded;
      s->ones |= !u->at;
    }
    work += s->adjoints * (s->columns + 1);
    of_operands += K * B * s->columns;
    of_adjoints += s->row;
  }
  run.parts = work * places * B < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  if (run.parts > p->sums)
    run.parts = p->sums;
  run.together = B < TOGETHER_ROWS ? TOGETHER_ROWS / B : 1;
  run.of_part = of_work(&run.runner, p->size, B, 1, 1) + run.together * B * of_adjoints + 64;
  const int64_t of_order =
      (2 * places + 1 + p->rows * K) * (int64_t)(sizeof(int64_t) / sizeof(real));
  void *raw;
  real *free_ = memory(
      padded_to(of_order, 64) + run.runner.of_packed + padded_to(of_operands, 64) +
          run.parts * run.of_part,
      &raw);
  if (!free_)
    return 1;
  run.starts = (int64_t *)taken(&free_, of_order);
  run.tops = run.starts + places + 1;
  run.order = run.tops + places;
  sort_rows(&run);
  if (!p->aside && some_apart(&run)) {
    free(raw);
    return 2;
  }
  run.operands = taken(&free_, of_operands);
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  pack_operands(&run);
  if (run.parts < 2 || p->parallel(0, run.parts, 1, sums_parts, &run))
    sums_parts(0, run.parts, &run);
  free(raw);
  return 0;
}
