/* Rows of adjoints through one step of a cell.

   The step comes as its graph folded (cells/folding.py): a few nodes, each a sum of multiples of
   others and of products with weights. No cell is known here. Where there are many rows, the Jacobian
   sum_g diag(factor_g) W_g of each sample is formed once, and every row goes through it alone. */

#define MOST_TERMS 8
#define FEW_ROWS 8        /* up to which rows go through the weights of all blocks */
#define ROWS_AT_A_TIME 48 /* many rows of one sample */

/* Rows of numbers of a group of samples: entry (sample, row, j) is at[sample, row, j]. */
struct rows {
  real *at;
  int64_t sample, row;
};

/* A program made ready to be run. */
struct runner {
  const struct program *program;
  const real *packed[SCAN_PRODUCTS];     /* the weights of each product */
  int64_t width, side_by_side, jacobians; /* numbers of: a product's row, a row of blocks, all J */
  int64_t registers, of_registers;       /* how many, and the numbers of a row of all of them */
  int64_t of_packed, work;               /* numbers of all weights; multiplications of a row */
};

/* Where the scratch of some rows of some samples lies; registers[0] holds the rows. */
struct work_rows {
  struct rows registers[SCAN_NODES + 1];
  real *blocks, *c, *jacobians;
  int kept; /* whether the other registers hold all rows, and not only those at hand */
};

INLINE int64_t most_of(int64_t one, int64_t other) { return one > other ? one : other; }

INLINE const real *factor_at(const struct factor *f, int64_t step, int64_t sample, int64_t block) {
  return (const real *)f->at + step * f->step + sample * f->sample + block * f->block;
}

/* sum_g diag(f_g) W_g, packed as the weights are. */
INLINE void form_jacobian(
    int64_t blocks, int64_t height, int64_t vectors, const real *f, int64_t f_block,
    const real *packed, int64_t packed_depth, int64_t first_k, real *jacobian) {
  for (int64_t first = 0; first < vectors; first += NR) {
    int64_t width = (vectors - first < NR ? vectors - first : NR) * V;
    const real *w = packed + first * V * packed_depth + first_k * width;
    real *to = jacobian + first * V * height;
    for (int64_t k = 0; k < height; k++, w += width, to += width)
      for (int64_t v = 0; v < width; v += V) {
        vec sum = all(f[k]) * load(w + v);
        for (int64_t g = 1; g < blocks; g++)
          sum += all(f[g * f_block + k]) * load(w + g * height * width + v);
        store(to + v, sum);
      }
  }
}

/* out = (start + sum of source * factor) * scale for the rows of one sample; whole vectors are
   written, so that some numbers behind the last one are, too. */
INLINE void sum_terms(
    int64_t terms, const struct rows *sources, const real *const *factors, int64_t rows,
    int64_t width, const real *start, int64_t start_row, const real *scale, real *out,
    int64_t out_row) {
  for (int64_t j = 0; j < width; j += V) {
    vec factor[MOST_TERMS], by = scale ? load_some(scale + j, width - j) : all(1);
    for (int64_t t = 0; t < terms; t++)
      factor[t] = factors[t] ? load_some(factors[t] + j, width - j) : all(1);
    for (int64_t row = 0; row < rows; row++) {
      vec sum = start ? load(start + row * start_row + j) : (vec){0};
      for (int64_t t = 0; t < terms; t++) {
        vec more = load(sources[t].at + row * sources[t].row + j) * factor[t];
        sum = t || start ? sum + more : more;
      }
      store(out + row * out_row + j, scale ? sum * by : sum);
    }
  }
}

/* The Jacobian of one sample for all segments of several blocks, one after the other. */
static void form_jacobians(
    const struct runner *run, const struct work_rows *w, int64_t step, int64_t sample) {
  const struct program *p = run->program;
  const struct segment *s = p->all_segments;
  real *to = w->jacobians;
  for (int64_t number = 0; number < p->products; number++) {
    const struct product *product = p->all_products + number;
    const int64_t H = product->height, vectors = padded_to(product->width, V) / V;
    const real *packed = run->packed[number];
    for (int64_t i = 0; i < product->segments; i++, s++) {
      if (s->blocks == 1)
        continue;
      const real *f = factor_at(&s->factor, step, sample, 0);
      const int64_t by = s->factor.block, k = s->first * H, depth = product->blocks * H;
      if (s->blocks == 2)
        form_jacobian(2, H, vectors, f, by, packed, depth, k, to);
      else if (s->blocks == 3)
        form_jacobian(3, H, vectors, f, by, packed, depth, k, to);
      else
        form_jacobian(s->blocks, H, vectors, f, by, packed, depth, k, to);
      to += H * vectors * V;
    }
  }
}

/* Some rows of some samples; those of registers that are `kept` lie where they lie in register 0. */
struct part_of_rows {
  int64_t sample, samples, first, rows;
};

INLINE struct rows part_of(struct rows all, const struct part_of_rows *part, int kept) {
  if (kept)
    all.at += part->sample * all.sample + part->first * all.row;
  else
    all.sample = part->rows * all.row;
  return all;
}

/* A product of a node to `out`; added to what is there, if `add`. */
static void scan_product(
    const struct runner *run, const struct product *product, const struct segment *segments,
    const real *packed, const struct work_rows *w, const struct part_of_rows *part, int64_t step,
    int64_t sample, int few, int add, const real **jacobian, real *out, int64_t out_row) {
  const int64_t vectors = padded_to(product->width, V) / V, rows = part->rows;
  const int64_t H = product->height, depth = product->blocks * H;
  for (const struct segment *s = segments; s < segments + product->segments; s++) {
    struct rows source = part_of(w->registers[s->source], part, w->kept || s->source == 0);
    source.at += s->start;
    if (few || s->blocks == 1) {
      const int64_t row_size = run->side_by_side;
      for (int64_t b = 0; b < part->samples; b++) {
        struct rows one = {source.at + b * source.sample, 0, source.row};
        real *to = w->blocks + b * rows * row_size;
        for (int64_t g = 0; g < s->blocks; g++) {
          const real *f = s->factor.at ? factor_at(&s->factor, step, sample + b, g) : 0;
          sum_terms(1, &one, &f, rows, H, 0, 0, 0, to + g * H, row_size);
        }
      }
      product_of_part(
          part->samples * rows, vectors, s->blocks * H, w->blocks, row_size, packed, depth,
          s->first * H, add ? out : 0, out_row, out, out_row);
    } else {
      product_of_part(
          rows, vectors, H, source.at, source.row, *jacobian, H, 0, add ? out : 0, out_row, out,
          out_row);
      *jacobian += H * vectors * V;
    }
    add = 1;
  }
}

/* The nodes of some rows, in the order in which they are computed. */
static void through_nodes(
    const struct runner *run, struct work_rows *w, struct rows before,
    const struct part_of_rows *part, int64_t step, int64_t sample, int few) {
  const struct program *p = run->program;
  const struct term *term = p->all_terms;
  const struct product *product = p->all_products;
  const struct segment *segment = p->all_segments;
  const real *jacobian = w->jacobians;
  const int64_t rows = part->rows;
  int64_t number = 0, formed = 0;
  for (const struct node *node = p->all_nodes; node < p->all_nodes + p->nodes; node++) {
    struct rows out = before;
    int kept = 1;
    if (node->slot < 0) {
      out = w->registers[++formed];
      kept = w->kept;
    } else
      out.at += node->slot;
    out = part_of(out, part, kept);
    /* Whole vectors are written: what they overrun is written later, or no part of the row. */
    const int direct = part->samples == 1 || out.sample == rows * out.row;
    real *products = direct ? out.at : w->c;
    const int64_t product_row = direct ? out.row : run->width;
    for (int64_t i = 0; i < node->products; i++, product++, number++) {
      scan_product(
          run, product, segment, run->packed[number], w, part, step, sample, few, i > 0, &jacobian,
          products, product_row);
      segment += product->segments;
    }
    if (node->products && direct && !node->terms && !node->scale.at)
      continue;
    for (int64_t b = 0; b < part->samples; b++) {
      struct rows sources[MOST_TERMS];
      const real *factors[MOST_TERMS];
      for (int64_t t = 0; t < node->terms; t++) {
        struct rows source =
            part_of(w->registers[term[t].source], part, w->kept || term[t].source == 0);
        sources[t] = (struct rows){source.at + b * source.sample + term[t].start, 0, source.row};
        factors[t] = term[t].factor.at ? factor_at(&term[t].factor, step, sample + b, 0) : 0;
      }
      const real *scale = node->scale.at ? factor_at(&node->scale, step, sample + b, 0) : 0;
      const real *start = node->products ? products + b * rows * product_row : 0;
      real *to = out.at + b * out.sample;
      if (node->terms == 1 && !start && !scale)
        sum_terms(1, sources, factors, rows, node->width, 0, 0, 0, to, out.row);
      else if (node->terms == 2 && !start && !scale)
        sum_terms(2, sources, factors, rows, node->width, 0, 0, 0, to, out.row);
      else if (node->terms == 1 && start && !scale)
        sum_terms(1, sources, factors, rows, node->width, start, product_row, 0, to, out.row);
      else
        sum_terms(
            node->terms, sources, factors, rows, node->width, start, product_row, scale, to,
            out.row);
    }
    term += node->terms;
  }
}

/* The rows of a group of samples through one step: registers[0] is what is pulled back, `before`
   what comes back. Many rows go through the Jacobian of each sample, some of them at a time. */
static void through_step(
    const struct runner *run, struct work_rows *w, struct rows before, int64_t step,
    int64_t sample, int64_t samples, int64_t rows, int few) {
  if (few) {
    struct part_of_rows all_rows = {0, samples, 0, rows};
    through_nodes(run, w, before, &all_rows, step, sample, 1);
    return;
  }
  for (int64_t b = 0; b < samples; b++) {
    form_jacobians(run, w, step, sample + b);
    for (int64_t first = 0; first < rows; first += ROWS_AT_A_TIME) {
      int64_t here = rows - first < ROWS_AT_A_TIME ? rows - first : ROWS_AT_A_TIME;
      struct part_of_rows some = {b, 1, first, here};
      through_nodes(run, w, before, &some, step, sample + b, 0);
    }
  }
}

/* The adjoints of the blocks of a group side by side for one of the rows, [B, blocks * height]. */
INLINE void side_by_side(
    const struct group *group, const struct segment *segments, const struct work_rows *w,
    int64_t at, int64_t step, int64_t samples, real *out, int64_t out_row) {
  const int64_t H = group->height;
  for (const struct segment *s = segments; s < segments + group->segments; s++) {
    const struct rows source = w->registers[s->source];
    for (int64_t b = 0; b < samples; b++) {
      const real *from = source.at + b * source.sample + at * source.row + s->start;
      for (int64_t block = 0; block < s->blocks; block++) {
        real *to = out + b * out_row + (s->first + block) * H;
        const real *f = s->factor.at ? factor_at(&s->factor, step, b, block) : 0;
        int64_t j = 0;
        for (; j + V <= H; j += V)
          store(to + j, f ? load(from + j) * load(f + j) : load(from + j));
        for (; j < H; j++)
          to[j] = f ? from[j] * f[j] : from[j];
      }
    }
  }
}

/* What a program needs; the weights are not packed yet. */
static struct runner runner_of(const struct program *p) {
  struct runner r = {.program = p};
  const struct product *product = p->all_products;
  const struct segment *segment = p->all_segments;
  for (int64_t i = 0; i < p->products; i++, product++) {
    int64_t padded = padded_to(product->width, V);
    r.of_packed += padded_to(product->blocks * product->height * padded, 64);
    r.work += product->blocks * product->height * padded;
    r.width = most_of(r.width, odd_row(padded));
    for (int64_t s = 0; s < product->segments; s++, segment++) {
      r.side_by_side = most_of(r.side_by_side, odd_row(segment->blocks * product->height + V));
      if (segment->blocks > 1)
        r.jacobians += product->height * padded;
    }
  }
  for (const struct node *node = p->all_nodes; node < p->all_nodes + p->nodes; node++)
    if (node->slot < 0) {
      r.of_registers += odd_row(node->width + V);
      r.registers++;
    }
  return r;
}

static void pack_all(struct runner *r, real **free_) {
  const struct product *product = r->program->all_products;
  for (int64_t i = 0; i < r->program->products; i++, product++) {
    int64_t depth = product->blocks * product->height, padded = padded_to(product->width, V);
    real *to = taken(free_, depth * padded);
    struct grouped ks = {1, depth, depth}, ns = {1, product->width, padded};
    pack(to, product->matrix, product->by_row, product->by_column, ks, ns);
    r->packed[i] = to;
  }
}

/* Rows of all samples that pass through the nodes at a time. */
INLINE int64_t rows_at_hand(int64_t samples, int64_t rows) {
  int64_t of_each = rows < FEW_ROWS ? rows : FEW_ROWS;
  return most_of(samples * of_each, rows < ROWS_AT_A_TIME ? rows : ROWS_AT_A_TIME);
}

/* Numbers of scratch that `work_on` takes. */
static int64_t of_work(
    const struct runner *r, int64_t size, int64_t samples, int64_t rows, int kept) {
  const int64_t at_hand = rows_at_hand(samples, rows);
  return (r->registers + 4) * 64 + r->jacobians + samples * rows * odd_row(size + V) +
         (kept ? samples * rows : at_hand) * r->of_registers +
         at_hand * (r->side_by_side + r->width);
}

static struct work_rows work_on(
    const struct runner *r, int64_t size, int64_t samples, int64_t rows, int kept, real **free_) {
  struct work_rows w;
  const int64_t at_hand = rows_at_hand(samples, rows), row = odd_row(size + V);
  int64_t number = 0;
  w.kept = kept;
  w.registers[0] = (struct rows){taken(free_, samples * rows * row), rows * row, row};
  const struct program *p = r->program;
  for (const struct node *node = p->all_nodes; node < p->all_nodes + p->nodes; node++)
    if (node->slot < 0) {
      int64_t wide = odd_row(node->width + V);
      real *at = taken(free_, (kept ? samples * rows : at_hand) * wide);
      w.registers[++number] = (struct rows){at, rows * wide, wide};
    }
  w.blocks = taken(free_, at_hand * r->side_by_side);
  w.c = taken(free_, at_hand * r->width);
  w.jacobians = taken(free_, r->jacobians);
  return w;
}

#define GROUPED_ROWS 48 /* rows that samples of few rows are taken together for */

/* How a pass is shared out: groups of samples, times parts of the units in which rows go. */
struct tasks {
  int64_t groups, parts;
};

/* Enough tasks for all threads, and enough rows in each of them. */
static struct tasks tasks_of(int64_t B, int64_t units, int64_t rows, int64_t threads) {
  int64_t together = rows < GROUPED_ROWS ? GROUPED_ROWS / rows : 1;
  struct tasks t = {.groups = (B + together - 1) / together};
  if (t.groups < threads)
    t.groups = threads < B ? threads : B;
  t.parts = t.groups < threads ? (threads + t.groups - 1) / t.groups : 1;
  if (t.parts > units)
    t.parts = units;
  return t;
}

/* The samples of a task, and its units. */
static void task_of(
    const struct tasks *t, int64_t task, int64_t B, int64_t units, int64_t *sample,
    int64_t *samples, int64_t *first, int64_t *most) {
  int64_t group = task / t->parts, part = task % t->parts;
  *sample = B * group / t->groups;
  *samples = B * (group + 1) / t->groups - *sample;
  *first = units * part / t->parts;
  *most = units * (part + 1) / t->parts - *first;
}
