/* The backward recursion of many rows of adjoints through neighbouring steps of a cell.

       rows_{k-1} = J_k^T rows_k + what the loss gives to s_{k-1} */

#define SMALL_SCAN 400000 /* multiplications, below which a second thread does not pay */

struct scan_run {
  const struct scan *scan;
  struct runner runner;
  double *squares, *back_squares; /* of the norms, [B, N, K] and [B, N] */
  /* Where rows are summed: the units of the sums, [part, B, sums, K], the sums of all parts of the
     rows but the first, the scales of the rows, [B, N]; whether all rows are finite. */
  int64_t *sum_units;
  real *more;
  struct scales scales;
  int finite;
  uint8_t *fed; /* where rows are brought into range, [K]: what `find_fed` finds */
  real *scratch;
  int64_t of_task;
  struct tasks tasks; /* parts of the rows */
};

#define STREAMED (1 << 20) /* bytes of rows, from which on a cache has no room for them */

/* A row to where it is asked for, past the caches or not, and the sum of its squares. */
INLINE double hand_out(const real *from, int64_t size, int past, real *to) {
  vec sum = {0};
  int64_t j = 0;
  if (past && (uintptr_t)to % VECTOR_BYTES == 0)
    for (; j + V <= size; j += V) {
      vec value = load(from + j);
      stream(to + j, value);
      sum += value * value;
    }
  for (; j + V <= size; j += V) {
    vec value = load(from + j);
    store(to + j, value);
    sum += value * value;
  }
  double total = sum_of(sum);
  for (; j < size; j++) {
    to[j] = from[j];
    total += (double)from[j] * from[j];
  }
  return total;
}

/* A row to where it is worked on, times a number. */
INLINE void take_in(const real *from, int64_t size, const real *scale, real *to) {
  if (!scale) {
    memcpy(to, from, (size_t)size * sizeof(real));
    return;
  }
  int64_t j = 0;
  for (; j + V <= size; j += V)
    store(to + j, load(from + j) * all(*scale));
  for (; j < size; j++)
    to[j] = from[j] * *scale;
}

/* Norms of rows over all samples. */
static void norms_of(int64_t samples, int64_t count, const double *squares, real *norms) {
  for (int64_t i = 0; i < count; i++) {
    double total = 0;
    for (int64_t b = 0; b < samples; b++)
      total += squares[b * count + i];
    norms[i] = (real)sqrt(total);
  }
}

/* A row of some samples to where it is asked for; returns the sum of its squares. */
INLINE double hand_out_all(
    const struct rows *from, int64_t n, int64_t samples, int64_t size, int past, real *to,
    double *squares, int64_t of_sample) {
  double total = 0;
  for (int64_t b = 0; b < samples; b++) {
    const real *row = from->at + b * from->sample + n * from->row;
    total += squares[b * of_sample] = hand_out(row, size, past, to + b * size);
  }
  return total;
}

INLINE int64_t between(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

/* At which steps the loss still adds something to the newest row on its way back. That comes in the
   units in which the row came, so that the row stays in them. */
static void find_fed(const struct scan *p, uint8_t *fed) {
  const int64_t of_step = p->samples * p->size;
  fed[0] = 0;
  for (int64_t k = 1; k < p->steps; k++)
    fed[k] = p->given && p->rows[k - 1] == p->rows[k] &&
             (fed[k - 1] ||
              !all_zero((const real *)p->given + (k - 1) * of_step, 1, of_step, of_step));
}

/* All rows at a step, those that left the range times a power of two. */
static void hand_out_in_range(
    const struct scan_run *run, const struct rows *all_rows, int64_t first, int64_t most,
    int64_t rows, int64_t k, int past) {
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, K = p->steps, N = p->rows[0];
  const int64_t fed = run->fed[k] ? p->rows[k] - 1 - first : -1;
  for (int64_t n = 0; n < most; n++) {
    const int64_t at = (first + n) * K + k;
    real *to = (real *)p->values + at * B * S;
    double *squares = run->squares + at;
    int64_t by = 0;
    if (n < rows) {
      by = into_range(hand_out_all(all_rows, n, B, S, past, to, squares, N * K));
      by = n == fed ? 0 : by;
      if (by) {
        for (int64_t b = 0; b < B; b++)
          multiply(
              all_rows->at + b * all_rows->sample + n * all_rows->row, S, (real)ldexp(1, (int)by));
        hand_out_all(all_rows, n, B, S, past, to, squares, N * K);
      }
    } else {
      memset(to, 0, (size_t)(B * S) * sizeof(real));
      for (int64_t b = 0; b < B; b++)
        squares[b * N * K] = 0;
    }
    p->exponents[at] = (k + 1 < K ? p->exponents[at + 1] : 0) - by; /* 0 before it entered */
  }
}

INLINE struct scales scales_at(const struct scan_run *run, int64_t sample, int64_t first) {
  const int64_t at = sample * run->scan->rows[0] + first;
  return (struct scales){run->scales.units + at, run->scales.there + at};
}

/* All rows of some samples at a step into their sums. */
static void sum_step(
    struct scan_run *run, const struct rows *all_rows, int64_t part, int64_t sample,
    int64_t samples, int64_t first, int64_t rows, int64_t k) {
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, K = p->steps;
  real *sums = part ? run->more + (part - 1) * p->sums * K * B * S : (real *)p->values;
  for (int64_t b = sample; b < sample + samples; b++) {
    struct rows one = {all_rows->at + (b - sample) * all_rows->sample, 0, all_rows->row};
    const struct scales scales = scales_at(run, b, first);
    if (!bring_into_range(&one, rows, S, &scales))
      __atomic_store_n(&run->finite, 0, __ATOMIC_RELAXED);
    sum_sample(
        p, &one, first, rows, k, &scales, run->sum_units + (part * B + b) * p->sums * K + k,
        sums + (k * B + b) * S);
  }
}

/* What comes back, each row in the same units in all samples. */
static void join_back(const struct scan_run *run) {
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, N = p->rows[0];
  for (int64_t n = 0; n < N; n++) {
    int64_t top = NO_EXPONENT;
    for (int64_t b = 0; b < B; b++)
      if (run->scales.there[b * N + n])
        top = most_of(top, run->scales.units[b * N + n]);
    p->back_exponents[n] = top == NO_EXPONENT ? 0 : top;
    for (int64_t b = 0; b < B; b++) {
      const int64_t unit = run->scales.units[b * N + n];
      if (!run->scales.there[b * N + n] || unit == top)
        continue;
      multiply((real *)p->back + (n * B + b) * S, S, (real)two_to(unit - top));
      run->back_squares[b * N + n] *= two_to(2 * (unit - top));
    }
  }
}

static void scan_tasks(int64_t begin, int64_t end, void *context) {
  struct scan_run *run = context;
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, K = p->steps, N = p->rows[0];
  const int past = N * K * B * S * (int64_t)sizeof(real) > STREAMED;
  const int64_t control = flush_denormals();
  for (int64_t task = begin; task < end; task++) {
    int64_t sample, samples, first, most;
    task_of(&run->tasks, task, B, N, &sample, &samples, &first, &most);
    real *free_ = run->scratch + begin * run->of_task; /* a thread's tasks use the same memory */
    struct work_rows w = work_on(&run->runner, S, samples, most, 0, &free_);
    struct rows *registers = w.registers, before = w.registers[0];
    const int64_t row = before.row;
    before.at = taken(&free_, samples * most * row);

    const int64_t started = between(p->started - first, most);
    for (int64_t b = 0; b < samples; b++)
      for (int64_t n = 0; n < started; n++)
        take_in(
            (const real *)p->start + ((first + n) * B + sample + b) * S, S,
            p->scales ? (const real *)p->scales + first + n : 0,
            registers[0].at + b * registers[0].sample + n * row);

    for (int64_t k = K - 1; k >= 0; k--) {
      const int64_t rows = between(p->rows[k] - first, most);
      if (p->sums)
        sum_step(run, registers, task % run->tasks.parts, sample, samples, first, rows, k);
      else if (p->exponents)
        hand_out_in_range(run, registers, first, most, rows, k, past);
      for (int64_t b = 0; b < samples && !p->sums && !p->exponents; b++)
        for (int64_t n = 0; n < most; n++) {
          real *to = (real *)p->values + (((first + n) * K + k) * B + sample + b) * S;
          double *squares = run->squares + ((sample + b) * N + first + n) * K + k;
          if (n < rows)
            *squares = hand_out(
                registers[0].at + b * registers[0].sample + n * row, S, past, to);
          else {
            memset(to, 0, (size_t)S * sizeof(real));
            *squares = 0;
          }
        }
      if (k == 0 && !p->back)
        break;
      if (rows)
        through_step(
            &run->runner, &w, before, p->first + k, sample, samples, rows,
            p->rows[k] <= FEW_ROWS);
      const real *passed = p->boundaries ? (const real *)p->boundaries[k] : 0;
      for (int64_t b = 0; passed && b < samples; b++) {
        struct rows one = {before.at + b * before.sample, 0, row};
        const real *f = passed + (sample + b) * S;
        sum_terms(1, &one, &f, rows, S, 0, 0, 0, one.at, row);
      }
      real *swapped = registers[0].at;
      registers[0].at = before.at;
      before.at = swapped;
      if (k == 0)
        break;
      /* What the loss gives is a row of its own, or part of the newest one. */
      const int64_t newest = p->rows[k - 1] - 1 - first;
      if (!p->given || newest < 0 || newest >= most)
        continue;
      for (int64_t b = 0; b < samples; b++) {
        const real *given = (const real *)p->given + ((k - 1) * B + sample + b) * S;
        real *to = registers[0].at + b * registers[0].sample + newest * row;
        if (p->rows[k - 1] > p->rows[k])
          memcpy(to, given, (size_t)S * sizeof(real));
        else
          for (int64_t j = 0; j < S; j++)
            to[j] += given[j];
      }
    }
    for (int64_t b = 0; p->back && b < samples; b++) {
      if (p->sums) {
        struct rows one = {registers[0].at + b * registers[0].sample, 0, row};
        const struct scales scales = scales_at(run, sample + b, first);
        if (!bring_into_range(&one, most, S, &scales))
          __atomic_store_n(&run->finite, 0, __ATOMIC_RELAXED);
      }
      for (int64_t n = 0; n < most; n++)
        run->back_squares[(sample + b) * N + first + n] = hand_out(
            registers[0].at + b * registers[0].sample + n * row, S, 0,
            (real *)p->back + ((first + n) * B + sample + b) * S);
    }
  }
  streamed();
  restore_denormals(control);
}

static int64_t scan(const struct scan *p) {
  const int64_t B = p->samples, K = p->steps, N = p->rows[0];
  struct scan_run run = {.scan = p, .runner = runner_of(&p->program)};
  int64_t work = run.runner.work * N * B * K;
  int64_t threads = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  /* All samples of a row together, where its norm decides how it is kept in range. */
  run.tasks = tasks_of(p->exponents && !p->sums ? 1 : B, N, N, threads);
  int64_t tasks = run.tasks.groups * run.tasks.parts;
  int64_t samples = (B + run.tasks.groups - 1) / run.tasks.groups;
  int64_t rows = (N + run.tasks.parts - 1) / run.tasks.parts;
  run.of_task =
      of_work(&run.runner, p->size, samples, rows, 0) + samples * rows * odd_row(p->size + V) + 64;
  const int64_t wide = (int64_t)(sizeof(double) / sizeof(real)), parts = run.tasks.parts;
  int64_t of_squares = padded_to(B * N * (p->sums ? 1 : K + 1), 64) * wide;
  const int64_t of_units = padded_to(parts * B * K * p->sums, 64) * wide;
  const int64_t of_scales = p->sums ? padded_to(B * N, 64) * wide : 0;
  const int64_t of_more = padded_to((parts - 1) * p->sums * K * B * p->size, 64);
  const int64_t of_fed = p->exponents && !p->sums ? padded_to(K, 64) : 0;
  void *raw;
  real *free_ = memory(
      of_squares + of_units + 2 * of_scales + of_more + of_fed + run.runner.of_packed +
          tasks * run.of_task,
      &raw);
  if (!free_)
    return 1;
  run.back_squares = (double *)taken(&free_, of_squares);
  run.squares = run.back_squares + B * N;
  run.sum_units = (int64_t *)taken(&free_, of_units);
  run.scales.units = (int64_t *)taken(&free_, of_scales);
  run.scales.there = (uint8_t *)taken(&free_, of_scales);
  run.more = taken(&free_, of_more);
  run.fed = (uint8_t *)taken(&free_, of_fed);
  if (of_fed)
    find_fed(p, run.fed);
  run.finite = 1;
  memset(run.scales.units, 0, (size_t)of_scales * sizeof(real));
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (tasks < 2 || threads < 2 || p->parallel(0, tasks, 1, scan_tasks, &run))
    scan_tasks(0, tasks, &run);
  if (p->sums)
    join_sums(
        parts, B, p->sums, K, p->size, run.sum_units, p->values, K * B * p->size, run.more,
        p->exponents);
  else
    norms_of(B, N * K, run.squares, p->norms);
  if (p->sums && p->back)
    join_back(&run);
  if (p->back)
    norms_of(B, N, run.back_squares, p->back_norms);
  free(raw);
  return run.finite ? 0 : 2;
}
