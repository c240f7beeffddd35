// A whole training step's loss and gradients in one call: forward and backward over a few sequences
// at a time, so that what lies between two operations is still in the cache, each thread over its own
// sequences. The threads meet twice: when the weights are packed, and to add their gradients up.
//
// The arithmetic is that of the parts in kernels.cpp, their order that of gpt.py. Sums over sequences
// are made per thread and then in order: equal threads, equal bits.

// A model's tensors, absent ones null, in the order of `slots` in step_ops.py.
enum Slot { WTE, WPE, LN_F, LN_F_BIAS, HEAD, MODEL_SLOTS };
enum BlockSlot { LN_1, LN_1_BIAS, C_Q, C_Q_BIAS, C_K, C_K_BIAS, C_V, C_V_BIAS, Q_NORM, K_NORM, C_PROJ,
                 C_PROJ_BIAS, LN_2, LN_2_BIAS, FC, FC_BIAS, UP, UP_BIAS, PROJ, PROJ_BIAS, BLOCK_SLOTS };

struct Model {  // as `step_ops.ModelRecord`
  i64 layers, vocab, d, heads, kv_heads, head, ffn;
  i64 rms, swiglu;
  float eps, attention, residual, embedding, logits, z_loss, rest;
  i64 threshold;  // of dropout's masks
  const float *cos, *sin;
  float* const* tensors;  // MODEL_SLOTS, then BLOCK_SLOTS of each layer
  float* const* gradients;  // the same, all in one piece of memory; null: losses alone
  i64 parameters;  // floats in that piece, which begins with the first tensor's
};
struct Batch {  // as `step_ops.BatchRecord`
  i64 sequences, length;
  const i64 *idx, *targets, *keys;  // keys: of each site, each sequence's; null without dropout
  float* loss;  // the mean, or, without gradients, each token's
  char* room;  // as many bytes as `step_room` says
  i64 foreign;  // written: whether a token is not in the vocabulary, and nothing else was done
};

template <class T> struct Linear {  // several weights with the same input, as one
  i64 n = 0, k = 0;
  struct Part { const float *w, *bias; i64 n, at; float *gw, *gb; } parts[3];
  int count = 0;
  const T *forward = nullptr, *backward = nullptr;  // packed, of x and of gradients
  const float* bias = nullptr;  // of all

  void add(const float* w, const float* b, i64 rows, i64 columns, float* gw, float* gb) {
    parts[count++] = {w, b, rows, n, gw, gb};
    n += rows; k = columns;
  }
  i64 ld() const { return words<T>(n) * Words<T>::each; }  // of what it gives, in whole words
};

constexpr i64 ROWS_AT_ONCE = 256;

template <class T> struct Block {
  Linear<T> qkv, out, in, proj;
  const float *ln_1, *ln_1_bias, *ln_2, *ln_2_bias, *q_norm, *k_norm;
  i64 at;  // of its slots
};

// Memory handed out in order, each piece on a cache line of its own; without any, it only counts.
struct Room {
  char* begin = nullptr;
  i64 used = 0;
  template <class T> T* take(i64 n) {
    T* p = begin ? (T*)(begin + used) : nullptr;
    used += (n * sizeof(T) + 64 + 63) / 64 * 64;  // a vector beyond the end may be read
    return p;
  }
};

template <class T> struct Step {
  const Model& m;
  const Batch& b;
  std::vector<Block<T>> blocks;
  Linear<T> head;
  i64 kv, wide, inner;  // of k and of v; of q, k and v; of what the MLP begins with

  Step(const Model& model, const Batch& batch) : m(model), b(batch), blocks(model.layers) {
    kv = m.kv_heads * m.head; wide = m.d + 2 * kv; inner = m.swiglu ? 2 * m.ffn : m.ffn;
    for (i64 l = 0; l < m.layers; l++) {
      i64 at = MODEL_SLOTS + l * BLOCK_SLOTS;
      auto t = [&](int slot) { return m.tensors[at + slot]; };
      auto add = [&](Linear<T>& to, int slot, i64 n, i64 k) {
        float* const* g = m.gradients ? m.gradients + at : nullptr;
        to.add(t(slot), t(slot + 1), n, k, g ? g[slot] : nullptr, g ? g[slot + 1] : nullptr);
      };
      Block<T>& block = blocks[l];
      add(block.qkv, C_Q, m.d, m.d); add(block.qkv, C_K, kv, m.d); add(block.qkv, C_V, kv, m.d);
      add(block.out, C_PROJ, m.d, m.d);
      add(block.in, FC, m.ffn, m.d);
      if (m.swiglu) add(block.in, UP, m.ffn, m.d);
      add(block.proj, PROJ, m.d, m.ffn);
      block.ln_1 = t(LN_1); block.ln_1_bias = t(LN_1_BIAS); block.ln_2 = t(LN_2);
      block.ln_2_bias = t(LN_2_BIAS); block.q_norm = t(Q_NORM); block.k_norm = t(K_NORM);
      block.at = at;
    }
    int slot = m.tensors[HEAD] ? HEAD : WTE;
    head.add(m.tensors[slot], nullptr, m.vocab, m.d, m.gradients ? m.gradients[slot] : nullptr, nullptr);
  }
  template <class F> void linears(F f) {
    for (Block<T>& block : blocks) { f(block.qkv); f(block.out); f(block.in); f(block.proj); }
    f(head);
  }

  // -- a few sequences, by one thread ---------------------------------------------------------------
  struct Kept {  // of a block, for the backward pass
    float *x, *middle, *stats_1, *stats_2, *lse;
    T *y_1, *qkv, *q, *k, *y, *y_2, *in, *hidden;
  };
  struct Space {
    std::vector<Kept> kept;
    float *last, *stats, *gx, *gx_2, *rows, *vector;
    T *normed, *branch, *logits, *g_wide, *g_narrow;
  };
  Space layout(Room& room, i64 rows) const {
    Space s;
    s.kept.resize(m.layers);
    bool turned = m.cos || blocks[0].q_norm;
    for (Kept& k : s.kept) {
      if (!m.gradients && &k != &s.kept[0]) { k = s.kept[0]; continue; }  // nothing comes back to it
      k.x = room.take<float>(rows * m.d); k.middle = room.take<float>(rows * m.d);
      k.stats_1 = room.take<float>(2 * rows); k.stats_2 = room.take<float>(2 * rows);
      k.lse = room.take<float>(rows * m.heads);
      k.y_1 = room.take<T>(rows * m.d); k.qkv = room.take<T>(rows * wide);
      k.q = turned ? room.take<T>(rows * m.d) : nullptr;
      k.k = turned ? room.take<T>(rows * kv) : nullptr;
      k.y = room.take<T>(rows * m.d); k.y_2 = room.take<T>(rows * m.d);
      k.in = room.take<T>(rows * inner); k.hidden = room.take<T>(rows * m.ffn);
    }
    i64 widest = std::max({wide, inner, m.vocab, m.d}), vector = std::max(m.d, m.head);
    s.last = room.take<float>(rows * m.d); s.stats = room.take<float>(2 * rows);
    s.normed = room.take<T>(rows * m.d); s.branch = room.take<T>(rows * m.d);
    s.logits = room.take<T>(rows * head.ld());
    if (!m.gradients) return s;
    s.gx = room.take<float>(rows * m.d); s.gx_2 = room.take<float>(rows * m.d);
    s.g_wide = room.take<T>(rows * std::max(wide, inner));
    s.g_narrow = room.take<T>(rows * std::max(m.d, m.ffn));
    s.vector = room.take<float>(2 * vector);
    s.rows = room.take<float>(gradient_room(rows, widest));
    return s;
  }

  void apply(const Linear<T>& l, i64 rows, const T* x, T* y) const {
    Scope op("multiply");
    multiply<T>(rows, l.n, words<T>(l.k), rows_as_they_lie(x, l.k), (const Word<T>*)l.forward, 0,
                l.bias ? ROW : ZERO, l.bias, y, l.ld());
  }
  // gx (null: not wanted) and the gradients of the weights, which are added to
  void differentiate(const Linear<T>& l, i64 rows, const T* g, const T* x, T* gx, i64 shift,
                     float* room) const {
    Scope op("weight_gradient");
    for (int i = 0; i < l.count; i++) {
      const auto& part = l.parts[i];
      weight_gradient(rows, part.n, l.k, g + part.at, l.ld(), x, l.k, part.gw + shift, room);
      if (!part.bias) continue;
      for (i64 j = 0; j < part.n; j += W) {
        vf total = {};
        for (i64 r = 0; r < rows; r++) total += load(g + r * l.ld() + part.at + j, part.n - j);
        float* to = part.gb + shift + j;
        store(to, load(to, part.n - j) + total, part.n - j);
      }
    }
    op.becomes("multiply_backward");
    multiply<T>(rows, l.k, words<T>(l.n), rows_as_they_lie(g, l.n), (const Word<T>*)l.backward, 0, ZERO,
                nullptr, gx, l.k);
  }
  const i64* keys(i64 site, i64 first) const {
    return b.keys ? b.keys + site * b.sequences + first : nullptr;
  }
  void drop(i64 rows, i64 site, i64 first, T* x) const {
    if (b.keys) dropout<T>(rows, b.length, m.d, keys(site, first), m.threshold, m.rest, x, x);
  }

  // The sum of the losses of `count` sequences; their gradients are added to those of m, `shift`
  // floats further on.
  double run(Space& s, i64 first, i64 count, i64 shift) const {
    Scope part(m.gradients ? "forward" : nullptr);
    i64 L = b.length, rows = count * L;
    const i64 *idx = b.idx + first * L, *targets = b.targets + first * L;
    float* x = s.kept[0].x;
    embed(rows, m.d, L, idx, m.tensors[WTE], m.tensors[WPE], m.embedding, x);
    if (b.keys) dropout<float>(rows, L, m.d, keys(0, first), m.threshold, m.rest, x, x);
    const T* branch = nullptr;
    for (i64 l = 0; l < m.layers; l++) {
      const Block<T>& block = blocks[l];
      Kept& k = s.kept[l];
      add_norm<T>(rows, m.d, x, branch, m.residual, block.ln_1, block.ln_1_bias, m.eps, m.rms, k.x,
                  k.y_1, k.stats_1);
      apply(block.qkv, rows, k.y_1, k.qkv);
      Turned q = turned(block, k, rows);
      attend<T>(count, L, m.heads, m.kv_heads, m.head, q.sq, q.sk, wide, m.attention,
                keys(3 * l + 1, first), m.threshold, m.rest, q.q, q.k, k.qkv + m.d + kv, k.y, k.lse);
      apply(block.out, rows, k.y, s.branch);
      drop(rows, 3 * l + 2, first, s.branch);
      add_norm<T>(rows, m.d, k.x, s.branch, m.residual, block.ln_2, block.ln_2_bias, m.eps, m.rms,
                  k.middle, k.y_2, k.stats_2);
      apply(block.in, rows, k.y_2, k.in);
      if (m.swiglu) swiglu<T>(rows, m.ffn, inner, k.in, k.in + m.ffn, k.hidden);
      else gelu<T>(rows * inner, k.in, k.hidden);
      apply(block.proj, rows, k.hidden, s.branch);
      drop(rows, 3 * l + 3, first, s.branch);
      branch = s.branch; x = k.middle;
    }
    add_norm<T>(rows, m.d, x, branch, m.residual, m.tensors[LN_F], m.tensors[LN_F_BIAS], m.eps,
                m.rms, s.last, s.normed, s.stats);
    scale(rows * m.d, m.logits, s.normed);
    apply(head, rows, s.normed, s.logits);
    if (!m.gradients) {
      losses<T>(rows, m.vocab, head.ld(), s.logits, targets, m.z_loss, b.sequences * L, b.loss + first * L, nullptr);
      return 0;
    }
    double loss = losses<T>(rows, m.vocab, head.ld(), s.logits, targets, m.z_loss, b.sequences * L, nullptr, s.logits);

    // and back
    part.becomes("backward");
    differentiate(head, rows, s.logits, s.normed, s.g_narrow, shift, s.rows);
    scale(rows * m.d, m.logits, s.g_narrow);
    norm_back(s, rows, s.g_narrow, nullptr, s.last, m.tensors[LN_F], s.stats, s.gx,
              m.gradients[LN_F], m.gradients[LN_F_BIAS], shift);
    for (i64 l = m.layers; l--;) {
      const Block<T>& block = blocks[l];
      Kept& k = s.kept[l];
      float* const* g = m.gradients + block.at;
      drop(rows, 3 * l + 3, first, s.branch);
      differentiate(block.proj, rows, s.branch, k.hidden, s.g_narrow, shift, s.rows);
      if (m.swiglu)
        swiglu_backward<T>(rows, m.ffn, inner, inner, k.in, k.in + m.ffn, s.g_narrow, s.g_wide,
                           s.g_wide + m.ffn);
      else gelu_backward<T>(rows * inner, k.in, s.g_narrow, s.g_wide);
      differentiate(block.in, rows, s.g_wide, k.y_2, s.g_narrow, shift, s.rows);
      norm_back(s, rows, s.g_narrow, s.gx, k.middle, block.ln_2, k.stats_2, s.gx_2, g[LN_2],
                g[LN_2_BIAS], shift);
      drop(rows, 3 * l + 2, first, s.branch);
      differentiate(block.out, rows, s.branch, k.y, s.g_narrow, shift, s.rows);
      Turned q = turned_already(k);
      T *gq = s.g_wide, *gk = gq + m.d, *gv = gk + kv;
      attend_backward<T>(count, L, m.heads, m.kv_heads, m.head, q.sq, q.sk, wide, m.attention,
                         keys(3 * l + 1, first), m.threshold, m.rest, q.q, q.k, k.qkv + m.d + kv, k.y,
                         k.lse, s.g_narrow, gq, gk, gv, wide);
      if (k.q) {
        turn_back(s, rows, m.heads, k.qkv, block.q_norm, gq, g[Q_NORM], shift);
        turn_back(s, rows, m.kv_heads, k.qkv + m.d, block.k_norm, gk, g[K_NORM], shift);
      }
      differentiate(block.qkv, rows, s.g_wide, k.y_1, s.g_narrow, shift, s.rows);
      norm_back(s, rows, s.g_narrow, s.gx_2, k.x, block.ln_1, k.stats_1, s.gx, g[LN_1], g[LN_1_BIAS],
                shift);
    }
    if (b.keys) dropout<float>(rows, L, m.d, keys(0, first), m.threshold, m.rest, s.gx, s.gx);
    embed_backward(rows, m.d, L, idx, s.gx, m.embedding, m.gradients[WTE] + shift,
                   m.gradients[WPE] ? m.gradients[WPE] + shift : nullptr);
    return loss;
  }

  struct Turned {  // queries and keys as attention takes them, and their rows' distances
    const T *q, *k;
    i64 sq, sk;
  };
  Turned turned_already(const Kept& k) const {
    if (!k.q) return {k.qkv, k.qkv + m.d, wide, wide};
    return {k.q, k.k, m.d, kv};
  }
  Turned turned(const Block<T>& block, const Kept& k, i64 rows) const {
    if (k.q) {
      norm_rope<T>(rows, m.heads, m.head, wide, b.length, k.qkv, block.q_norm, m.eps, m.cos, m.sin, k.q);
      norm_rope<T>(rows, m.kv_heads, m.head, wide, b.length, k.qkv + m.d, block.k_norm, m.eps, m.cos,
                   m.sin, k.k);
    }
    return turned_already(k);
  }
  void turn_back(Space& s, i64 rows, i64 heads, const T* x, const float* weight, T* g, float* gw,
                 i64 shift) const {
    norm_rope_backward<T>(rows, heads, m.head, wide, wide, b.length, x, weight, m.eps, m.cos, m.sin, g,
                          g, s.vector);
    if (weight) accumulate(m.head, s.vector, gw + shift);
  }
  // The gradient of the stream before a norm; s.branch becomes that of the branch.
  void norm_back(Space& s, i64 rows, const T* gy, const float* gs, const float* x, const float* weight,
                 const float* stats, float* gx, float* gw, float* gb, i64 shift) const {
    add_norm_backward<T>(rows, m.d, gy, gs, x, m.residual, weight, m.rms, stats, gx, s.branch, s.vector,
                         gb ? s.vector + m.d : nullptr);
    accumulate(m.d, s.vector, gw + shift);
    if (gb) accumulate(m.d, s.vector + m.d, gb + shift);
  }
  static void accumulate(i64 n, const float* from, float* to) {
    for (i64 j = 0; j < n; j += W) store(to + j, load(to + j, n - j) + load(from + j, n - j), n - j);
  }
  static void scale(i64 n, float by, T* x) {
    if (by == 1.f) return;
    for (i64 j = 0; j < n; j += W) store(x + j, by * load(x + j, n - j), n - j);
  }

  // -- all sequences, by all threads ----------------------------------------------------------------
  struct Plan {
    i64 threads, at_once;  // sequences of a thread that pass together
    float* gradients;      // of the threads but the first
    std::vector<Space> spaces;
  };
  Plan plan(Room& room) {
    Plan p;
    p.threads = std::min(most_threads(), b.sequences);
    i64 share = (b.sequences + p.threads - 1) / p.threads;
    i64 pieces = std::max<i64>(1, (share * b.length + ROWS_AT_ONCE / 2) / ROWS_AT_ONCE);
    p.at_once = std::max<i64>(1, (share + pieces - 1) / pieces);
    linears([&](Linear<T>& l) {
      l.forward = room.take<T>(padded(l.n) * words<T>(l.k) * Words<T>::each);
      l.backward = m.gradients ? room.take<T>(padded(l.k) * words<T>(l.n) * Words<T>::each) : nullptr;
      l.bias = l.parts[0].bias ? room.take<float>(l.n) : nullptr;
    });
    p.gradients = room.take<float>(m.gradients ? (p.threads - 1) * m.parameters : 0);
    for (i64 t = 0; t < p.threads; t++) p.spaces.push_back(layout(room, p.at_once * b.length));
    return p;
  }

  void all_sequences() {
    Room room{b.room};
    Plan p = plan(room);
    std::vector<Linear<T>*> packed;
    linears([&](Linear<T>& l) { packed.push_back(&l); });
    float* gradients = m.gradients ? m.gradients[WTE] : nullptr;
    std::vector<double> loss(p.threads);
    std::atomic<i64> next{0};
    Scope part(gradients ? "backward" : nullptr), op("wait_for_threads");  // where none is in another
    parallel([&] {
      i64 me = thread();
      Tiles tiles;
      float* own = me ? p.gradients + (me - 1) * m.parameters : gradients;
      {
        Scope part(gradients ? "forward" : nullptr), op("pack_weights");
        if (gradients) memset(own, 0, m.parameters * sizeof(float));
        take_turns(packed.size(), next, [&](i64 i) { pack(*packed[i]); });
        op.becomes("wait_for_threads");
        meet();
      }
      i64 at = b.sequences * me / p.threads, end = b.sequences * (me + 1) / p.threads;
      for (; at < end; at += p.at_once)
        loss[me] += run(p.spaces[me], at, std::min(p.at_once, end - at), own - gradients);
      Scope part(gradients ? "backward" : nullptr), op("wait_for_threads");
      meet();
      op.becomes("add_gradients");
      if (!gradients || p.threads == 1) return;
      share(m.parameters / W, [&](i64 i) {
        vf total = load(gradients + i * W);
        for (i64 t = 1; t < p.threads; t++)
          total += load(p.gradients + (t - 1) * m.parameters + i * W);
        store(gradients + i * W, total);
      });
    }, p.threads);
    if (!gradients) return;
    double total = 0;
    for (double part : loss) total += part;
    *b.loss = total / (b.sequences * b.length);
  }
  static void pack(Linear<T>& l) {
    std::vector<T> narrow(W * l.k + 2 * W);
    for (int i = 0; i < l.count; i++) {
      const auto& part = l.parts[i];
      pack_forward<T>(part.n, l.k, part.w, part.at, l.n, (T*)l.forward, narrow.data());
      if (l.backward) pack_backward(part.n, l.k, part.w, part.at, l.n, (T*)l.backward, narrow.data());
      if (part.bias) memcpy((float*)l.bias + part.at, part.bias, part.n * 4);
    }
  }
};

inline bool foreign(i64 n, i64 vocab, const i64* tokens) {
  bool found = false;
  for (i64 i = 0; i < n; i++) found |= (uint64_t)tokens[i] >= (uint64_t)vocab;
  return found;
}
template <class T> void step(const Model* model, Batch* batch) {
  i64 n = batch->sequences * batch->length;
  batch->foreign = foreign(n, model->vocab, batch->idx) || foreign(n, model->vocab, batch->targets);
  if (!batch->foreign) Step<T>(*model, *batch).all_sequences();
}
template <class T> void step_room(const Model* model, const Batch* batch, i64* bytes) {
  Room room;
  Step<T>(*model, *batch).plan(room);
  *bytes = room.used;
}
