// Muon's update of a list of matrices (muon.py has the rule and its sources), each by one thread.

struct Matrix {  // as `fused_optim.MatrixUpdate`
  float *w, *g, *m;
  i64 fan_out, fan_in;
  float lr, decay, momentum, factor;
  i64 steps, sphere;  // of the quintics; 1: on the sphere of its norm
  const float* quintics;  // a, b, c of each step
};

constexpr i64 STEPS_OF_A_GRAM_MATRIX = 2;

// y (n, n) = x b, which is symmetric: the panels' rows from the diagonal on, mirrored.
inline void symmetric(i64 n, i64 k, const float* x, i64 ldx, const float* b, float* y) {
  for (i64 j = 0; j < n; j += 2 * W) {
    i64 wide = std::min(2 * W, n - j), below = j + wide;
    multiply<float>(n - j, wide, k, rows_as_they_lie(x + j * ldx, ldx), b + j, n, ZERO, nullptr,
                    y + j * n + j, n);
    if (below < n) columns_of(y + below * n + j, n, n - below, wide, n, y + j * n + below);
  }
}
// q = a I + b s + c s^2
inline void step_of(const float* abc, i64 n, const float* s, const float* s2, float* q) {
  for (i64 j = 0; j < n * n; j += W) store(q + j, abc[1] * load(s + j) + abc[2] * load(s2 + j));
  for (i64 i = 0; i < n; i++) q[i * n + i] += abc[0];
}

inline i64 newton_schulz_room(i64 rows, i64 columns) {
  return 2 * (rows * columns + 2 * W) + 5 * (rows * rows + 2 * W);
}

// U V^T of x = U S V^T approximately, in place: `rows` <= `columns`, singular values below 1.
inline void newton_schulz(i64 rows, i64 columns, i64 steps, const float* quintics, float* x,
                          float* room) {
  auto take = [&room](i64 n) { float* p = room; room += n + 2 * W; return p; };
  i64 n = rows * columns, square = rows * rows;
  float *xt = take(n), *next = take(n), *s = take(square), *s2 = take(square), *q = take(square);
  auto gram = [&] {
    columns_of(x, columns, rows, columns, rows, xt);
    symmetric(rows, columns, x, columns, xt, s);
  };
  auto turn = [&](const float* by) {  // x = by x
    multiply<float>(rows, columns, rows, rows_as_they_lie(by, rows), x, columns, ZERO, nullptr, next, columns);
    memcpy(x, next, n * 4);
  };
  if (4 * columns <= 5 * rows) {
    for (i64 step = 0; step < steps; step++) {
      gram();
      symmetric(rows, rows, s, rows, s, s2);
      step_of(quintics + 3 * step, rows, s, s2, q);
      turn(q);
    }
    return;
  }
  // All that happens to a wide x happens on its left, by polynomials of its Gram matrix, which
  // are square; but rounding grows twelvefold a step there where x is nearly nothing.
  float *all = take(square), *t = take(square);
  for (i64 step = 0; step < steps; step++) {
    i64 place = step % STEPS_OF_A_GRAM_MATRIX;
    if (!place) gram();
    symmetric(rows, rows, s, rows, s, s2);
    step_of(quintics + 3 * step, rows, s, s2, q);
    if (!place) memcpy(all, q, square * 4);
    else { symmetric(rows, rows, q, rows, all, t); std::swap(all, t); }
    if (step + 1 == steps || place + 1 == STEPS_OF_A_GRAM_MATRIX) { turn(all); continue; }
    symmetric(rows, rows, q, rows, s, s2);  // the Gram matrix of what x will be
    symmetric(rows, rows, q, rows, s2, s);
  }
}

inline float length(const float* x, i64 n) {  // Frobenius' norm
  double squares = 0;
  for (i64 j = 0; j < n; j += W) {
    vf part = load(x + j, n - j);
    squares += sum(only(part * part, n - j));
  }
  return std::sqrt(squares);
}

inline void muon_update(const Matrix& t) {
  i64 n = t.fan_out * t.fan_in;
  bool tall = t.fan_out > t.fan_in;
  i64 rows = tall ? t.fan_in : t.fan_out, columns = tall ? t.fan_out : t.fan_in;
  static thread_local std::vector<float> memory;
  i64 need = 2 * (n + 2 * W) + newton_schulz_room(rows, columns);
  if ((i64)memory.size() < need) memory.resize(need);
  float *x = memory.data(), *u = x + n + 2 * W, *room = u + n + 2 * W;

  float lerp = 1.f - t.momentum;
  double squares = 0;
  for (i64 j = 0; j < n; j += W) {  // momentum, then Nesterov's look ahead
    vf g = load(t.g + j, n - j), m = load(t.m + j, n - j);
    m += lerp * (g - m);
    vf ahead = g + t.momentum * (m - g);
    store(t.m + j, m, n - j); store(u + j, ahead, n - j);
    squares += sum(only(ahead * ahead, n - j));
  }
  float norm = std::sqrt(squares);
  vf scale = all(1.f / (norm > 1e-7f ? norm : 1e-7f));
  if (tall) columns_of(u, t.fan_in, t.fan_out, t.fan_in, t.fan_out, x);
  else memcpy(x, u, n * 4);
  for (i64 j = 0; j < n; j += W) store(x + j, scale * load(x + j));
  {
    Scope op("newton_schulz");
    newton_schulz(rows, columns, t.steps, t.quintics, x, room);
  }
  if (tall) columns_of(x, columns, rows, columns, rows, u);
  else memcpy(u, x, n * 4);

  float shrink = 1.f - t.lr * t.decay, step = t.lr * t.factor;
  float held = 0;
  if (t.sphere) {  // the update as long as the matrix, which then keeps its length
    held = length(t.w, n);
    shrink = 1.f, step = t.lr * held / std::max(length(u, n), 1e-7f);
  }
  for (i64 j = 0; j < n; j += W)
    store(t.w + j, shrink * load(t.w + j, n - j) - step * load(u + j), n - j);
  if (!t.sphere) return;
  vf back = all(held / std::max(length(t.w, n), 1e-7f));
  for (i64 j = 0; j < n; j += W) store(t.w + j, back * load(t.w + j, n - j), n - j);
}

void muon(i64 count, const Matrix* all) {
  Scope op("muon");
  std::atomic<i64> next{0};
  parallel([&] { take_turns(count, next, [=](i64 i) { muon_update(all[i]); }); });
}
