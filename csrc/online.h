/* The training of 1997: on line, by the truncated gradient (studies/online.py has the equations).

   A lane is a cell or a gate of a cell: first the C cells, then a gate of each of them, gate after
   gate, so that a gate that a block of S cells shares has S equal lanes. The first lanes, those of
   cells, input gates and forget gates, have traces: the derivatives of the cells' states by their
   weights. Matrices from the D numbers that hidden units see are stored as [D, lanes], so that of
   symbols among the inputs only one row is read. Peepholes are one row more, from numbers that differ
   from lane to lane: the state of the lane's own cell. Lanes beyond the last one hold finite numbers that
   nothing reads. */

/* A function as a multiple of the logistic one; 0 for the identity. */
struct function {
  real factor, shift;
};

struct plan {
  int64_t C, S, blocks, I, F, D, rows, O, lanes, traced, shown;
  int64_t i_at, f_at, o_at;                /* the first lanes of the gates */
  int64_t lane_row, trace_row, output_row; /* padded */
  struct function cell_input, cell_output, output;
};

struct learner {
  real *w, *by_w, *into;               /* [rows, lane_row], its gradient, traces [rows, trace_row] */
  real *v, *by_v;                      /* of the outputs, [C + I + 1, output_row] */
  real *m, *c;                         /* what hidden units see, [D]; states of the cells */
  real *net, *peeped;                  /* of lanes: their nets, and the states that they see */
  real *value, *slope, *part, *keep;   /* of lanes; what is added to traces, and what stays */
  real *h, *squashed, *squashed_slope; /* of cells: outputs, squashed states */
  real *back, *opened, *delta, *error; /* errors of traces, output gates, outputs, cells' outputs */
  real *factor, *shift, *biased;       /* of lanes: of their functions; 1 where a bias is learnt */
  real *same;                          /* [2 S - 1, lane_row]: whether one so far away is the same */
};

static struct function function_of(int64_t activation) {
  switch (activation) {
  case SIGMOID:
    return (struct function){1, 0};
  case CENTRED_SIGMOID:
    return (struct function){2, -1};
  case WIDE_SIGMOID:
    return (struct function){4, -2};
  default:
    return (struct function){0, 0};
  }
}

static struct plan plan_of(const struct online *p) {
  struct plan s = {.C = p->blocks * p->size, .S = p->size, .blocks = p->blocks};
  s.I = p->inputs;
  s.F = p->fed_back;
  s.D = s.I + s.F + 1;
  s.rows = s.D + !!p->peepholes;
  s.O = p->outputs;
  s.shown = s.C + s.I + 1;
  s.lanes = s.C * (1 + bits(p->gates));
  s.traced = s.C * (2 + !!(p->gates & FORGET));
  s.i_at = s.C;
  s.f_at = 2 * s.C;
  s.o_at = s.traced;
  s.lane_row = padded_to(s.lanes, V);
  s.trace_row = padded_to(s.traced, V);
  s.output_row = padded_to(s.O, V);
  s.cell_input = function_of(p->cell_input);
  s.cell_output = function_of(p->cell_output);
  s.output = function_of(p->output);
  return s;
}

/* Where everything of a network lies, from 0 on if it is not known yet; gives the numbers that it
   takes. Rows that are read or written a vector at a time from any lane on have a vector more. */
static int64_t laid_out(struct plan s, real *scratch, struct learner *n) {
  int64_t row = s.lane_row + V, around = padded_to(s.S, V);
  const struct {
    real **matrix;
    int64_t count;
  } all_of[] = {
      {&n->by_w, s.rows * s.lane_row + 2 * around},
      {&n->w, s.rows * s.lane_row},
      {&n->into, s.rows * s.trace_row},
      {&n->v, s.shown * s.output_row},
      {&n->by_v, s.shown * s.output_row},
      {&n->same, (2 * s.S - 1) * s.lane_row},
      {&n->m, s.D},
      {&n->delta, s.output_row},
      {&n->c, row},
      {&n->net, row},
      {&n->peeped, row},
      {&n->value, row},
      {&n->slope, row},
      {&n->part, row},
      {&n->keep, row},
      {&n->h, row},
      {&n->squashed, row},
      {&n->squashed_slope, row},
      {&n->back, row},
      {&n->opened, row},
      {&n->error, row},
      {&n->factor, row},
      {&n->shift, row},
      {&n->biased, row},
  };
  int64_t taken = 0;
  for (size_t k = 0; k < sizeof all_of / sizeof *all_of; k++) {
    *all_of[k].matrix = scratch ? scratch + taken : 0;
    taken += padded_to(all_of[k].count, 64);
  }
  if (scratch)
    n->by_w += around;
  return taken;
}

/* The row of weight_ih and weight_hh that a lane has. */
INLINE int64_t unit_of(struct plan s, int64_t lane) {
  int64_t gate = lane / s.C - 1, cell = lane % s.C;
  return gate < 0 ? lane : s.C + gate * s.blocks + cell / s.S;
}

/* The weights and the state of a network, into its lanes or back out of them. */
static void exchange(struct plan s, const struct lesson *l, struct learner n, int out) {
#define MOVE(outside, inside)                                                                      \
  do {                                                                                             \
    if (out)                                                                                       \
      outside = inside;                                                                            \
    else                                                                                           \
      inside = outside;                                                                            \
  } while (0)
  real *hidden = l->hidden, *output = l->output, *state = l->state;
  real *by_hidden = l->by_hidden, *by_output = l->by_output;
  for (int64_t lane = 0; lane < s.lanes; lane++)
    for (int64_t d = 0; d < s.rows; d++) {
      MOVE(hidden[unit_of(s, lane) * s.rows + d], n.w[d * s.lane_row + lane]);
      if (by_hidden)
        MOVE(by_hidden[unit_of(s, lane) * s.rows + d], n.by_w[d * s.lane_row + lane]);
    }
  for (int64_t o = 0; o < s.O; o++)
    for (int64_t k = 0; k < s.shown; k++) {
      MOVE(output[o * s.shown + k], n.v[k * s.output_row + o]);
      if (by_output)
        MOVE(by_output[o * s.shown + k], n.by_v[k * s.output_row + o]);
    }
  if (!state)
    return;
  for (int64_t cell = 0; cell < s.C; cell++)
    MOVE(state[cell], n.c[cell]);
  for (int64_t k = 0; k < s.F; k++)
    MOVE(state[s.C + k], n.m[s.I + k]);
  for (int64_t lane = 0; lane < s.traced; lane++)
    for (int64_t d = 0; d < s.rows; d++)
      MOVE(state[s.C + s.F + lane * s.rows + d], n.into[d * s.trace_row + lane]);
#undef MOVE
}

static void prepare(const struct online *p, struct plan s, struct learner n) {
  for (int64_t lane = 0; lane < s.lanes; lane++) {
    int cell = lane < s.C;
    n.factor[lane] = cell ? s.cell_input.factor : 1;
    n.shift[lane] = cell ? s.cell_input.shift : 0;
    n.biased[lane] = !!(p->biased & (cell ? BIASED_CELLS : BIASED_GATES));
    for (int64_t away = 1 - s.S; away < s.S; away++) {
      int64_t other = lane + away;
      int shared = !cell && other >= s.C && other < s.lanes && unit_of(s, other) == unit_of(s, lane);
      n.same[(away + s.S - 1) * s.lane_row + lane] = away == 0 || shared;
    }
  }
  n.m[s.D - 1] = 1;
}

/* The logistic function's multiple, and its slope. */
INLINE vec squash(vec net, vec factor, vec shift, vec *slope) {
  vec sigma = sigmoid(net);
  *slope = factor * sigma * (1 - sigma);
  return factor * sigma + shift;
}

/* The same of a function, or of the identity. */
INLINE vec apply(struct function f, vec net, vec *slope) {
  if (f.factor)
    return squash(net, all(f.factor), all(f.shift), slope);
  *slope = all(1);
  return net;
}

/* Rows of the matrices that belong to the inputs of a step; others would be multiplied by 0. */
struct seen {
  int64_t first, last;
};

/* A step of the cells and of their traces. */
INLINE void step_of_cells(
    const struct online *p, struct plan s, struct learner n, struct seen x, int64_t lane_row,
    int64_t trace_row) {
  /* Each of such rows begins where the one before it ends, and so is written after it. */
#define EACH_CELL(j) for (int64_t j = 0; j < s.C; j += V)
  if (p->peepholes) {
    EACH_CELL(j) store(n.peeped + s.i_at + j, load(n.c + j));
    if (p->gates & FORGET)
      EACH_CELL(j) store(n.peeped + s.f_at + j, load(n.c + j));
    EACH_CELL(j) store(n.peeped + s.o_at + j, (vec){0});
  }
  for (int64_t v = 0; v < lane_row; v += V) {
    const real *w = n.w + v;
    vec net = load(w + (s.D - 1) * lane_row), more = {0};
    for (int64_t d = x.first; d < x.last; d++)
      net += n.m[d] * load(w + d * lane_row);
    int64_t d = s.I;
    for (; d < s.D - 2; d += 2) {
      net += n.m[d] * load(w + d * lane_row);
      more += n.m[d + 1] * load(w + (d + 1) * lane_row);
    }
    if (d < s.D - 1)
      more += n.m[d] * load(w + d * lane_row);
    net += more;
    if (p->peepholes) {
      net += load(n.peeped + v) * load(w + s.D * lane_row);
      store(n.net + v, net);
    }
    vec slope, value = squash(net, load(n.factor + v), load(n.shift + v), &slope);
    if (p->cell_input == IDENTITY && v < s.C) { /* factor and shift of these lanes are 0 */
      int_vec cell = (int_vec)(load(n.factor + v) == 0);
      value = choose(cell, net, value);
      slope = choose(cell, all(1), slope);
    }
    store(n.value + v, value);
    store(n.slope + v, slope);
  }
  EACH_CELL(j) store(n.part + j, load(n.value + s.i_at + j) * load(n.slope + j));
  EACH_CELL(j) store(n.part + s.i_at + j, load(n.slope + s.i_at + j) * load(n.value + j));
  if (p->gates & FORGET) {
    EACH_CELL(j) store(n.part + s.f_at + j, load(n.slope + s.f_at + j) * load(n.c + j));
    for (int64_t part = 0; part < 3; part++)
      EACH_CELL(j) store(n.keep + part * s.C + j, load(n.value + s.f_at + j));
  }
  EACH_CELL(j) {
    vec c = load(n.c + j), slope;
    if (p->gates & FORGET)
      c *= load(n.value + s.f_at + j);
    c += load(n.value + s.i_at + j) * load(n.value + j);
    vec y = apply(s.cell_output, c, &slope);
    if (p->peepholes && p->gates & OUTPUT) { /* its gate sees the state of this step */
      vec seen = c * load(n.w + s.D * lane_row + s.o_at + j), opening;
      store(n.value + s.o_at + j, squash(load(n.net + s.o_at + j) + seen, all(1), all(0), &opening));
      store(n.slope + s.o_at + j, opening);
      store(n.peeped + s.o_at + j, c);
    }
    store(n.c + j, c);
    store(n.squashed + j, y);
    store(n.squashed_slope + j, slope);
    store(n.h + j, p->gates & OUTPUT ? y * load(n.value + s.o_at + j) : y);
  }
  for (int64_t v = 0; v < trace_row; v += V) {
    vec part = load(n.part + v), keep = load(n.keep + v);
    real *into = n.into + v;
#define ADD(d) store(into + (d) * trace_row, load(into + (d) * trace_row) + part * n.m[d])
    if (p->gates & FORGET)
      for (int64_t d = 0; d < s.rows; d++)
        store(into + d * trace_row, keep * load(into + d * trace_row));
    for (int64_t d = x.first; d < x.last; d++)
      ADD(d);
    for (int64_t d = s.I; d < s.D; d++)
      ADD(d);
    if (p->peepholes) {
      real *at = into + s.D * trace_row;
      store(at, load(at) + part * load(n.peeped + v));
    }
#undef ADD
  }
}

/* The answer of a step, and the errors of outputs and of the cells' outputs. */
static void answer(
    const struct online *p, struct plan s, struct learner n, struct seen x, const real *y,
    real *answers) {
  memset(n.error, 0, (size_t)s.C * sizeof(real));
  for (int64_t v = 0; v < s.output_row; v += V) {
    const real *w = n.v + v;
    int64_t count = s.O - v;
    vec net = load(w + (s.shown - 1) * s.output_row), slope;
    for (int64_t k = 0; k < s.C; k++)
      net += n.h[k] * load(w + k * s.output_row);
    if (p->skip)
      for (int64_t d = x.first; d < x.last; d++)
        net += n.m[d] * load(w + (s.C + d) * s.output_row);
    vec given = apply(s.output, net, &slope);
    store_some(answers + v, given, count);
    vec delta = first((load_some(y + v, count) - given) * slope, count);
    store(n.delta + v, delta);
    for (int64_t k = 0; k < s.C; k++) {
      vec back = delta * load(w + k * s.output_row);
      for (int64_t lane = 0; lane < V; lane++)
        n.error[k] += back[lane];
    }
  }
}

/* to += by times the negative gradient by the weights of the outputs. */
static void add_outputs(
    const struct online *p, struct plan s, struct learner n, struct seen x, real by, real *to) {
  for (int64_t v = 0; v < s.output_row; v += V) {
    vec delta = by * load(n.delta + v);
#define ADD(row, shown)                                                                            \
  do {                                                                                             \
    real *at = to + (row) * s.output_row + v;                                                      \
    store(at, load(at) + delta * (shown));                                                         \
  } while (0)
    for (int64_t k = 0; k < s.C; k++)
      ADD(k, n.h[k]);
    if (p->skip)
      for (int64_t d = x.first; d < x.last; d++)
        ADD(s.C + d, n.m[d]);
    if (p->biased & BIASED_OUTPUTS)
      ADD(s.shown - 1, (real)1);
#undef ADD
  }
}

/* The negative gradient by the weights of the lanes, added to a multiple of what there is. */
static void add_lanes(
    const struct online *p, struct plan s, struct learner n, struct seen x, real kept) {
  const int opens = !!(p->gates & OUTPUT);
  for (int64_t part = 0; part * s.C < s.traced; part++)
    EACH_CELL(j) {
      vec came = load(n.error + j) * load(n.squashed_slope + j);
      store(n.back + part * s.C + j, opens ? came * load(n.value + s.o_at + j) : came);
    }
  if (opens)
    EACH_CELL(j) {
      vec by_h = load(n.error + j) * load(n.squashed + j);
      store(n.opened + s.o_at + j, by_h * load(n.slope + s.o_at + j));
    }
  for (int64_t v = 0; v < s.lane_row; v += V) {
    vec back = load(n.back + v), opened = load(n.opened + v);
    for (int64_t d = 0; d < s.rows; d++) {
      real *to = n.by_w + d * s.lane_row + v;
      vec sum = kept ? kept * load(to) : (vec){0};
      if (v < s.trace_row)
        sum += back * load(n.into + d * s.trace_row + v);
      if (d == s.D)
        sum += opened * load(n.peeped + v);
      else if (d >= s.I || (d >= x.first && d < x.last))
        sum += opened * n.m[d];
      store(to, sum);
    }
  }
}

/* A step of the weights of the lanes; those that are one weight take the sum. */
static void descend(struct plan s, struct learner n, real rate) {
  for (int64_t v = 0; v < s.lane_row; v += V)
    for (int64_t d = 0; d < s.rows; d++) {
      vec sum = {0};
      for (int64_t away = 1 - s.S; away < s.S; away++)
        sum += load(n.same + (away + s.S - 1) * s.lane_row + v) *
               load(n.by_w + d * s.lane_row + v + away);
      if (d == s.D - 1)
        sum *= load(n.biased + v);
      real *w = n.w + d * s.lane_row + v;
      store(w, load(w) + rate * sum);
    }
}

/* Whether some output that may be active is not more active than one that may not. */
INLINE int is_wrong(const real *answers, const uint8_t *possible, int64_t outputs) {
  real least = INFINITY, most = -INFINITY;
  for (int64_t o = 0; o < outputs; o++)
    if (possible[o])
      least = answers[o] < least || answers[o] != answers[o] ? answers[o] : least;
    else
      most = answers[o] > most || answers[o] != answers[o] ? answers[o] : most;
  return !(least > most);
}

/* Whether some answer errs by the limit or more. */
INLINE int is_off(const real *answers, const real *y, int64_t outputs, real limit) {
  for (int64_t o = 0; o < outputs; o++) {
    real error = answers[o] - y[o];
    if (!(error < limit && -error < limit))
      return 1;
  }
  return 0;
}

/* The state of a network as it is before its first step. */
static void forget(struct plan s, struct learner n) {
  memset(n.c, 0, (size_t)s.C * sizeof(real));
  memset(n.m + s.I, 0, (size_t)s.F * sizeof(real));
  memset(n.into, 0, (size_t)(s.rows * s.trace_row) * sizeof(real));
}

/* The weights after an answer. */
static void learn_answer(
    const struct online *p, struct plan s, struct learner n, struct seen x, const struct lesson *l,
    real rate) {
  const int64_t outputs = s.shown * s.output_row;
  const real momentum = (real)l->momentum;
  add_lanes(p, s, n, x, momentum);
  descend(s, n, rate);
  if (!momentum) {
    add_outputs(p, s, n, x, rate, n.v);
    return;
  }
  for (int64_t k = 0; k < outputs; k++)
    n.by_v[k] *= momentum;
  add_outputs(p, s, n, x, 1, n.by_v);
  for (int64_t k = 0; k < outputs; k++)
    n.v[k] += rate * n.by_v[k];
}

INLINE void feed_back(struct plan s, struct learner n) {
  real *to = n.m + s.I;
  if (s.F)
    for (int64_t k = 0; k < s.C; k++)
      *to++ = n.h[k];
  if (s.F > s.C)
    for (int64_t lane = s.C; lane < s.lanes; lane += s.S)
      *to++ = n.value[lane];
}

static void learn_sequence(
    const struct online *p, struct plan s, const struct lesson *l, struct learner n,
    int64_t sequence) {
  const int64_t N = l->sequences;
  double rate = l->rate;
  int64_t step = 0;
  if (!l->state)
    forget(s, n);
  if (!l->by_hidden) {
    memset(n.by_w, 0, (size_t)(s.rows * s.lane_row) * sizeof(real));
    memset(n.by_v, 0, (size_t)(s.shown * s.output_row) * sizeof(real));
  }
  for (int ends = 0; !ends && step < l->lengths[sequence]; step += !ends) {
    int64_t at = step * N + sequence;
    struct seen x = {0, s.I};
    if (l->begins && l->begins[at])
      forget(s, n);
    if (l->x)
      memcpy(n.m, (const real *)l->x + at * s.I, (size_t)s.I * sizeof(real));
    else {
      x.first = l->symbols[at];
      x.last = x.first + 1;
      n.m[x.first] = 1;
    }
    if (s.lane_row == V)
      step_of_cells(p, s, n, x, V, V);
    else if (s.lane_row == 2 * V && s.trace_row == 2 * V)
      step_of_cells(p, s, n, x, 2 * V, 2 * V);
    else
      step_of_cells(p, s, n, x, s.lane_row, s.trace_row);
    if (l->due[at]) {
      real *answers = (real *)l->answers + at * s.O;
      const real *y = (const real *)l->y + at * s.O;
      answer(p, s, n, x, y, answers);
      if (p->each_step)
        learn_answer(p, s, n, x, l, (real)rate);
      else {
        add_outputs(p, s, n, x, 1, n.by_v);
        add_lanes(p, s, n, x, 1);
      }
      ends = (l->possible && is_wrong(answers, l->possible + at * s.O, s.O)) ||
             (l->limit > 0 && is_off(answers, y, s.O, (real)l->limit));
    }
    feed_back(s, n);
    rate *= l->decay;
  }
  l->before[sequence] = step;
  if (!p->each_step) {
    descend(s, n, (real)l->rate);
    for (int64_t k = 0; k < s.shown * s.output_row; k++)
      n.v[k] += (real)l->rate * n.by_v[k];
  }
}

struct learning {
  const struct online *online;
  struct plan plan;
  real *scratch;
  int64_t of_network;
};

static void learn_networks(int64_t begin, int64_t end, void *context) {
  const struct learning *run = context;
  const struct online *p = run->online;
  int64_t control = flush_denormals();
  for (int64_t network = begin; network < end; network++) {
    const struct lesson *l = p->lessons + network;
    struct learner n;
    real *scratch = run->scratch + network * run->of_network;
    memset(scratch, 0, (size_t)run->of_network * sizeof(real));
    laid_out(run->plan, scratch, &n);
    prepare(p, run->plan, n);
    exchange(run->plan, l, n, 0);
    for (int64_t sequence = 0; sequence < l->sequences; sequence++)
      learn_sequence(p, run->plan, l, n, sequence);
    exchange(run->plan, l, n, 1);
  }
  restore_denormals(control);
}

static int64_t learn(const struct online *p) {
  struct learning run = {.online = p, .plan = plan_of(p)};
  struct learner none;
  void *raw;
  run.of_network = laid_out(run.plan, 0, &none);
  run.scratch = memory(run.of_network * p->networks, &raw);
  if (!run.scratch)
    return 1;
  if (p->parts < 2 || !p->parallel ||
      p->parallel(0, p->networks, 1, learn_networks, &run))
    learn_networks(0, p->networks, &run);
  free(raw);
  return 0;
}
