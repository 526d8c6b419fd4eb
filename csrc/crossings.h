/* The recursion of scan.h with rows told apart by how often their paths crossed recurrent weights.

       v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

   The program gives A^T v and, behind it, R^T v of every row. Each class n of an entry has an
   exponent of its own, so that what crosses to the next class is multiplied by a power of two; the
   last class keeps what crosses from it. Where all that is asked of the rows are sums by class and
   bin of lags, these are formed while the rows are at hand, and the rows are not handed out. Entries
   whose lags are long beside their distance become one on the way then. */

struct crossings_run {
  const struct crossings *crossings;
  struct runner runner;
  real *largest;      /* sizes of rows, [B, N, 1 + K]: what comes back first */
  int64_t *sum_units; /* exponents of the sums of each sample, [B, sums, K] */
  uint8_t *some;      /* of each vector of the state how anything comes back to it */
  real *scratch;
  int64_t of_task;
  struct tasks tasks; /* parts of the entries */
};

enum comes_back { STAYS = 1, CROSSES = 2 };

static real largest_in(const real *row, int64_t size) {
  int_vec most = {0};
  for (int64_t j = 0; j < size; j += V)
    most = larger(most, size_bits(load_some(row + j, size - j)));
  return largest_of(most);
}

/* The classes of an entry at the step before: what stays in each, and what crossed into it. */
INLINE void cross(
    int64_t classes, int64_t size, const uint8_t *some, const real *moves, const real *passed,
    const real *from, int64_t from_row, real *to, int64_t to_row, real *largest, int64_t by_row) {
  for (int64_t n = 0; n < classes; n++) {
    const real *stays = from + n * from_row, *crosses = stays + size;
    int_vec most = {0};
    for (int64_t j = 0; j < size; j += V, some++) {
      vec sum = *some & STAYS ? load(stays + j) : (vec){0};
      if (*some & CROSSES) {
        if (n > 0)
          sum += load(crosses - from_row + j) * all(moves[n - 1]);
        if (n == classes - 1)
          sum += load(crosses + j);
      }
      if (passed)
        sum *= load_some(passed + j, size - j);
      if (size - j < V)
        sum = first(sum, size - j);
      most = larger(most, size_bits(sum));
      store(to + n * to_row + j, sum);
    }
    some -= padded_to(size, V) / V;
    largest[n * by_row] = largest_of(most);
  }
}

/* Where the size of a row of a sample at step k is kept; at step -1 that of what comes back. */
INLINE real *size_at(const struct crossings_run *run, int64_t b, int64_t row, int64_t k) {
  const struct crossings *p = run->crossings;
  return run->largest + (b * p->most * p->classes + row) * (p->steps + 1) + k + 1;
}

/* The rows of a class whose entries are in a bin, from number `start` up to `end`, as one. */
static void sum_of_bin(
    const struct crossings_run *run, struct rows here, const int64_t *units, int64_t start,
    int64_t end, int64_t n, int64_t sample, int64_t k) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, S = p->size, K = p->steps;
  const int64_t sum = n * p->bins + p->places[start * K + k];
  real *to = (real *)p->sums + sum * p->of_sum + (k * p->samples + sample) * S;
  int64_t *unit = run->sum_units + (sample * C * p->bins + sum) * K + k, count = 0;
  const real *rows[ADDED];
  real weights[ADDED];
  for (int64_t e = start; e < end; e++)
    if (*size_at(run, sample, e * C + n, k) != 0)
      *unit = most_of(*unit, units[e * C + n]);
  if (*unit == NO_EXPONENT)
    return;
  int add = 0;
  for (int64_t e = start; e < end; e++) {
    if (*size_at(run, sample, e * C + n, k) != 0) {
      rows[count] = here.at + (e * C + n) * here.row;
      weights[count++] = (real)two_to(units[e * C + n] - *unit);
    }
    if (count < ADDED && e + 1 < end)
      continue;
    add_some_rows(count, rows, weights, add, 1, S, to, S);
    add = 1;
    count = 0;
  }
}

/* The rows of a sample at a step to where they are asked for, themselves or summed. */
static void hand_out_classes(
    const struct crossings_run *run, struct rows here, int64_t turn, int64_t first, int64_t most,
    int64_t entries, int64_t sample, int64_t k) {
  const struct crossings *p = run->crossings;
  const int64_t B = p->samples, S = p->size, K = p->steps, C = p->classes;
  for (int64_t n = 0; p->values && n < most * C; n++) {
    real *to = (real *)p->values + (((first * C + n) * K + k) * B + sample) * S;
    if (n < entries * C)
      memcpy(to, here.at + n * here.row, (size_t)S * sizeof(real));
    else
      memset(to, 0, (size_t)S * sizeof(real));
  }
  for (int64_t start = 0, end; p->bins && start < entries; start = end) {
    const int64_t bin = p->places[start * K + k];
    for (end = start + 1; end < entries && p->places[end * K + k] == bin; end++)
      ;
    for (int64_t n = 0; n < C; n++)
      sum_of_bin(run, here, p->units + turn * p->most * C, start, end, n, sample, k);
  }
}

/* What the loss gives at a step has crossed nothing: a new entry, or part of the newest one. */
static void enter(
    const struct crossings_run *run, struct rows here, int64_t first, int64_t most,
    int64_t entries_after, int64_t sample, int64_t k) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, newest = p->entries[k] - 1 - first;
  if (!p->given || newest < 0 || newest >= most)
    return;
  const real *given = (const real *)p->given + (k * p->samples + sample) * p->size;
  real *to = here.at + newest * C * here.row;
  if (p->entries[k] > entries_after)
    memset(to, 0, (size_t)(C * here.row) * sizeof(real));
  for (int64_t j = 0; j < p->size; j++)
    to[j] += given[j];
  *size_at(run, sample, (first + newest) * C, k) = largest_in(to, p->size);
}

/* Rows of a sample at a step before any enters, neighbouring entries as one. */
static void merge(
    const struct crossings_run *run, struct rows here, int64_t turn, int64_t before,
    int64_t sample, int64_t k) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, S = p->size, after = p->started[turn];
  const int64_t *sources = p->sources + turn * (p->arriving + 1);
  const real *weights = (const real *)p->weights + turn * p->arriving * C;
  for (int64_t e = 0; e < after; e++)
    for (int64_t n = 0; n < C; n++) {
      const int64_t begin = sources[e], end = sources[e + 1];
      if (begin == e && end == e + 1 && weights[e * C + n] == 1)
        continue;
      real *to = here.at + (e * C + n) * here.row;
      for (int64_t i = begin; i < end; i++) {
        const real *from = here.at + (i * C + n) * here.row;
        add_rows(1, &from, weights + i * C + n, i > begin, 1, S, to, S);
      }
      *size_at(run, sample, e * C + n, k) = largest_in(to, S);
    }
  for (int64_t row = after * C; row < before * C; row++)
    *size_at(run, sample, row, k) = 0;
}

/* The rows of a sample at the last step without what the loss gives there. */
static void arrive(
    const struct crossings_run *run, struct rows here, int64_t first, int64_t started,
    int64_t sample) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, S = p->size, of_row = p->samples * S;
  for (int64_t e = 0; e < started; e++)
    for (int64_t n = 0; n < C; n++) {
      real *to = here.at + (e * C + n) * here.row;
      for (int64_t i = p->sources[first + e]; i < p->sources[first + e + 1]; i++) {
        const real *from = (const real *)p->start + (i * C + n) * of_row + sample * S;
        add_rows(
            1, &from, (const real *)p->weights + i * C + n, i > p->sources[first + e], 1, S, to, S);
      }
      *size_at(run, sample, (first + e) * C + n, p->steps - 1) = largest_in(to, S);
    }
}

/* Entries whose rows go through a step and across the classes while a near cache holds them. */
INLINE int64_t entries_at_hand(int64_t classes) {
  return classes < ROWS_AT_A_TIME ? ROWS_AT_A_TIME / classes : 1;
}

/* The rows of some entries of some samples in registers[0], at the step before in their place. */
static void entries_back(
    const struct crossings_run *run, struct work_rows *w, struct rows both, int64_t turn,
    int64_t first, int64_t entries, int64_t sample, int64_t samples, int64_t k, int few) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, S = p->size, rows = entries * C;
  const struct rows here = w->registers[0];
  both.sample = rows * both.row;
  for (int64_t row = 0; row < rows; row += ROWS_AT_A_TIME) {
    const int64_t most = rows - row < ROWS_AT_A_TIME ? rows - row : ROWS_AT_A_TIME;
    const struct part_of_rows some = {0, samples, row, most};
    through_nodes(&run->runner, w, both, &some, p->first + k, sample, few);
  }
  const real *passed = p->boundaries ? (const real *)p->boundaries[k] : 0;
  const real *moves = (const real *)p->moves + turn * p->most * (C - 1);
  for (int64_t b = 0; b < samples; b++)
    for (int64_t e = 0; e < entries; e++)
      cross(
          C, S, run->some, moves + (first + e) * (C - 1),
          passed ? passed + (sample + b) * S : 0, both.at + b * both.sample + e * C * both.row,
          both.row, here.at + b * here.sample + e * C * here.row, here.row,
          size_at(run, sample + b, (first + e) * C, k - 1), p->steps + 1);
}

/* All of them; few go through the weights, many through the Jacobian of each sample. */
static void all_entries_back(
    const struct crossings_run *run, struct work_rows *w, struct rows both, int64_t turn,
    int64_t first, int64_t entries, int64_t sample, int64_t samples, int64_t k) {
  const struct crossings *p = run->crossings;
  const int64_t C = p->classes, at_hand = entries_at_hand(C);
  const struct rows here = w->registers[0];
  if (p->entries[k] * C <= FEW_ROWS) {
    entries_back(run, w, both, turn, first, entries, sample, samples, k, 1);
    return;
  }
  for (int64_t b = 0; b < samples; b++) {
    form_jacobians(&run->runner, w, p->first + k, sample + b);
    for (int64_t e = 0; e < entries; e += at_hand) {
      const int64_t most = entries - e < at_hand ? entries - e : at_hand;
      w->registers[0].at = here.at + b * here.sample + e * C * here.row;
      entries_back(run, w, both, turn, first + e, most, sample + b, 1, k, 0);
    }
  }
  w->registers[0] = here;
}

static void crossings_tasks(int64_t begin, int64_t end, void *context) {
  const struct crossings_run *run = context;
  const struct crossings *p = run->crossings;
  const int64_t B = p->samples, S = p->size, K = p->steps, C = p->classes, E = p->most;
  const int64_t control = flush_denormals();
  for (int64_t task = begin; task < end; task++) {
    int64_t sample, samples, first, most;
    task_of(&run->tasks, task, B, E, &sample, &samples, &first, &most);
    real *free_ = run->scratch + begin * run->of_task; /* tasks of a thread share it */
    struct work_rows w = work_on(&run->runner, S, samples, most * C, 0, &free_);
    const struct rows here = w.registers[0];
    const struct rows both = {free_, 0, odd_row(2 * S + V)};

    int64_t turn = 0, started = p->started[0];
    for (int64_t k = K - 1; k >= 0; k--) {
      const int64_t entries = between(p->entries[k] - first, most), before = started;
      const int turns = k + 1 < K && p->turns[k] >= 0;
      if (turns)
        started = p->started[turn = p->turns[k]];
      for (int64_t b = 0; b < samples; b++) {
        const struct rows one = {here.at + b * here.sample, 0, here.row};
        if (k == K - 1)
          arrive(run, one, first, between(started - first, most), sample + b);
        else if (turns)
          merge(run, one, turn, before, sample + b, k);
        enter(run, one, first, most, started, sample + b, k);
        hand_out_classes(run, one, turn, first, most, entries, sample + b, k);
      }
      started = p->entries[k];
      if (k == 0 && !p->back)
        break;
      if (entries)
        all_entries_back(run, &w, both, turn, first, entries, sample, samples, k);
    }
    for (int64_t b = 0; p->back && b < samples; b++)
      for (int64_t n = 0; n < between(p->entries[0] - first, most) * C; n++)
        memcpy(
            (real *)p->back + ((first * C + n) * B + sample + b) * S,
            here.at + b * here.sample + n * here.row, (size_t)S * sizeof(real));
  }
  restore_denormals(control);
}

/* Which vectors of the state anything comes back to, and how. */
static void find_some(const struct crossings_run *run) {
  const struct program *program = &run->crossings->program;
  const int64_t S = run->crossings->size;
  memset(run->some, 0, (size_t)(padded_to(S, V) / V));
  for (const struct node *node = program->all_nodes; node < program->all_nodes + program->nodes;
       node++) {
    if (node->slot < 0 || !(node->products || node->terms))
      continue;
    const int64_t start = node->slot % S, how = node->slot < S ? STAYS : CROSSES;
    for (int64_t v = start / V; v * V < start + node->width; v++)
      run->some[v] |= (uint8_t)how;
  }
}

/* The size of a row over all samples; NaN stays. */
static real largest_of_samples(const struct crossings_run *run, int64_t row, int64_t k) {
  real most = 0;
  for (int64_t b = 0; b < run->crossings->samples && most == most; b++) {
    real of_sample = *size_at(run, b, row, k);
    most = of_sample <= most ? most : of_sample;
  }
  return most;
}

static int64_t crossings(const struct crossings *p) {
  const int64_t B = p->samples, K = p->steps, C = p->classes, E = p->most, N = E * C;
  struct crossings_run run = {.crossings = p, .runner = runner_of(&p->program)};
  int64_t work = run.runner.work * N * B * K;
  int64_t threads = work < SMALL_SCAN || !p->parallel || p->parts < 1 ? 1 : p->parts;
  run.tasks = tasks_of(B, E, N, threads);
  /* What is in a bin must be one task's. */
  if (p->bins)
    run.tasks.parts = 1;
  int64_t tasks = run.tasks.groups * run.tasks.parts;
  int64_t samples = (B + run.tasks.groups - 1) / run.tasks.groups;
  int64_t rows = (E + run.tasks.parts - 1) / run.tasks.parts * C;
  const int64_t at_hand = most_of(samples * FEW_ROWS, entries_at_hand(C) * C);
  run.of_task =
      of_work(&run.runner, p->size, samples, rows, 0) + at_hand * odd_row(2 * p->size + V) + 64;
  const int64_t in_reals = (int64_t)(sizeof(int64_t) / sizeof(real));
  int64_t of_largest = padded_to(B * N * (K + 1), 64), of_some = padded_to(p->size, 64);
  int64_t units = B * C * p->bins * K, of_units = padded_to(units * in_reals, 64);
  void *raw;
  real *free_ = memory(
      of_largest + of_some + of_units + run.runner.of_packed + tasks * run.of_task, &raw);
  if (!free_)
    return 1;
  run.largest = taken(&free_, of_largest);
  memset(run.largest, 0, (size_t)of_largest * sizeof(real));
  run.sum_units = (int64_t *)taken(&free_, of_units);
  for (int64_t i = 0; i < units; i++)
    run.sum_units[i] = NO_EXPONENT;
  run.some = (uint8_t *)taken(&free_, of_some);
  find_some(&run);
  pack_all(&run.runner, &free_);
  run.scratch = free_;
  if (tasks < 2 || threads < 2 || p->parallel(0, tasks, 1, crossings_tasks, &run))
    crossings_tasks(0, tasks, &run);
  for (int64_t row = 0; row < N; row++) {
    for (int64_t k = 0; k < K; k++)
      ((real *)p->sizes)[row * K + k] = largest_of_samples(&run, row, k);
    if (p->back && row < p->entries[0] * C)
      ((real *)p->back_sizes)[row] = largest_of_samples(&run, row, -1);
  }
  join_sums(1, B, C * p->bins, K, p->size, run.sum_units, p->sums, p->of_sum, 0, p->sum_units);
  free(raw);
  return 0;
}
