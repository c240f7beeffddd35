// The parts of a training step that are not matrix products, each in one pass over memory.
//
// Compiled on first use by kernels.py, called through ctypes. Activations are float or bfloat16 (T),
// the residual stream, statistics, losses and gradients of weights are float; all arithmetic is
// float. Vectors are the compiler's own types, as long as the CPU's, so one source serves any. Threads
// are those of torch's own pool, by the calls that GCC makes of OpenMP's pragmas.
// Sums over rows are made per thread and then in order: equal threads, equal bits.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __APPLE__
#include <pthread.h>
#endif

extern "C" {
void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_max_threads();
int omp_get_num_threads();
int omp_get_thread_num();
int omp_in_parallel();
}

namespace {

using i64 = int64_t;
#ifdef __AVX512F__
constexpr i64 W = 16;  // floats in a vector: longer ones than the CPU's are taken apart
#elif defined(__AVX2__)
constexpr i64 W = 8;
#else
constexpr i64 W = 4;  // SSE, NEON
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;  // of vectors
#else
constexpr int REGISTERS = 16;
#endif
constexpr i64 STRIP = 8;  // rows of a product of attention at a time
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
struct bf16 { uint16_t bits; };

#ifdef __AVX512F__
const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
const vi lane = {0, 1, 2, 3};
#endif
// Lanes of a and b by their numbers, b's from W on.
template <size_t... L> inline vf pick(vf a, vf b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, L...);
#else
  return __builtin_shuffle(a, b, vi{L...});
#endif
}
using Lanes = std::make_index_sequence<W>;
inline vf all(float x) { return x - vf{}; }  // a broadcast: adding to 0 is no identity (-0)
inline i64 padded(i64 n) {  // to whole vectors, and to whole strips
  i64 to = std::max(W, STRIP);
  return (n + to - 1) / to * to;
}

// -- loads and stores: n < W is a row's tail, zero beyond it ----------------------------------
inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
inline vf load(const bf16* p) {
  vh h; memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}
inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
inline void store(bf16* p, vf v) {  // to nearest, ties to even; NaN stays NaN
#ifdef __AVX512BF16__
  auto narrow = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &narrow, sizeof narrow);
  return;
#endif
  vu u = (vu)v;
  vu r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  vu nan = (vu)(v != v);
  vh h = __builtin_convertvector((r & ~nan) | (nan & 0x7fc0u), vh);
  memcpy(p, &h, sizeof h);
}
#ifdef __AVX512F__
inline vf partly(const float* p, i64 n) { return (vf)_mm512_maskz_loadu_ps((1u << n) - 1, p); }
inline void partly(float* p, vf v, i64 n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v); }
#elif defined(__AVX2__)
inline vf partly(const float* p, i64 n) { return (vf)_mm256_maskload_ps(p, (__m256i)(lane < (int)n)); }
inline void partly(float* p, vf v, i64 n) { _mm256_maskstore_ps(p, (__m256i)(lane < (int)n), (__m256)v); }
#endif
template <class T> inline vf partly(const T* p, i64 n) {
  T part[W] = {};
  memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <class T> inline void partly(T* p, vf v, i64 n) {
  T part[W];
  store(part, v);
  memcpy(p, part, n * sizeof(T));
}
template <class T> inline vf load(const T* p, i64 n) { return n >= W ? load(p) : partly(p, n); }
template <class T> inline void store(T* p, vf v, i64 n) { n >= W ? store(p, v) : partly(p, v, n); }
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf plus(vf a, vf b) { return a + b; }
// Halves onto each other, from S lanes on: in the end one lane holds all.
template <vf with(vf, vf), size_t S, size_t... L>
inline float fold(vf v, std::index_sequence<L...> lanes) {
  v = with(v, pick<(L ^ S)...>(v, v));
  if constexpr (S > 1) return fold<with, S / 2>(v, lanes);
  return v[0];
}
inline float sum(vf v) { return fold<plus, W / 2>(v, Lanes()); }
inline float largest(vf v) { return fold<larger, W / 2>(v, Lanes()); }
inline vf only(vf v, i64 n) {  // zero from lane n on
  return n >= W ? v : (vf)((vi)v & (vi)(lane < (int32_t)n));
}

// exp to 2 ulp: 2^k 2^f, f in [-1/2, 1/2] by its Taylor polynomial; below 2^-126 it is 0. `vexp0` is
// for x <= 0 (or NaN), as in every softmax.
inline vf vexp0(vf x) {
  vf y = x * 1.44269504088896f;
  vf k = (y + 12582912.f) - 12582912.f, f = y - k;
  vf p = all(1.5403530e-4f);
  p = p * f + 1.3333558e-3f; p = p * f + 9.6181291e-3f; p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f; p = p * f + 6.9314718e-1f; p = p * f + 1.f;
  // a NaN goes through p; an integer added to the exponent's bits multiplies by 2^k (unsigned: where
  // the power is too small and 0 is taken, the sum wraps around)
  vf e = (vf)((vu)p + ((vu)__builtin_convertvector(k, vi) << 23));
  return y < -126.f ? vf{} : e;
}
inline vf vexp(vf x) { return vexp0(x > 88.f ? all(88.f) : x); }

// The normal distribution's function (Abramowitz & Stegun 7.1.26, 1.5e-7) and its exp(-x^2 / 2).
inline vf normal(vf x, vf& e) {
  vf a = x < 0.f ? -x : x;
  vf t = 1.f / (1.f + 0.3275911f * 0.70710678f * a);
  e = vexp0(-0.5f * x * x);
  vf p = all(1.061405429f);
  p = p * t - 1.453152027f; p = p * t + 1.421413741f; p = p * t - 0.284496736f;
  p = (p * t + 0.254829592f) * t * e * 0.5f;
  return x < 0.f ? p : 1.f - p;
}
inline vf sigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }

// -- threads -------------------------------------------------------------------------------------
thread_local bool alone = false;  // what a thread of a team meets of further teams, it does itself
inline i64 thread() { return alone ? 0 : omp_get_thread_num(); }
inline i64 threads() { return alone ? 1 : omp_get_num_threads(); }
inline i64 most_threads() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }
inline void meet() { if (threads() > 1) GOMP_barrier(); }

// f() by each of `team` threads, or of all; each has its own copy, whose values stay in registers.
template <class F> void parallel(F f, i64 team = most_threads()) {
  if (most_threads() > 1) {
    GOMP_parallel([](void* of) { F own = *(F*)of; own(); }, &f, team, 0);
    return;
  }
  bool was = alone;
  alone = true; f(); alone = was;
}
// f(i) of each i < n by one of the team, in equal pieces: equal threads, equal pieces.
template <class F> void share(i64 n, F f) {
  i64 team = threads(), mine = thread(), piece = n / team, rest = n % team;
  i64 i = mine * piece + std::min(mine, rest), end = i + piece + (mine < rest);
  for (; i < end; i++) f(i);
}
template <class F> void parallel_for(i64 n, F f) {
  parallel([=] { share(n, f); });
}
// f(i) of each i < n by whoever is free; `next` is the team's, from 0.
template <class F> void take_turns(i64 n, std::atomic<i64>& next, F f) {
  for (i64 i; (i = next++) < n;) f(i);
}

// -- where the time goes: spans, while somebody looks (spans.py) ---------------------------------
struct Span {  // as `spans.SPAN_RECORD`
  const char* name;
  i64 begin, end;  // nanoseconds since 1970
  i64 thread;  // as the system numbers it
};
struct Look {
  Span* spans;  // null: nobody looks, and a scope is a test
  i64 room;
  i64* made;  // more than the room: the rest were not kept
};
Look looked{};
void look(Span* spans, i64 room, i64* made) { looked = {spans, room, made}; }

inline i64 now() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * (i64)1000000000 + t.tv_nsec;
}
inline i64 thread_number() {
  uint64_t number = 0;  // never kept: a fork's thread is another
#ifdef __linux__
  number = syscall(SYS_gettid);
#elif defined(__APPLE__)
  pthread_threadid_np(nullptr, &number);
#endif
  return number;
}
struct Scope {  // a span from here to the end of the block; none of null
  const char* name;
  i64 begin = 0;
  explicit Scope(const char* of) : name(looked.spans ? of : nullptr) { if (name) begin = now(); }
  ~Scope() { if (name) keep(); }
  void becomes(const char* next) {  // the one ends and another begins
    if (!name) return;
    keep();
    name = next; begin = now();
  }
  void keep() const {
    i64 at = __atomic_fetch_add(looked.made, 1, __ATOMIC_RELAXED);
    if (at < looked.room) looked.spans[at] = {name, begin, now(), thread_number()};
  }
};

// -- dropout: the masks of masks.py ------------------------------------------------------------
struct Masks {  // of a site: each sample's key; null drops nothing
  const i64* keys;
  uint32_t threshold;
  float scale;
};
inline vu mix(vu x) {
  x ^= x >> 16; x *= 0x21f0aaadu;
  x ^= x >> 15; x *= 0xd35a2d97u;
  return x ^ (x >> 15);
}
inline vf dropped(vf v, const Masks& m, i64 sample, i64 number) {  // elements `number` and on
  vu hash = mix(mix((vu)lane + (uint32_t)number) ^ (uint32_t)m.keys[sample]);
  return v * (hash < m.threshold ? vf{} : all(m.scale));
}
// Rows of d, `length` to a sample.
template <class T>
void dropout(i64 rows, i64 length, i64 d, const i64* keys, i64 threshold, float scale, const T* x,
             T* y) {
  Scope op("dropout");
  Masks masks{keys, (uint32_t)threshold, scale};
  parallel_for(rows, [=](i64 r) {
    for (i64 j = 0; j < d; j += W) {
      vf v = load(x + r * d + j, d - j);
      store(y + r * d + j, dropped(v, masks, r / length, r % length * d + j), d - j);
    }
  });
}

// -- x + m branch, and its norm -------------------------------------------------------------------
template <class T>
void add_norm(i64 rows, i64 d, const float* x, const T* branch, float m, const float* weight,
              const float* bias, float eps, bool rms, float* sum_out, T* y, float* stats) {
  Scope op("add_norm");
  parallel_for(rows, [=](i64 r) {
    const float* in = x + r * d;
    vf total = {}, squares = {};
    for (i64 j = 0; j < d; j += W) {
      vf v = load(in + j, d - j);
      if (branch) {
        v = v + m * load(branch + r * d + j, d - j);
        store(sum_out + r * d + j, v, d - j);
      }
      total += v; squares += v * v;
    }
    if (branch) in = sum_out + r * d;
    float mean = rms ? 0.f : sum(total) / d, var = sum(squares) / d;
    if (!rms) {  // around the mean, in a second pass: exact where the mean is large
      squares = vf{};
      for (i64 j = 0; j < d; j += W) {
        vf v = only(load(in + j, d - j) - mean, d - j);
        squares += v * v;
      }
      var = sum(squares) / d;
    }
    float rstd = 1.f / std::sqrt(var + eps);
    stats[2 * r] = mean; stats[2 * r + 1] = rstd;
    for (i64 j = 0; j < d; j += W) {
      vf v = (load(in + j, d - j) - mean) * rstd * load(weight + j, d - j);
      if (bias) v += load(bias + j, d - j);
      store(y + r * d + j, v, d - j);
    }
  });
}

// gx = gs + the gradient through the norm, gbranch = m gx; gw, gb are summed over rows.
template <class T>
void add_norm_backward(i64 rows, i64 d, const T* gy, const float* gs, const float* x, float m,
                       const float* weight, bool rms, const float* stats, float* gx, T* gbranch,
                       float* gw, float* gb) {
  Scope op("add_norm_backward");
  i64 team = most_threads(), dp = padded(d);
  std::vector<float> memory(2 * team * dp, 0.f);
  float* parts = memory.data();
  parallel([=] {
    float* mine = parts + 2 * thread() * dp;
    share(rows, [=](i64 r) {
      float mean = stats[2 * r], rstd = stats[2 * r + 1];
      vf along = {}, total = {};
      for (i64 j = 0; j < d; j += W) {
        vf g = load(gy + r * d + j, d - j);
        vf n = (load(x + r * d + j, d - j) - mean) * rstd;
        store(mine + j, load(mine + j) + g * n);
        if (gb) store(mine + dp + j, load(mine + dp + j) + g);
        g *= load(weight + j, d - j);
        along += g * n; total += g;
      }
      float a = sum(along) / d, b = rms ? 0.f : sum(total) / d;
      for (i64 j = 0; j < d; j += W) {
        vf g = load(gy + r * d + j, d - j) * load(weight + j, d - j);
        vf n = (load(x + r * d + j, d - j) - mean) * rstd;
        g = (g - b - n * a) * rstd;
        if (gs) g += load(gs + r * d + j, d - j);
        store(gx + r * d + j, g, d - j);
        if (gbranch) store(gbranch + r * d + j, m * g, d - j);
      }
    });
  });
  for (i64 j = 0; j < d; j++) {
    float w = 0.f, b = 0.f;
    for (i64 t = 0; t < team; t++) {
      w += parts[2 * t * dp + j]; b += parts[(2 * t + 1) * dp + j];
    }
    gw[j] = w;
    if (gb) gb[j] = b;
  }
}

// -- queries and keys: RMSNorm over the head, then rotation ---------------------------------------
// x is rows of `heads` heads of size h, `stride` apart; row r stands at position r mod length.
template <class T>
void norm_rope(i64 rows, i64 heads, i64 h, i64 stride, i64 length, const T* x, const float* weight,
               float eps, const float* cos, const float* sin, T* y) {
  Scope op("norm_rope");
  parallel([=] {
    std::vector<float> memory(2 * padded(h));
    float* v = memory.data();
    share(rows, [=](i64 r) {
      for (i64 k = 0; k < heads; k++) {
        const T* in = x + r * stride + k * h;
        vf squares = {};
        for (i64 j = 0; j < h; j += W) {
          vf u = load(in + j, h - j);
          store(v + j, u); squares += u * u;
        }
        if (weight) {
          float rstd = 1.f / std::sqrt(sum(squares) / h + eps);
          for (i64 j = 0; j < h; j++) v[j] *= rstd * weight[j];
        }
        T* out = y + (r * heads + k) * h;
        if (!cos) {
          for (i64 j = 0; j < h; j += W) store(out + j, load(v + j), h - j);
          continue;
        }
        const float *c = cos + r % length * h, *s = sin + r % length * h;
        i64 half = h / 2;
        for (i64 j = 0; j < half; j += W) {
          i64 n = half - j;
          vf low = load(v + j, n), high = load(v + half + j, n);
          store(out + j, low * load(c + j, n) - high * load(s + j, n), n);
          store(out + half + j, high * load(c + half + j, n) + low * load(s + half + j, n), n);
        }
      }
    });
  });
}

// From g (rows `gstride` apart) to gx, which may be g itself.
template <class T>
void norm_rope_backward(i64 rows, i64 heads, i64 h, i64 stride, i64 gstride, i64 length, const T* x,
                        const float* weight, float eps, const float* cos, const float* sin,
                        const T* g, T* gx, float* gw) {
  Scope op("norm_rope_backward");
  i64 team = most_threads(), hp = padded(h);
  std::vector<float> memory(team * hp, 0.f);
  float* parts = memory.data();
  parallel([=] {
    std::vector<float> room(3 * hp);
    float *mine = parts + thread() * hp, *n = room.data(), *v = n + hp;
    share(rows, [=](i64 r) {
      for (i64 k = 0; k < heads; k++) {
        const T* in = g + r * gstride + k * h;
        T* out = gx + r * gstride + k * h;
        for (i64 j = 0; j < h; j += W) store(v + j, load(in + j, h - j));
        if (cos) {
          const float *c = cos + r % length * h, *s = sin + r % length * h;
          for (i64 j = 0; j < h / 2; j++) {
            float low = v[j], high = v[h / 2 + j];
            v[j] = low * c[j] + high * s[h / 2 + j];
            v[h / 2 + j] = high * c[h / 2 + j] - low * s[j];
          }
        }
        if (weight) {
          vf squares = {}, along = {};
          for (i64 j = 0; j < h; j += W) {
            vf u = load(x + r * stride + k * h + j, h - j);
            store(n + j, u); squares += u * u;
          }
          float rstd = 1.f / std::sqrt(sum(squares) / h + eps);
          for (i64 j = 0; j < h; j += W) {
            vf u = load(n + j) * rstd, gv = load(v + j, h - j);
            store(mine + j, load(mine + j) + gv * u);
            gv *= load(weight + j, h - j);
            along += gv * u;
            store(n + j, u); store(v + j, gv);
          }
          float a = sum(along) / h;
          for (i64 j = 0; j < h; j++) v[j] = (v[j] - n[j] * a) * rstd;
        }
        for (i64 j = 0; j < h; j += W) store(out + j, load(v + j), h - j);
      }
    });
  });
  if (!weight) return;
  for (i64 j = 0; j < h; j++) {
    gw[j] = 0.f;
    for (i64 t = 0; t < team; t++) gw[j] += parts[t * hp + j];
  }
}

// -- causal attention -------------------------------------------------------------------------------
// C (+)= A B over k in [k0, k1), a strip of rows of up to N columns; A(i, k) = A[i ai + k ak].
template <int V>
inline void strip(const float* A, i64 ai, i64 ak, const float* B, i64 ldb, float* C, i64 ldc, i64 k0,
                  i64 k1, bool add) {
  vf acc[STRIP][V];
  for (int i = 0; i < STRIP; i++)
    for (int v = 0; v < V; v++) acc[i][v] = add ? load(C + i * ldc + v * W) : vf{};
  for (i64 k = k0; k < k1; k++) {
    vf b[V];
    for (int v = 0; v < V; v++) b[v] = load(B + k * ldb + v * W);
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
      vf a = all(A[i * ai + k * ak]);
      for (int v = 0; v < V; v++) acc[i][v] += a * b[v];
    }
  }
  for (int i = 0; i < STRIP; i++)
    for (int v = 0; v < V; v++) store(C + i * ldc + v * W, acc[i][v]);
}
inline void product(const float* A, i64 ai, i64 ak, const float* B, i64 ldb, float* C, i64 ldc, i64 N,
                    i64 k0, i64 k1, bool add) {
  i64 j = 0;
  if (REGISTERS == 32)  // sixteen sums stay in registers
    for (; j + 2 * W <= N; j += 2 * W) strip<2>(A, ai, ak, B + j, ldb, C + j, ldc, k0, k1, add);
  for (; j < N; j += W) strip<1>(A, ai, ak, B + j, ldb, C + j, ldc, k0, k1, add);
}

struct Heads {  // token t of sequence b: x + (b T + t) stride + head h
  i64 B, T, H, K, h, sq, sk, sv;
  float scale;
};
constexpr i64 ROWS = 64;  // queries at a time

template <class T>
void rows_of(const T* x, i64 stride, i64 n, i64 h, i64 hp, float* out, float m = 1.f) {
  for (i64 t = 0; t < n; t++)
    for (i64 j = 0; j < h; j += W) store(out + t * hp + j, m * load(x + t * stride + j, h - j));
}
// By swapping the off-diagonal halves, quarters, ...: from blocks of S on.
template <size_t S, size_t... L>
inline void transpose(vf (&r)[W], std::index_sequence<L...> lanes) {
#pragma GCC unroll 16
  for (size_t i = 0; i < W; i++) {
    if (i & S) continue;
    vf a = r[i], b = r[i + S];
    r[i] = pick<(L & S ? L + W - S : L)...>(a, b);
    r[i + S] = pick<(L & S ? L + W : L + S)...>(a, b);
  }
  if constexpr (S > 1) transpose<S / 2>(r, lanes);
}
template <class T>
void columns_of(const T* x, i64 stride, i64 n, i64 h, i64 np, float* out) {
  for (i64 t = 0; t < n; t += W)
    for (i64 j = 0; j < h; j += W) {
      vf tile[W];
      i64 rows = n - t < W ? n - t : W, columns = h - j < W ? h - j : W;
      for (i64 i = 0; i < W; i++)
        tile[i] = i < rows ? load(x + (t + i) * stride + j, h - j) : vf{};
      transpose<W / 2>(tile, Lanes());
      for (i64 c = 0; c < columns; c++) store(out + (j + c) * np + t, tile[c], rows);
    }
}

// P = softmax of the causal rows [at, at + n) of S, in place, zero beyond the diagonal.
inline void softmax_rows(float* S, i64 ld, i64 at, i64 n, i64 end, float* lse) {
  for (i64 i = 0; i < n; i++) {
    float* s = S + i * ld;
    i64 seen = at + i + 1, j = 0;
    vf top = all(-INFINITY);
    for (; j + W <= seen; j += W) top = larger(load(s + j), top);
    float m = largest(top);
    for (; j < seen; j++) m = s[j] > m ? s[j] : m;
    vf total = {};
    for (j = 0; j < seen; j += W) {
      vf e = only(vexp0(load(s + j) - m), seen - j);
      store(s + j, e); total += e;
    }
    float z = sum(total), inverse = 1.f / z;
    for (i64 k = 0; k < j; k += W) store(s + k, load(s + k) * inverse);
    for (; j < end; j += W) store(s + j, vf{});
    lse[i] = m + std::log(z);
  }
}

// What is dropped of the first `seen` weights of the query in `row` (of B H T), in place.
inline void drop_row(float* s, const Heads& a, const Masks& masks, i64 row, i64 seen) {
  if (!masks.keys) return;
  i64 number = row % (a.H * a.T) * a.T;
  for (i64 j = 0; j < seen; j += W)
    store(s + j, dropped(load(s + j), masks, row / (a.H * a.T), number + j));
}

template <class T>
void attend(i64 B, i64 length, i64 H, i64 K, i64 h, i64 sq, i64 sk, i64 sv, float scale,
            const i64* keys, i64 threshold, float rest, const T* q, const T* k, const T* v, T* y,
            float* lse) {
  Scope op("attend");
  Heads a{B, length, H, K, h, sq, sk, sv, scale};
  Masks masks{keys, (uint32_t)threshold, rest};
  i64 Tp = padded(a.T), hp = padded(a.h), group = a.H / a.K;
  parallel([=] {
    std::vector<float> room(hp * Tp + Tp * hp + ROWS * (2 * hp + Tp), 0.f);
    float *KT = room.data(), *V = KT + hp * Tp, *Q = V + Tp * hp, *Y = Q + ROWS * hp, *S = Y + ROWS * hp;
    share(a.B * a.K, [=](i64 task) {
      i64 b = task / a.K, g = task % a.K;
      columns_of(k + b * a.T * a.sk + g * a.h, a.sk, a.T, a.h, Tp, KT);
      rows_of(v + b * a.T * a.sv + g * a.h, a.sv, a.T, a.h, hp, V);
      for (i64 head = g * group; head < (g + 1) * group; head++)
        for (i64 at = 0; at < a.T; at += ROWS) {
          i64 n = at + ROWS < a.T ? ROWS : a.T - at, np = padded(n), end = padded(at + n);
          rows_of(q + (b * a.T + at) * a.sq + head * a.h, a.sq, n, a.h, hp, Q, a.scale);
          for (i64 i = 0; i < np; i += STRIP)
            product(Q + i * hp, hp, 1, KT, Tp, S + i * Tp, Tp, padded(at + i + STRIP) < end ? padded(at + i + STRIP) : end, 0, a.h, false);
          i64 first = (b * a.H + head) * a.T + at;
          softmax_rows(S, Tp, at, n, end, lse + first);
          for (i64 i = 0; i < n; i++) drop_row(S + i * Tp, a, masks, first + i, at + i + 1);
          for (i64 i = 0; i < np; i += STRIP) {
            i64 seen = at + i + STRIP < a.T ? at + i + STRIP : a.T;
            product(S + i * Tp, Tp, 1, V, hp, Y + i * hp, hp, hp, 0, seen, false);
          }
          for (i64 i = 0; i < n; i++)
            for (i64 j = 0; j < a.h; j += W)
              store(y + ((b * a.T + at + i) * a.H + head) * a.h + j, load(Y + i * hp + j), a.h - j);
        }
    });
  });
}

template <class T>
void attend_backward(i64 B, i64 length, i64 H, i64 K, i64 h, i64 sq, i64 sk, i64 sv, float scale,
                     const i64* keys, i64 threshold, float rest, const T* q, const T* k,
                     const T* v, const T* y, const float* lse, const T* gy, T* gq, T* gk, T* gv,
                     i64 gs) {
  Scope op("attend_backward");
  Heads a{B, length, H, K, h, sq, sk, sv, scale};
  Masks masks{keys, (uint32_t)threshold, rest};
  i64 Tp = padded(a.T), hp = padded(a.h), group = a.H / a.K;
  parallel([=] {
    std::vector<float> room(5 * hp * Tp + ROWS * (3 * hp + 2 * Tp), 0.f);
    float *KT = room.data(), *VT = KT + hp * Tp, *Kr = VT + hp * Tp, *GK = Kr + hp * Tp, *GV = GK + hp * Tp;
    float *Q = GV + hp * Tp, *GY = Q + ROWS * hp, *GQ = GY + ROWS * hp, *P = GQ + ROWS * hp, *D = P + ROWS * Tp;
    share(a.B * a.K, [=](i64 task) {
      i64 b = task / a.K, g = task % a.K;
      const T *kb = k + b * a.T * a.sk + g * a.h, *vb = v + b * a.T * a.sv + g * a.h;
      columns_of(kb, a.sk, a.T, a.h, Tp, KT);
      columns_of(vb, a.sv, a.T, a.h, Tp, VT);
      rows_of(kb, a.sk, a.T, a.h, hp, Kr);
      memset(GK, 0, 2 * hp * Tp * sizeof(float));
      for (i64 head = g * group; head < (g + 1) * group; head++)
        for (i64 at = 0; at < a.T; at += ROWS) {
          i64 n = at + ROWS < a.T ? ROWS : a.T - at, np = padded(n), end = padded(at + n);
          i64 row = (b * a.T + at) * a.H + head;
          rows_of(q + (b * a.T + at) * a.sq + head * a.h, a.sq, n, a.h, hp, Q, a.scale);
          rows_of(gy + row * a.h, a.H * a.h, n, a.h, hp, GY);
          for (i64 i = 0; i < np; i += STRIP) {
            i64 seen = padded(at + i + STRIP) < end ? padded(at + i + STRIP) : end;
            product(Q + i * hp, hp, 1, KT, Tp, P + i * Tp, Tp, seen, 0, a.h, false);
            product(GY + i * hp, hp, 1, VT, Tp, D + i * Tp, Tp, seen, 0, a.h, false);
          }
          for (i64 i = 0; i < np; i++) {
            float *p = P + i * Tp, *s = D + i * Tp;
            i64 seen = i < n ? at + i + 1 : 0;  // rows of an earlier, fuller strip are left out
            vf dot = {};
            for (i64 j = 0; i < n && j < a.h; j += W)
              dot += load(GY + i * hp + j) * load(y + (row + i * a.H) * a.h + j, a.h - j);
            i64 query = (b * a.H + head) * a.T + at + i;
            float delta = sum(dot), z = i < n ? lse[query] : 0.f;
            drop_row(s, a, masks, query, seen);
            i64 j = 0;
            for (; j < seen; j += W) {
              vf e = only(vexp0(load(p + j) - z), seen - j);
              store(p + j, e);
              store(s + j, only(e * (load(s + j) - delta), seen - j));
            }
            drop_row(p, a, masks, query, seen);
            for (; j < end; j += W) { store(p + j, vf{}); store(s + j, vf{}); }
          }
          for (i64 i = 0; i < np; i += STRIP) {
            i64 seen = at + i + STRIP < a.T ? at + i + STRIP : a.T;
            product(D + i * Tp, Tp, 1, Kr, hp, GQ + i * hp, hp, hp, 0, seen, false);
          }
          for (i64 j = 0; j < end; j += STRIP) {  // key rows, from the first query that sees them
            i64 from = j > at ? j - at : 0;
            product(P + j, 1, Tp, GY, hp, GV + j * hp, hp, hp, from, np, true);
            product(D + j, 1, Tp, Q, hp, GK + j * hp, hp, hp, from, np, true);
          }
          for (i64 i = 0; i < n; i++)
            for (i64 j = 0; j < a.h; j += W)
              store(gq + (b * a.T + at + i) * gs + head * a.h + j, a.scale * load(GQ + i * hp + j), a.h - j);
        }
      for (i64 t = 0; t < a.T; t++)
        for (i64 j = 0; j < a.h; j += W) {
          i64 to = (b * a.T + t) * gs + g * a.h + j;
          store(gk + to, load(GK + t * hp + j), a.h - j);
          store(gv + to, load(GV + t * hp + j), a.h - j);
        }
    });
  });
}

// -- activations: rows of n, inputs `stride` apart ------------------------------------------------
template <class F>
void each(i64 n, F f) {
  parallel_for((n + 1023) / 1024, [=](i64 block) {
    i64 end = block * 1024 + 1024 < n ? block * 1024 + 1024 : n;
    for (i64 j = block * 1024; j < end; j += W) f(j, end - j);
  });
}

template <class T> void gelu(i64 n, const T* x, T* y) {
  Scope op("gelu");
  each(n, [=](i64 j, i64 m) {
    vf e, v = load(x + j, m);
    store(y + j, v * normal(v, e), m);
  });
}
template <class T> void gelu_backward(i64 n, const T* x, const T* gy, T* gx) {
  Scope op("gelu_backward");
  each(n, [=](i64 j, i64 m) {
    vf e, v = load(x + j, m), c = normal(v, e);
    store(gx + j, load(gy + j, m) * (c + v * e * 0.3989422804f), m);
  });
}
template <class T>
void swiglu(i64 rows, i64 n, i64 stride, const T* gate, const T* up, T* y) {
  Scope op("swiglu");
  parallel_for(rows, [=](i64 r) {
    for (i64 j = 0; j < n; j += W) {
      vf g = load(gate + r * stride + j, n - j);
      store(y + r * n + j, g * sigmoid(g) * load(up + r * stride + j, n - j), n - j);
    }
  });
}
template <class T>
void swiglu_backward(i64 rows, i64 n, i64 stride, i64 gstride, const T* gate, const T* up,
                     const T* gy, T* ggate, T* gup) {
  Scope op("swiglu_backward");
  parallel_for(rows, [=](i64 r) {
    for (i64 j = 0; j < n; j += W) {
      i64 at = r * stride + j;
      vf g = load(gate + at, n - j), u = load(up + at, n - j), d = load(gy + r * n + j, n - j);
      vf s = sigmoid(g);
      store(gup + r * gstride + j, d * g * s, n - j);
      store(ggate + r * gstride + j, d * u * s * (1.f + g * (1.f - s)), n - j);
    }
  });
}

// -- the loss, and its gradient times 1 / tokens ----------------------------------------------------
// The sum over rows of V logits, `stride` apart; each row's goes into `by_row`, its gradient into g,
// which may be the logits themselves, unless they are null.
template <class T>
double losses(i64 rows, i64 V, i64 stride, const T* logits, const i64* targets, float z_loss,
              i64 tokens, float* by_row, T* g) {
  Scope op("cross_entropy");
  std::vector<double> memory(rows);
  double* parts = memory.data();
  parallel_for(rows, [=](i64 r) {
    const T* in = logits + r * stride;
    vf top = all(-INFINITY), total = {};
    i64 j = 0;
    for (; j + W <= V; j += W) top = larger(load(in + j), top);
    float m = largest(top);
    vf tail = load(in + j, V - j);
    for (i64 i = 0; i < V - j; i++) m = tail[i] > m ? tail[i] : m;
    for (j = 0; j < V; j += W) total += only(vexp0(load(in + j, V - j) - m), V - j);
    // z = m + rest is never rounded to one float: of large logits that would leave nothing of rest
    float rest = std::log(sum(total));
    double z = (double)m + rest;
    float back = (1 + 2 * z_loss * z) / tokens;
    vf one = load(in + targets[r], 1);
    parts[r] = z - one[0] + z_loss * z * z;
    if (by_row) by_row[r] = parts[r];
    if (!g) return;
    T* out = g + r * stride;
    for (j = 0; j < V; j += W) store(out + j, back * vexp(load(in + j, V - j) - m - rest), V - j);
    store(out + targets[r], back * vexp(one - m - rest) - 1.f / tokens, 1);
    if (stride > V) memset((void*)(out + V), 0, (stride - V) * sizeof(T));
  });
  double total = 0;
  for (i64 r = 0; r < rows; r++) total += parts[r];
  return total;
}
template <class T>
void cross_entropy(i64 rows, i64 V, const T* logits, const i64* targets, float z_loss, float* loss,
                   T* g) {
  *loss = losses<T>(rows, V, V, logits, targets, z_loss, rows, nullptr, g) / rows;
}

// -- look-ups -----------------------------------------------------------------------------------------
void embed(i64 rows, i64 d, i64 length, const i64* idx, const float* tokens, const float* positions,
           float m, float* x) {
  Scope op("embed");
  parallel_for(rows, [=](i64 r) {
    for (i64 j = 0; j < d; j += W) {
      vf v = load(tokens + idx[r] * d + j, d - j);
      if (positions) v += load(positions + r % length * d + j, d - j);
      store(x + r * d + j, m * v, d - j);
    }
  });
}
void embed_backward(i64 rows, i64 d, i64 length, const i64* idx, const float* g, float m,
                    float* tokens, float* positions) {
  Scope op("embed_backward");
  parallel_for((d + W - 1) / W, [=](i64 column) {  // each thread its own columns
    i64 j = column * W;
    for (i64 r = 0; r < rows; r++) {
      vf v = m * load(g + r * d + j, d - j);
      float* t = tokens + idx[r] * d + j;
      store(t, load(t, d - j) + v, d - j);
      if (!positions) continue;
      float* p = positions + r % length * d + j;
      store(p, load(p, d - j) + v, d - j);
    }
  });
}

// -- the update: many tensors at once, in blocks whose sums are added in order -----------------------
struct Update {  // of one tensor of n elements
  float *p, *g, *m, *v, *step;
  i64 n;
  float lr, decay, eps;
};
constexpr i64 BLOCK = 8192;

template <class F>
void blocks(i64 count, const Update* u, F f) {  // f(tensor, from, to, number of the block)
  std::vector<i64> tensor, from;
  for (i64 i = 0; i < count; i++)
    for (i64 at = 0; at < u[i].n; at += BLOCK) { tensor.push_back(i); from.push_back(at); }
  parallel_for((i64)tensor.size(), [=, &tensor, &from](i64 b) {
    const Update& t = u[tensor[b]];
    f(t, from[b], from[b] + BLOCK < t.n ? from[b] + BLOCK : t.n, b);
  });
}

// The norm of all gradients together; they are scaled down to `most` if it is larger.
void clip(i64 count, const Update* u, float most, float* norm) {
  Scope op("clip");
  i64 total = 0;
  for (i64 i = 0; i < count; i++) total += (u[i].n + BLOCK - 1) / BLOCK;
  std::vector<double> squares(total);
  blocks(count, u, [&](const Update& t, i64 j, i64 end, i64 b) {
    vf part = {};
    for (; j < end; j += W) { vf g = load(t.g + j, end - j); part += g * g; }
    squares[b] = sum(part);
  });
  double all_squares = 0;
  for (double s : squares) all_squares += s;
  *norm = (float)std::sqrt(all_squares);
  float m = most / (*norm + 1e-6f);
  if (m >= 1.f) return;
  blocks(count, u, [&](const Update& t, i64 j, i64 end, i64) {
    for (; j < end; j += W) store(t.g + j, m * load(t.g + j, end - j), end - j);
  });
}

// Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW.
void adamw(i64 count, const Update* u, double beta1, double beta2) {
  Scope op("adamw");
  for (i64 i = 0; i < count; i++) *u[i].step += 1.f;
  blocks(count, u, [&](const Update& t, i64 j, i64 end, i64) {
    float rate = t.lr / (1. - std::pow(beta1, *t.step)), shrink = 1.f - t.lr * t.decay;
    float root = 1. / std::sqrt(1. - std::pow(beta2, *t.step)), b1 = 1. - beta1, b2 = 1. - beta2;
    for (; j < end; j += W) {
      i64 n = end - j;
      vf g = load(t.g + j, n), m = load(t.m + j, n), v = load(t.v + j, n), p = load(t.p + j, n), d;
      m += b1 * (g - m);
      v += b2 * (g * g - v);
#ifdef __AVX512F__
      d = (vf)_mm512_sqrt_ps((__m512)v);
#else
      for (i64 i = 0; i < W; i++) d[i] = std::sqrt(v[i]);
#endif
      p = p * shrink - rate * m / (d * root + t.eps);
      store(t.m + j, m, n); store(t.v + j, v, n); store(t.p + j, p, n);
    }
  });
}

#include "products.h"
#include "step.h"
#include "muon.h"
#include "update.h"

}  // namespace

// What kernels.py finds: each function for float and for bfloat16.
#define BOTH(f) {(void*)f<float>, (void*)f<bf16>}
#define ONCE(f) {(void*)f, (void*)f}
extern "C" void* const nanoscale_kernels[][2] = {
    BOTH(add_norm), BOTH(add_norm_backward), BOTH(norm_rope), BOTH(norm_rope_backward),
    BOTH(attend), BOTH(attend_backward), BOTH(gelu), BOTH(gelu_backward), BOTH(swiglu),
    BOTH(swiglu_backward), BOTH(cross_entropy), ONCE(embed), ONCE(embed_backward), ONCE(clip),
    ONCE(adamw), BOTH(dropout), BOTH(step), BOTH(step_room), ONCE(muon), BOTH(update), ONCE(look)};
