/* Backward through time: gradients of weights are formed for some steps at once, by part, and then
   summed over the parts. */

/* How the scratch of a part is laid out for the backward pass; counts only where `from` is NULL. */
struct work {
  struct sums sums, chunk_sums;
  real *d, *x, *h, *q, *carried_h, *carried_c, *by_x, *by_q;
  real *outputs[2]; /* of an LSTM, at even and at odd steps */
  real *gates;      /* those that a step sees, beside x and h */
  real *by_kept;    /* of gates that are seen: what the step after and the loss give */
  int64_t count;
};

static struct work work_of(
    const struct pass *p, const struct sizes *s, real *from) {
  int64_t rows = (p->samples + s->parts - 1) / s->parts, P = s->padded, all_rows = rows * s->chunk;
  real *free_ = from;
  struct work w;
  w.sums.by_w = taken(&free_, s->G * P * s->seen_row);
  w.sums.by_r = w.sums.by_w + s->x_padded;
  w.sums.by_bias = taken(&free_, s->blocks * P);
  w.sums.by_peepholes = taken(&free_, 4 * P);
  w.chunk_sums.by_peepholes = taken(&free_, 4 * P);
  w.d = taken(&free_, all_rows * s->a_row);
  w.x = taken(&free_, all_rows * s->seen_row);
  w.h = w.x + s->x_padded;
  w.q = taken(&free_, p->cell == GRU_2014 ? all_rows * s->seen_row : 0);
  w.carried_h = taken(&free_, rows * s->h_row);
  w.carried_c = taken(&free_, rows * s->h_row);
  w.by_x = taken(&free_, rows * s->x_row);
  w.by_q = taken(&free_, rows * s->h_row);
  for (int k = 0; k < 2; k++)
    w.outputs[k] = taken(&free_, p->cell == LSTM ? rows * p->hidden : 0);
  w.gates = taken(&free_, all_rows * s->gates_row);
  w.by_kept = taken(&free_, s->gates ? rows * s->K * P : 0);
  w.sums.by_gg = taken(&free_, 3 * P * s->gates_row);
  w.count = free_ - from;
  return w;
}

/* The outputs of some samples at a step of an LSTM, which follow from what it keeps. */
static void lstm_outputs(
    const struct pass *p, const struct sizes *s, int64_t first, int64_t rows, int64_t step,
    const struct work *w) {
  int64_t H = p->hidden, P = s->padded, row = s->K * P;
  const real *kept = (const real *)p->kept + (time_of(p, step) * p->samples + first) * row;
  real *to = w->outputs[step & 1];
  for (int64_t sample = 0; sample < rows; sample++, kept += row, to += H)
    for (int64_t j = 0; j < H; j += V) {
      vec h = load(kept + row - P + j);
      if (p->gates & OUTPUT)
        h *= load(kept + row - 2 * P + j);
      store_some(to + j, h, H - j);
    }
}

/* Add what the steps of a chunk give to the gradients of the weights. */
static void add_chunk(
    const struct run *run, const struct work *w, int64_t rows, int add) {
  const struct pass *p = run->pass;
  const struct sizes *s = &run->sizes;
  int64_t P = s->padded, row = s->seen_row, x = s->x_padded / V, h = P / V;
  const int side_by_side = p->by_weight_ih && p->by_weight_hh && !is_gru(p);
  if (p->by_weight_ih)
    product_over_rows(
        rows, s->G * P, side_by_side ? x + h : x, w->d, s->a_row, w->x, row, add, w->sums.by_w,
        row);
  if (p->by_weight_hh && is_gru(p)) {
    const real *n = w->d + (p->cell == GRU ? 3 : 2) * P, *seen = p->cell == GRU ? w->h : w->q;
    real *by_n = w->sums.by_r + 2 * P * row;
    product_over_rows(rows, 2 * P, h, w->d, s->a_row, w->h, row, add, w->sums.by_r, row);
    product_over_rows(rows, P, h, n, s->a_row, seen, row, add, by_n, row);
  } else if (p->by_weight_hh && !side_by_side)
    product_over_rows(rows, s->G * P, h, w->d, s->a_row, w->h, row, add, w->sums.by_r, row);
  if (p->by_weight_gg) {
    int64_t g_row = s->gates_row, g = padded_to(s->gates, V) / V;
    real *by_o = w->sums.by_gg + 2 * P * g_row;
    product_over_rows(
        rows, 2 * P, g, w->d, s->a_row, w->gates, g_row, add, w->sums.by_gg, g_row);
    product_over_rows(rows, P, g, w->d + 3 * P, s->a_row, w->gates, g_row, add, by_o, g_row);
  }
  for (int64_t j = 0; j < s->blocks * P; j += V) {
    vec sum = {0};
    for (int64_t k = 0; k < rows; k++)
      sum += load(w->d + k * s->a_row + j);
    store(w->sums.by_bias + j, add ? load(w->sums.by_bias + j) + sum : sum);
  }
  for (int64_t j = 0; j < peephole_count(p) * P; j += V) {
    vec sum = load(w->chunk_sums.by_peepholes + j);
    store(w->sums.by_peepholes + j, add ? load(w->sums.by_peepholes + j) + sum : sum);
    store(w->chunk_sums.by_peepholes + j, (vec){0});
  }
}

/* What comes to the gates of the step before, by rows as they are kept, from d of this one. */
static void by_seen_gates(const struct run *run, int64_t rows, const real *d, real *by_kept) {
  const struct sizes *s = &run->sizes;
  int64_t P = s->padded, a_row = s->a_row, row = s->K * P;
  const real *d_o = d + 3 * P;
  real *by_o = by_kept + 3 * P;
  product_of_part(rows, 2 * P / V, 2 * P, d, a_row, run->gg, 3 * P, 0, 0, 0, by_kept, row);
  product_of_part(
      rows, 2 * P / V, P, d_o, a_row, run->gg, 3 * P, 2 * P, by_kept, row, by_kept, row);
  product_of_part(rows, P / V, 2 * P, d, a_row, run->gg_o, 3 * P, 0, 0, 0, by_o, row);
  product_of_part(rows, P / V, P, d_o, a_row, run->gg_o, 3 * P, 2 * P, by_o, row, by_o, row);
}

static void backward_parts(int64_t begin, int64_t end, void *context) {
  const struct run *run = context;
  const struct pass *p = run->pass;
  const struct sizes s = run->sizes;
  const int64_t H = p->hidden, P = s.padded, B = p->samples, I = p->inputs;
  const int lstm = p->cell == LSTM;
  const real *states = lstm ? p->c : p->h; /* those that it reads */
  const int weights = p->by_weight_ih || p->by_weight_hh;
  const int64_t control = flush_denormals();
  for (int64_t part = begin; part < end; part++) {
    int64_t first = B * part / s.parts, rows = B * (part + 1) / s.parts - first;
    struct work w = work_of(p, &s, run->scratch + part * s.of_part);
    memset(w.chunk_sums.by_peepholes, 0, (size_t)(4 * P) * sizeof(real));
    const real *by_n[2] = {p->by_h_n, p->by_c_n};
    real *carried[2] = {w.carried_h, w.carried_c};
    for (int k = 0; k < 2; k++) {
      memset(carried[k], 0, (size_t)(rows * s.h_row) * sizeof(real));
      for (int64_t row = 0; by_n[k] && row < rows; row++)
        memcpy(
            carried[k] + row * s.h_row, by_n[k] + (first + row) * H, (size_t)H * sizeof(real));
    }
    if (lstm && p->steps)
      lstm_outputs(p, &s, first, rows, p->steps - 1, &w);
    const int64_t of_kept = s.gates ? rows * s.K * P : 0;
    memset(w.by_kept, 0, (size_t)of_kept * sizeof(real));
    int64_t in_chunk = 0;
    int64_t skipped = -1;     /* the last step that was skipped */
    int add = 0, finite = -1; /* the weights: not known yet */
    for (int64_t step = p->steps - 1; step >= 0; step--) {
      int64_t t = time_of(p, step), now = (t * B + first) * H;
      int64_t before = (time_of(p, step - 1) * B + first) * H;
      int64_t top = in_chunk * rows; /* the first row of this step in the chunk */
      real *d = w.d + top * s.a_row;
      const real *by_h_t = p->by_h, *by_c_t = p->by_c, *by_kept = p->by_kept;
      struct back at = {
          .peepholes = run->peepholes,
          .h_before = step ? states + before : run->initial[0] + first * H,
          .c_before = step ? states + before : run->initial[1] + first * H,
          .h = states + now,
          .c = states + now,
          .kept = (const real *)p->kept + (t * B + first) * s.K * P,
          .by_h = by_h_t ? by_h_t + t * p->by_h_step + first * p->by_h_sample : 0,
          .by_c = by_c_t ? by_c_t + t * p->by_c_step + first * p->by_c_sample : 0,
          .by_kept = by_kept ? by_kept + (t * B + first) * s.K * P : 0,
          .carried_h = w.carried_h,
          .carried_c = w.carried_c,
          .d = d,
          .by_q = w.by_q,
          .by_peepholes = w.chunk_sums.by_peepholes,
          .rows = rows,
          .hidden = H,
          .padded = P,
          .d_row = s.a_row,
          .kept_row = s.K * P,
          .by_h_row = p->by_h_sample,
          .by_c_row = p->by_c_sample,
          .carried_row = s.h_row,
          .truncated = p->truncated,
          .limit = p->limit ? *(const real *)p->limit : 0,
          .clipped = p->limit ? p->clipped + part : 0,
      };
      if (lstm) {
        at.h = w.outputs[step & 1];
        at.h_before = step ? w.outputs[(step - 1) & 1] : run->initial[0] + first * H;
        if (step)
          lstm_outputs(p, &s, first, rows, step - 1, &w);
      }
      if (s.gates) {
        for (int64_t j = 0; at.by_kept && j < of_kept; j += V)
          store(w.by_kept + j, load(w.by_kept + j) + load(at.by_kept + j));
        at.by_kept = w.by_kept;
      }
      const real *x_t = (const real *)p->x + t * p->x_step + first * p->x_sample;
      if (nothing_comes(&at, s.K * P)) {
        if (finite < 0)
          finite = finite_weights(p, &s);
        if (finite && nothing_given(&at, p, s.K * P, skipped == step + 1) &&
            all_finite(x_t, rows, p->x_sample, I) &&
            (step || all_finite(run->initial[2] + first * s.gates, rows, s.gates, s.gates))) {
          skipped = step;
          if (p->by_x)
            memset((real *)p->by_x + (t * B + first) * I, 0, (size_t)(rows * I) * sizeof(real));
          continue;
        }
      }
      switch (p->cell) {
      case LSTM:
        lstm_back_any(at, p);
        break;
      case ELMAN:
        elman_back(at, p->activation);
        break;
      case GRU:
        gru_back(at);
        break;
      default:
        gru_2014_candidate_back(at);
        product(rows, P / V, P, d + 2 * P, s.a_row, run->r_n, 0, 0, w.by_q, s.h_row);
        gru_2014_reset_back(at);
      }
      real *by_h = w.carried_h;
      if (p->truncated) {
        if (!is_gru(p)) /* what a GRU has there comes along z */
          memset(by_h, 0, (size_t)(rows * s.h_row) * sizeof(real));
      } else if (is_gru(p)) {
        product(rows, P / V, 2 * P, d, s.a_row, run->r, by_h, s.h_row, by_h, s.h_row);
        if (p->cell == GRU)
          product(rows, P / V, P, d + 3 * P, s.a_row, run->r_n, by_h, s.h_row, by_h, s.h_row);
      } else
        product(rows, P / V, s.G * P, d, s.a_row, run->r, 0, 0, by_h, s.h_row);
      if (s.gates) {
        memset(w.by_kept, 0, (size_t)of_kept * sizeof(real));
        if (!p->truncated)
          by_seen_gates(run, rows, d, w.by_kept);
      }
      if (p->by_x) {
        real *by_x = (real *)p->by_x + (t * B + first) * I;
        int direct = I % V == 0;
        product(
            rows, padded_to(I, V) / V, s.G * P, d, s.a_row, run->w, 0, 0, direct ? by_x : w.by_x,
            direct ? I : s.x_row);
        for (int64_t row = 0; !direct && row < rows; row++)
          memcpy(by_x + row * I, w.by_x + row * s.x_row, (size_t)I * sizeof(real));
      }
      if (!weights)
        continue;
      if (p->by_weight_gg)
        seen_gates(run, first, rows, step, w.gates + top * s.gates_row);
      for (int64_t row = 0; row < rows; row++) {
        copy_row(w.x + (top + row) * s.seen_row, x_t + row * p->x_sample, I);
        copy_row(w.h + (top + row) * s.seen_row, at.h_before + row * H, H);
        if (p->cell == GRU_2014)
          copy_row(w.q + (top + row) * s.seen_row, at.kept + (row * s.K + 3) * P, H);
      }
      if (++in_chunk == s.chunk) {
        add_chunk(run, &w, in_chunk * rows, add);
        in_chunk = 0;
        add = 1;
      }
    }
    if (weights && (in_chunk || !add))
      add_chunk(run, &w, in_chunk * rows, add);
    real *by_0[2] = {p->by_h_0, p->by_c_0};
    for (int k = 0; k < 2; k++)
      for (int64_t row = 0; by_0[k] && row < rows; row++)
        memcpy(by_0[k] + (first + row) * H, carried[k] + row * s.h_row, (size_t)H * sizeof(real));
    real *by_gates = p->by_gates_0;
    for (int64_t row = 0; by_gates && row < rows; row++)
      for (int64_t gate = 0; gate < 3; gate++)
        memcpy(
            by_gates + (first + row) * s.gates + gate * H,
            w.by_kept + (row * s.K + block_of_gate(gate)) * P, (size_t)H * sizeof(real));
  }
  restore_denormals(control);
}

/* Rows of the weights: the sum over the parts, without padding. */
static void add_parts(int64_t begin, int64_t end, void *context) {
  const struct run *run = context;
  const struct pass *p = run->pass;
  const struct sizes *s = &run->sizes;
  int64_t H = p->hidden, P = s->padded;
  const int64_t control = flush_denormals();
  for (int64_t part = 0; part < s->parts; part++) {
    struct work w = work_of(p, s, run->scratch + part * s->of_part);
    for (int64_t row = begin; row < end; row++) {
      int64_t block = row / H, from = block * P + row % H;
      int64_t from_h = (p->cell == GRU && block == 2 ? 3 * P : block * P) + row % H;
#define ADD(to, value) to = part ? to + (value) : (value)
      for (int64_t k = 0; p->by_weight_ih && k < p->inputs; k++)
        ADD(((real *)p->by_weight_ih)[row * p->inputs + k], w.sums.by_w[from * s->seen_row + k]);
      for (int64_t k = 0; p->by_weight_hh && k < H; k++)
        ADD(((real *)p->by_weight_hh)[row * H + k], w.sums.by_r[from * s->seen_row + k]);
      if (p->by_bias_ih)
        ADD(((real *)p->by_bias_ih)[row], w.sums.by_bias[from]);
      if (p->by_bias_hh)
        ADD(((real *)p->by_bias_hh)[row], w.sums.by_bias[from_h]);
      if (p->by_weight_ch && block < peephole_count(p))
        ADD(((real *)p->by_weight_ch)[row], w.sums.by_peepholes[from]);
      for (int64_t k = 0; p->by_weight_gg && block < 3 && k < s->gates; k++)
        ADD(((real *)p->by_weight_gg)[row * s->gates + k], w.sums.by_gg[from * s->gates_row + k]);
#undef ADD
    }
  }
  restore_denormals(control);
}

static int64_t backward(const struct pass *p) {
  struct sizes s = sizes_of(p);
  const int64_t H = p->hidden, I = p->inputs, P = s.padded;
  int64_t of_w = p->by_x ? s.G * P * padded_to(I, V) : 0;
  int64_t shared =
      padded_to(of_w, 64) + padded_to(s.G * P * P, 64) + 64 + padded_to(4 * P, 64) +
      padded_to(s.gates ? 9 * P * P : 0, 64) +
      padded_to(p->samples * (s.gates ? s.gates : H), 64);
  s.of_part = work_of(p, &s, 0).count;
  void *raw;
  real *free_ = memory(shared + s.parts * s.of_part, &raw);
  if (!free_)
    return 1;
  struct run run = {.pass = p, .sizes = s};
  run.w = taken(&free_, of_w);
  run.r = taken(&free_, s.G * P * P);
  run.peepholes = taken(&free_, 4 * P);
  run.gg = taken(&free_, s.gates ? 9 * P * P : 0);
  find_initial(p, &run, &free_);
  run.scratch = free_;
  if (!p->steps || !p->samples) /* nothing is added up */
    memset(run.scratch, 0, (size_t)(s.parts * s.of_part) * sizeof(real));
  struct grouped wide = {s.G, H, P}, x = {1, I, padded_to(I, V)}, h = {1, H, P};
  if (p->by_x)
    pack(run.w, p->weight_ih, I, 1, wide, x);
  if (is_gru(p)) {
    struct grouped two = {2, H, P};
    run.r_n = run.r + 2 * P * P;
    pack(run.r, p->weight_hh, H, 1, two, h);
    pack(run.r_n, (const real *)p->weight_hh + 2 * H * H, H, 1, h, h);
  } else
    pack(run.r, p->weight_hh, H, 1, wide, h);
  if (s.gates) {
    struct grouped all = {3, H, P}, two = {2, H, P};
    run.gg_o = run.gg + 6 * P * P;
    pack(run.gg, p->weight_gg, s.gates, 1, all, two);
    pack(run.gg_o, (const real *)p->weight_gg + 2 * H, s.gates, 1, all, h);
  }
  pad(run.peepholes, p->weight_ch, peephole_count(p), H, P);
  in_parts(p, s.parts, backward_parts, &run);
  if (p->by_weight_ih || p->by_weight_hh) {
    if (s.parts > 1 && p->parallel)
      p->parallel(0, s.G * H, 128, add_parts, &run);
    else
      add_parts(0, s.G * H, &run);
  }
  free(raw);
  return 0;
}
