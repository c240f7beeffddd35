// Matrix products of a training step, and weights in the layout that they take them in.
//
// One tile of C stays in registers while k runs; B is read a vector at a time from panels of 2 W
// columns, A one word at a time. A word is what one lane multiplies at once: a float, or a pair of
// bfloat16 that follow each other along k.

template <class T> struct Words;
template <> struct Words<float> { typedef float word; static constexpr i64 each = 1; };
template <> struct Words<bf16> { typedef uint32_t word; static constexpr i64 each = 2; };
template <class T> using Word = typename Words<T>::word;
template <class T> inline i64 words(i64 n) { return (n + Words<T>::each - 1) / Words<T>::each; }

inline vf dot(vf sum, float a, vf b) { return sum + all(a) * b; }
inline vf dot(vf sum, uint32_t a, vf b) {
#ifdef __AVX512BF16__
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(a - vu{}), (__m512bh)b);
#else
  vu pairs = a - vu{};
  sum += (vf)(pairs << 16) * (vf)((vu)b << 16);
  return sum + (vf)(pairs & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
#endif
}
inline vf load(const uint32_t* p) { vf v; memcpy(&v, p, sizeof v); return v; }

// What a product adds to: nothing, a row that is the same for all (a bias), or what lies there.
enum Start { ZERO, ROW, SUM };

template <class T, class C, int M, int V>
inline void tile(const Word<T>* A, i64 ai, i64 ak, const Word<T>* B, i64 ldb, i64 k, Start start,
                 const float* row, C* y, i64 ldy, i64 n) {
  vf sum[M][V];
  for (int i = 0; i < M; i++)
    for (int v = 0; v < V; v++) {
      sum[i][v] = start == ROW ? load(row + v * W, n - v * W) : vf{};
      __builtin_prefetch(y + i * ldy + v * W, 1);  // it comes while the sums are made
    }
  for (i64 at = 0; at < k; at++) {
    vf b[V];
    for (int v = 0; v < V; v++) b[v] = load(B + at * ldb + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++)
      for (int v = 0; v < V; v++) sum[i][v] = dot(sum[i][v], A[i * ai + at * ak], b[v]);
  }
  for (int i = 0; i < M; i++)
    for (int v = 0; v < V; v++) {
      C* to = y + i * ldy + v * W;
      store(to, start == SUM ? load(to, n - v * W) + sum[i][v] : sum[i][v], n - v * W);
    }
}

constexpr int TALL = REGISTERS == 32 ? 12 : 6;  // rows whose sums fill the registers

// A of a product: element (i, k) of a strip of TALL rows lies at i `row` + k `next`.
template <class T> struct Left {
  const Word<T>* at;
  i64 row, next, strip;  // words from one strip to the next
};
template <class T> inline Left<T> rows_as_they_lie(const T* x, i64 ld) {
  return {(const Word<T>*)x, words<T>(ld), 1, TALL * words<T>(ld)};
}

// -- tiles (AMX) ----------------------------------------------------------------------------------
// Where a CPU has them, its tile unit multiplies bfloat16 sixteen rows at a time. A tile of A is 16
// rows of 16 words, one of B 16 words deep and 16 wide, which is half a panel as it lies.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__)
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes() {
    for (int t = 0; t < 8; t++) { bytes[t] = 64; rows[t] = 16; }
  }
};
inline bool tiles_are_there() {  // Linux hands the registers out on request
  static bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  return granted;
}
struct Tiles {  // a thread's, while it is in use
  Tiles() { TileShapes shapes; if (tiles_are_there()) _tile_loadconfig(&shapes); }
  ~Tiles() { if (tiles_are_there()) _tile_release(); }
};
// (the compiler's own functions are macros that take a register's number as it is written)
template <int t> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(t)); }
template <int t> inline void tile_load(const void* p, i64 stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(t) : "memory");
}
template <int t> inline void tile_store(void* p, i64 stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(t) : "memory");
}
template <int c, int a, int b> inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
#elif defined(NANOSCALE_IMITATE_TILES)  // for a test on a CPU without them
thread_local uint32_t imitated[8][16][16];
inline bool tiles_are_there() { return true; }
struct Tiles { ~Tiles() {} };
template <int t> inline void tile_zero() { memset(imitated[t], 0, 1024); }
template <int t> inline void tile_load(const void* p, i64 stride) {
  for (int r = 0; r < 16; r++) memcpy(imitated[t][r], (const char*)p + r * stride, 64);
}
template <int t> inline void tile_store(void* p, i64 stride) {
  for (int r = 0; r < 16; r++) memcpy((char*)p + r * stride, imitated[t][r], 64);
}
template <int c, int a, int b> inline void tile_dot() {
  auto number = [](uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; };
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      float sum = number(imitated[c][m][n]);
      for (int k = 0; k < 16; k++) {
        uint32_t x = imitated[a][m][k], y = imitated[b][k][n];
        sum += number(x << 16) * number(y << 16);
        sum += number(x & 0xffff0000u) * number(y & 0xffff0000u);
      }
      memcpy(&imitated[c][m][n], &sum, 4);
    }
}
#else
inline bool tiles_are_there() { return false; }
struct Tiles { ~Tiles() {} };
template <int t> inline void tile_zero() {}
template <int t> inline void tile_load(const void*, i64) {}
template <int t> inline void tile_store(void*, i64) {}
template <int c, int a, int b> inline void tile_dot() {}
#endif
constexpr i64 EDGE = 16;  // of a tile, in rows and in words

// 16 M rows and 16 V columns, sums in tiles 0 to 3, A in 4 and 5, B in 6 and 7.
template <class C, int M, int V>
void tiles(const uint32_t* A, i64 lda, const uint32_t* B, i64 ldb, i64 k, Start start,
           const float* row, C* y, i64 ldy, i64 n) {
  tile_zero<0>();
  if (V > 1) tile_zero<1>();
  if (M > 1) tile_zero<2>();
  if (M > 1 && V > 1) tile_zero<3>();
  for (i64 at = 0; at < k; at += EDGE) {
    tile_load<4>(A + at, 4 * lda);
    if (M > 1) tile_load<5>(A + EDGE * lda + at, 4 * lda);
    tile_load<6>(B + at * ldb, 4 * ldb);
    if (V > 1) tile_load<7>(B + at * ldb + EDGE, 4 * ldb);
    tile_dot<0, 4, 6>();
    if (V > 1) tile_dot<1, 4, 7>();
    if (M > 1) tile_dot<2, 5, 6>();
    if (M > 1 && V > 1) tile_dot<3, 5, 7>();
  }
  alignas(64) float sums[M * EDGE * V * EDGE];
  tile_store<0>(sums, 4 * V * EDGE);
  if (V > 1) tile_store<1>(sums + EDGE, 4 * V * EDGE);
  if (M > 1) tile_store<2>(sums + EDGE * V * EDGE, 4 * V * EDGE);
  if (M > 1 && V > 1) tile_store<3>(sums + EDGE * V * EDGE + EDGE, 4 * V * EDGE);
  for (i64 i = 0; i < M * EDGE; i++)
    for (i64 j = 0; j < V * EDGE; j += W) {
      C* to = y + i * ldy + j;
      vf sum = load(sums + i * V * EDGE + j);
      if (start == ROW) sum += load(row + j, n - j);
      if (start == SUM) sum += load(to, n - j);
      store(to, sum, n - j);
    }
}
// As many of `rows` as tiles can take; returns how many.
template <class T, class C, int V>
i64 rows_by_tiles(i64 rows, i64 k, const Left<T>& A, const Word<T>* B, i64 ldb, Start start,
                  const float* row, C* y, i64 ldy, i64 n) {
  if (Words<T>::each == 1 || W != EDGE || A.next != 1 || k % EDGE || !tiles_are_there()) return 0;
  const uint32_t *a = (const uint32_t*)A.at, *b = (const uint32_t*)B;
  i64 i = 0;
  for (; i + 2 * EDGE <= rows; i += 2 * EDGE)
    tiles<C, 2, V>(a + i * A.row, A.row, b, ldb, k, start, row, y + i * ldy, ldy, n);
  for (; i + EDGE <= rows; i += EDGE)
    tiles<C, 1, V>(a + i * A.row, A.row, b, ldb, k, start, row, y + i * ldy, ldy, n);
  return i;
}

// -- whole products ---------------------------------------------------------------------------------
// y (rows, n), n <= V W, from A and one panel of B, `ldb` words apart along k.
template <class T, class C, int V>
void panel(i64 rows, i64 k, const Left<T>& A, const Word<T>* B, i64 ldb, Start start,
           const float* row, C* y, i64 ldy, i64 n) {
  i64 i = rows_by_tiles<T, C, V>(rows, k, A, B, ldb, start, row, y, ldy, n);
  const Word<T>* a = i ? A.at + i * A.row : A.at;
  for (; i + TALL <= rows; i += TALL, a += A.strip)
    tile<T, C, TALL, V>(a, A.row, A.next, B, ldb, k, start, row, y + i * ldy, ldy, n);
#define TILES(M)                              \
  for (; i + M <= rows; i += M, a += M * A.row) \
    tile<T, C, M, V>(a, A.row, A.next, B, ldb, k, start, row, y + i * ldy, ldy, n);
  TILES(8) TILES(4) TILES(2) TILES(1)
#undef TILES
}
// y (rows, n) from A and all of B, its rows `ldb` words apart, or, packed (ldb = 0), in panels.
template <class T, class C>
void multiply(i64 rows, i64 n, i64 k, const Left<T>& A, const Word<T>* B, i64 ldb, Start start,
              const float* row, C* y, i64 ldy) {
  for (i64 j = 0; j < n; j += 2 * W) {
    bool two = n - j > W;
    const Word<T>* b = ldb ? B + j : B + j * k;
    i64 apart = ldb ? ldb : two ? 2 * W : W;
    (two ? panel<T, C, 2> : panel<T, C, 1>)(rows, k, A, b, apart, start, row ? row + j : row, y + j,
                                            ldy, n - j);
  }
}

// -- weights in panels ----------------------------------------------------------------------------
// How wide the panel is that holds column j of n, and where row k of B begins in it, in words;
// packed, `depth` words deep.
inline i64 wide_at(i64 n, i64 j) { return n - j / (2 * W) * 2 * W > W ? 2 * W : W; }
inline i64 place(i64 n, i64 depth, i64 k, i64 j) {
  i64 panel = j / (2 * W) * 2 * W;
  return panel * depth + k * wide_at(n, j) + j - panel;
}

inline vu bits(const bf16* p) {
  vh h; memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vu);
}
// Rows in pairs, one beside the other, as a product along them takes bfloat16; zero below the last.
inline void pair_rows(i64 rows, i64 n, const bf16* x, i64 ldx, uint32_t* to, i64 ldto) {
  for (i64 r = 0; r < rows; r += 2)
    for (i64 j = 0; j < n; j += W) {
      vu low = bits(x + r * ldx + j), high = r + 1 < rows ? bits(x + (r + 1) * ldx + j) : vu{};
      store((float*)to + r / 2 * ldto + j, (vf)(low | high << 16), n - j);
    }
}
inline const float* narrowed(i64, i64, const float* w, float*) { return w; }
inline const bf16* narrowed(i64 n, i64 k, const float* w, bf16* room) {
  for (i64 j = 0; j < n * k; j += W) store(room + j, load(w + j, n * k - j), n * k - j);
  return room;
}

// w (n, k) as B of x w^T (k deep, `wide` wide) from column `at` on; `room` for the narrowed rows.
template <class T>
void pack_forward(i64 n, i64 k, const float* w, i64 at, i64 wide, T* to, T* room) {
  i64 depth = words<T>(k);
  for (i64 i = 0; i < n;) {
    i64 column = at + i, rows = std::min({W - column % W, W, n - i});  // up to a vector's end
    const T* from = narrowed(rows, k, w + i * k, room);
    columns_of((const float*)from, depth, rows, depth, wide_at(wide, column),
               (float*)to + place(wide, depth, 0, column));
    i += rows;
  }
}
// w (n, k) as B of g w (all `deep` deep, k wide), from row `at` of it on.
inline void pack_backward(i64 n, i64 k, const float* w, i64 at, i64 deep, float* to, float*) {
  for (i64 j = 0; j < k; j += W)
    for (i64 i = 0; i < n; i++)
      store(to + place(k, deep, at + i, j), load(w + i * k + j, k - j));
}
inline void pack_backward(i64 n, i64 k, const float* w, i64 at, i64 deep, bf16* to, bf16* room) {
  i64 depth = words<bf16>(deep);
  for (i64 i = 0; i < n; i += 2) {
    i64 rows = std::min<i64>(2, n - i);
    narrowed(rows, k, w + i * k, room);
    for (i64 j = 0; j < k; j += W)
      pair_rows(rows, W, room + j, k, (uint32_t*)to + place(k, depth, (at + i) / 2, j), W);
  }
}

// -- the gradient of a weight ---------------------------------------------------------------------
// What `weight_gradient` needs of memory, in floats.
inline i64 gradient_room(i64 rows, i64 n) { return (rows + 1) * (n + TALL + 4 * W); }

// Columns [j, j + wide) of x as a panel of B.
inline void panel_of(i64 rows, i64 n, const float* x, i64 ldx, float* to, i64 wide) {
  for (i64 r = 0; r < rows; r++)  // what is written beyond a row is the next one's, written later
    for (i64 j = 0; j < wide && j < n; j += W) store(to + r * wide + j, load(x + r * ldx + j, n - j));
}
inline void panel_of(i64 rows, i64 n, const bf16* x, i64 ldx, uint32_t* to, i64 wide) {
  pair_rows(rows, n < wide ? n : wide, x, ldx, to, wide);
}
// g^T as A: its columns in strips of TALL, each in one piece. As it lies each step would be on
// another page, and rows that are a power of two apart fall into the same few lines of the cache.
// For tiles its columns as rows.
template <class T> Left<T> columns_in_strips(i64 rows, i64 n, const T* g, i64 ldg, Word<T>* room) {
  i64 deep = words<T>(rows);
  if (Words<T>::each > 1 && deep % EDGE == 0 && tiles_are_there()) {
    std::vector<Word<T>> strip(deep * EDGE + W);
    for (i64 i = 0; i < n; i += EDGE) {
      panel_of(rows, n - i, g + i, ldg, strip.data(), EDGE);
      columns_of((const float*)strip.data(), EDGE, deep, std::min(EDGE, n - i), deep, (float*)room + i * deep);
    }
    return {room, deep, 1, TALL * deep};
  }
  for (i64 i = 0; i < n; i += TALL) panel_of(rows, n - i, g + i, ldg, room + i * deep, TALL);
  return {room, 1, TALL, TALL * deep};
}

// gw (n, k) += g^T x over rows.
template <class T>
void weight_gradient(i64 rows, i64 n, i64 k, const T* g, i64 ldg, const T* x, i64 ldx, float* gw,
                     float* room) {
  i64 deep = words<T>(rows);
  auto* b = (Word<T>*)room;
  Left<T> a = columns_in_strips<T>(rows, n, g, ldg, b + (deep + 1) * 2 * W);
  for (i64 j = 0; j < k; j += 2 * W) {
    bool two = k - j > W;
    i64 wide = two ? 2 * W : W;
    panel_of(rows, k - j, x + j, ldx, b, wide);
    (two ? panel<T, float, 2> : panel<T, float, 1>)(n, deep, a, b, wide, SUM, nullptr, gw + j, k, k - j);
  }
}
