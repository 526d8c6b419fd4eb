/* The backward recursion of many rows of adjoints through neighbouring steps of a cell.

       rows_{k-1} = J_k^T rows_k + what the loss gives to s_{k-1} */

#define SMALL_SCAN 400000 /* multiplications, below which a second thread does not pay */

#define CENTRE 32 /* these as in engine/scaling.py and engine/adjoint.py */
#define SLACK 24
#define AHEAD 20

struct scan_run {
  const struct scan *scan;
  struct runner runner;
  double *squares, *back_squares; /* of the norms, [B, N, K] and [B, N] */
  real *scratch;
  int64_t of_task;
  struct tasks tasks; /* parts of the rows */
};

/* A row to where it is asked for, and the sum of its squares. */
INLINE double hand_out(const real *from, int64_t size, real *to) {
  vec sum = {0};
  int64_t j = 0;
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

/* The power of two that brings a row of this squared norm back into range (engine/scaling.py), to
   the end of it that is farther from where it went; 0 for a row that is inside, or without a norm. */
INLINE int64_t into_range(double square) {
  const double least = ldexp(1, 2 * (CENTRE - SLACK)), most = ldexp(1, 2 * (CENTRE + SLACK));
  if ((square >= least && square <= most) || !(square > 0) || !isfinite(square))
    return 0;
  int exponent;
  frexp(square, &exponent);
  return (square < least ? CENTRE + AHEAD : CENTRE - AHEAD) - exponent / 2;
}

/* A row of some samples to where it is asked for; returns the sum of its squares. */
INLINE double hand_out_all(
    const struct rows *from, int64_t n, int64_t samples, int64_t size, real *to, double *squares,
    int64_t of_sample) {
  double total = 0;
  for (int64_t b = 0; b < samples; b++) {
    const real *row = from->at + b * from->sample + n * from->row;
    total += squares[b * of_sample] = hand_out(row, size, to + b * size);
  }
  return total;
}

static void multiply(const struct rows *rows, int64_t n, int64_t samples, int64_t size, real by) {
  for (int64_t b = 0; b < samples; b++)
    for (int64_t j = 0; j < size; j++)
      rows->at[b * rows->sample + n * rows->row + j] *= by;
}

INLINE int64_t between(int64_t value, int64_t most) {
  return value < 0 ? 0 : value > most ? most : value;
}

/* All rows at a step, those that left the range times a power of two. */
static void hand_out_in_range(
    const struct scan_run *run, const struct rows *all_rows, int64_t first, int64_t most,
    int64_t rows, int64_t k) {
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, K = p->steps, N = p->rows[0];
  for (int64_t n = 0; n < most; n++) {
    const int64_t at = (first + n) * K + k;
    real *to = (real *)p->values + at * B * S;
    double *squares = run->squares + at;
    int64_t by = 0;
    if (n < rows) {
      by = into_range(hand_out_all(all_rows, n, B, S, to, squares, N * K));
      if (by) {
        multiply(all_rows, n, B, S, (real)ldexp(1, (int)by));
        hand_out_all(all_rows, n, B, S, to, squares, N * K);
      }
    } else {
      memset(to, 0, (size_t)(B * S) * sizeof(real));
      for (int64_t b = 0; b < B; b++)
        squares[b * N * K] = 0;
    }
    p->exponents[at] = (k + 1 < K ? p->exponents[at + 1] : 0) - by; /* 0 before it entered */
  }
}

static void scan_tasks(int64_t begin, int64_t end, void *context) {
  const struct scan_run *run = context;
  const struct scan *p = run->scan;
  const int64_t B = p->samples, S = p->size, K = p->steps, N = p->rows[0];
  const int64_t control = flush_denormals();
  for (int64_t task = begin; task < end; task++) {
    int64_t sample, samples, first, most;
    task_of(&run->tasks, task, B, N, &sample, &samples, &first, &most);
    real *free_ = run->scratch + task * run->of_task;
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
      if (p->exponents)
        hand_out_in_range(run, registers, first, most, rows, k);
      for (int64_t b = 0; b < samples && !p->exponents; b++)
        for (int64_t n = 0; n < most; n++) {
          real *to = (real *)p->values + (((first + n) * K + k) * B + sample + b) * S;
          double *squares = run->squares + ((sample + b) * N + first + n) * K + k;
          if (n < rows)
            *squares = hand_out(registers[0].at + b * registers[0].sample + n * row, S, to);
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
    for (int64_t b = 0; p->back && b < samples; b++)
      for (int64_t n = 0; n < most; n++)
        run->back_squares[(sample + b) * N + first + n] = hand_out(
            registers[0].at + b * registers[0].sample + n * row, S,
            (real *)p->back + ((first + n) * B + sample + b) * S);
  }
  restore_denormals(control);
}

static int64_t scan(const struct scan *p) {
  const int64_t B = p->samples, K = p->steps, N = p->rows[0];
  struct scan_run run = {.scan = p, .runner = runner_of(&p->program)};
  int64_t work = run.runner.work * N * B * K;
  int64_t threads = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  /* All samples of a row together, where its norm decides how it is kept in range. */
  run.tasks = tasks_of(p->exponents ? 1 : B, N, N, threads);
  int64_t tasks = run.tasks.groups * run.tasks.parts;
  int64_t samples = (B + run.tasks.groups - 1) / run.tasks.groups;
  int64_t rows = (N + run.tasks.parts - 1) / run.tasks.parts;
  run.of_task =
      of_work(&run.runner, p->size, samples, rows, 0) + samples * rows * odd_row(p->size + V) + 64;
  int64_t of_squares = padded_to(B * N * (K + 1), 64) * (int64_t)(sizeof(double) / sizeof(real));
  void *raw;
  real *free_ = memory(of_squares + run.runner.of_packed + tasks * run.of_task, &raw);
  if (!free_)
    return 1;
  run.squares = (double *)taken(&free_, of_squares);
  run.back_squares = run.squares + B * N * K;
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (tasks < 2 || threads < 2 || p->parallel(0, tasks, 1, scan_tasks, &run))
    scan_tasks(0, tasks, &run);
  norms_of(B, N * K, run.squares, p->norms);
  if (p->back)
    norms_of(B, N, run.back_squares, p->back_norms);
  free(raw);
  return 0;
}
