// Muon's update of a list of matrices (muon.py has the rule and its sources), each by one thread.

struct Matrix {  // as `fused_optim.MatrixUpdate`
  float *w, *g, *m;
  i64 fan_out, fan_in;
  float lr, decay, momentum, factor;
  i64 steps;
};

// U V^T of x = U S V^T approximately, in place: `rows` <= `columns`, singular values below 1.
inline void newton_schulz(i64 rows, i64 columns, i64 steps, float* x, float* room) {
  const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
  float *xt = room, *s = xt + columns * rows + W, *s2 = s + rows * rows + W, *next = s2 + rows * rows + W;
  for (i64 step = 0; step < steps; step++) {
    columns_of(x, columns, rows, columns, rows, xt);
    multiply<float>(rows, rows, columns, rows_as_they_lie(x, columns), xt, rows, ZERO, nullptr, s, rows);
    multiply<float>(rows, rows, rows, rows_as_they_lie(s, rows), s, rows, ZERO, nullptr, s2, rows);
    for (i64 j = 0; j < rows * rows; j += W) store(s2 + j, b * load(s + j) + c * load(s2 + j));
    for (i64 j = 0; j < rows * columns; j += W) store(next + j, a * load(x + j));
    multiply<float>(rows, columns, rows, rows_as_they_lie(s2, rows), x, columns, SUM, nullptr, next, columns);
    memcpy(x, next, rows * columns * 4);
  }
}

inline void muon_update(const Matrix& t) {
  i64 n = t.fan_out * t.fan_in;
  bool tall = t.fan_out > t.fan_in;
  i64 rows = tall ? t.fan_in : t.fan_out, columns = tall ? t.fan_out : t.fan_in;
  static thread_local std::vector<float> memory;
  i64 need = 4 * (n + 2 * W) + 2 * (rows * rows + 2 * W);
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
  newton_schulz(rows, columns, t.steps, x, room);
  if (tall) columns_of(x, columns, rows, columns, rows, u);
  else memcpy(u, x, n * 4);

  float shrink = 1.f - t.lr * t.decay, step = t.lr * t.factor;
  for (i64 j = 0; j < n; j += W)
    store(t.w + j, shrink * load(t.w + j, n - j) - step * load(u + j), n - j);
}

void muon(i64 count, const Matrix* all) {
  std::atomic<i64> next{0};
  parallel([&] { take_turns(count, next, [=](i64 i) { muon_update(all[i]); }); });
}
