/* Changes of the weights at a step, pushed to the state after it: how much of a given gradient G is
   in what rows make of a parameter follows from the rows as they are,

       < sum_b da_b (x) u_b, G > = sum_b < da_b, G u_b > = sum_b < delta_b, push(G u_b) >

   push is the transpose of the way from adjoints of the state to those of the blocks of a group, and
   goes through the nodes from the last to the first. It is the same for all rows of a step. */

/* What some changes are pushed with: G of each operand packed, one after the other; G u of an operand,
   [B, width]; what it changes of a sample in the place of each register. */
struct pushing {
  const real *gradients;
  real *image;
  int64_t width;
  real *registers[SCAN_NODES + 1];
};

static int64_t of_pushing(const struct sizes_of_rows *p, int64_t width) {
  int64_t numbers = p->samples * width + odd_row(p->size + V) + 2 * 64;
  for (int64_t i = 0; i < p->program.nodes; i++)
    numbers += odd_row(p->program.all_nodes[i].width + V) + 64;
  return numbers;
}

/* Room for it, of so many numbers. */
static struct pushing pushing_with(
    const struct sizes_of_rows *p, const real *gradients, int64_t width, real **free_) {
  struct pushing w = {.gradients = gradients, .width = width};
  w.image = taken(free_, p->samples * width);
  w.registers[0] = taken(free_, odd_row(p->size + V));
  for (int64_t i = 0; i < p->program.nodes; i++)
    w.registers[i + 1] = taken(free_, odd_row(p->program.all_nodes[i].width + V));
  return w;
}

INLINE int64_t of_gradient(const struct group *g, const struct operand *u) {
  return padded_to((u->at ? u->width : 1) * padded_to(g->blocks * g->height, V), 64);
}

/* G of each operand, as products with the operands of a step read it. */
static void pack_gradients(const struct sizes_of_rows *p, real *to) {
  const struct operand *u = p->all_operands;
  const struct matrix *gradient = p->gradients;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    const int64_t P = g->blocks * g->height;
    for (const struct operand *end = u + g->operands; u < end; u++, gradient++) {
      const int64_t depth = u->at ? u->width : 1;
      const struct grouped ks = {1, depth, depth}, ns = {1, P, padded_to(P, V)};
      pack(to, gradient->at, gradient->by_column, gradient->by_row, ks, ns);
      to += of_gradient(g, u);
    }
  }
}

/* to += from * factor, unit by unit. */
INLINE void add_times(const real *from, const real *factor, int64_t size, real *to) {
  int64_t j = 0;
  for (; j + V <= size; j += V)
    store(to + j, load(to + j) + load(from + j) * (factor ? load(factor + j) : all(1)));
  for (; j < size; j++)
    to[j] += from[j] * (factor ? factor[j] : 1);
}

/* What the sum of some products changes with what leads to it. */
static void push_products(
    const struct product *product, int64_t products, const struct segment *s, int64_t step,
    int64_t sample, const real *from, const struct pushing *w) {
  for (; products > 0; products--, product++) {
    const int64_t H = product->height;
    for (int64_t i = 0; i < product->segments; i++, s++)
      for (int64_t block = 0; block < s->blocks; block++) {
        const real *f = s->factor.at ? factor_at(&s->factor, step, sample, block) : 0;
        const real *row = (const real *)product->matrix + (s->first + block) * H * product->by_row;
        real *to = w->registers[s->source] + s->start;
        for (int64_t k = 0; k < H; k++, row += product->by_row) {
          real sum = 0;
          for (int64_t n = 0; n < product->width; n++)
            sum += row[n * product->by_column] * from[n];
          to[k] += f ? f[k] * sum : sum;
        }
      }
  }
}

/* From the changes of the nodes to those of the state after, in register 0. */
static void push_nodes(
    const struct program *p, int64_t step, int64_t sample, const struct pushing *w) {
  const struct term *term = p->all_terms;
  const struct product *product = p->all_products;
  const struct segment *segment = p->all_segments;
  for (const struct node *node = p->all_nodes; node < p->all_nodes + p->nodes; node++)
    term += node->terms;
  for (int64_t i = 0; i < p->products; i++, product++)
    segment += product->segments;
  for (int64_t i = p->nodes; i > 0; i--) {
    const struct node *node = p->all_nodes + i - 1;
    real *from = w->registers[i];
    const real *scale = node->scale.at ? factor_at(&node->scale, step, sample, 0) : 0;
    for (int64_t j = 0; scale && j < node->width; j++)
      from[j] *= scale[j];
    term -= node->terms;
    for (int64_t t = 0; t < node->terms; t++) {
      const real *f = term[t].factor.at ? factor_at(&term[t].factor, step, sample, 0) : 0;
      add_times(from, f, node->width, w->registers[term[t].source] + term[t].start);
    }
    for (int64_t j = 0; j < node->products; j++)
      segment -= (--product)->segments;
    push_products(product, node->products, segment, step, sample, from, w);
  }
}

/* What G u of all operands changes of the state after a step, [U, B, row]. */
static void push_all(
    const struct sizes_of_rows *p, int64_t step, const struct pushing *w, real *pushed,
    int64_t row) {
  const struct segment *segments = p->of_groups;
  const struct operand *u = p->all_operands;
  const real *gradient = w->gradients;
  for (const struct group *g = p->all_groups; g < p->all_groups + p->groups; g++) {
    const int64_t H = g->height, vectors = padded_to(g->blocks * H, V) / V;
    for (const struct operand *end = u + g->operands; u < end; u++) {
      const real *image = gradient; /* of an operand of 1 */
      if (u->at) {
        product(
            p->samples, vectors, u->width, (const real *)u->at + step * u->step, u->sample,
            gradient, 0, 0, w->image, w->width);
        image = w->image;
      }
      for (int64_t b = 0; b < p->samples; b++, pushed += row) {
        memset(w->registers[0], 0, (size_t)p->size * sizeof(real));
        for (int64_t i = 0; i < p->program.nodes; i++)
          memset(w->registers[i + 1], 0, (size_t)p->program.all_nodes[i].width * sizeof(real));
        for (const struct segment *s = segments; s < segments + g->segments; s++)
          for (int64_t block = 0; block < s->blocks; block++)
            add_times(
                image + (s->first + block) * H,
                s->factor.at ? factor_at(&s->factor, step, b, block) : 0, H,
                w->registers[s->source] + s->start);
        push_nodes(&p->program, step, b, w);
        memcpy(pushed, w->registers[0], (size_t)p->size * sizeof(real));
        image += u->at ? w->width : 0;
      }
      gradient += of_gradient(g, u);
    }
    segments += g->segments;
  }
}
