"""The C++ of a whole decode step, written for one model shape: what is compiled instead of some 70 operators.

Why whole: with a few rows a step of a small model is bound by launching operators and by reading weights, not by
arithmetic. Here all layers run in one call: weights stand in panels of two vector registers' width, so that a row
block keeps its sums in registers; norms become one factor a row, applied after the product; the gate, the residual
and the rotation are applied while their columns are in cache; threads meet at barriers, five a layer.

    source_of(shape, tile)       the text; `shape` and `tile` stand in it as constants

Gotoblas-style register blocking: Goto and van de Geijn, 2008. The exponential is Cephes' (Moshier, 1992).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from execution.live.decode.shape import DecodeShape


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """How the products are cut; what tuning chooses."""

    rows: int = 6
    """Rows whose sums are in registers at once."""
    panels: int = 1
    """Panels side by side, for one or two rows at a time."""
    ahead: int = 0
    """Weights are asked for so many rows of a panel before they are used; 0: the processor guesses."""

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 8 or not 1 <= self.panels <= 4 or not 0 <= self.ahead <= 64:
            raise ValueError(f"tile {self}: rows 1-8, panels 1-4, ahead 0-64 are possible")

    def __str__(self) -> str:
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


def source_of(shape: DecodeShape, tile: Tile) -> str:
    """The C++ text: the same for the same."""
    constants = {
        "LAYERS": shape.layers,
        "HIDDEN": shape.hidden,
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "HEAD_DIM": shape.head_dim,
        "INNER": shape.inner,
        "VOCAB": shape.vocabulary,
        "QKV_BIAS": int(shape.qkv_bias),
        "OUT_BIAS": int(shape.output_bias),
        "MLP_BIAS": int(shape.mlp_bias),
        "HEAD_BIAS": int(shape.head_bias),
        "NORM_WEIGHT": int(shape.final_norm_weight),
        "INT8": int(shape.int8),
        "MR": tile.rows,
        "NP": tile.panels,
        "AHEAD": tile.ahead,
    }
    head = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return f"{head}static constexpr float SHIFT = {shape.eps * shape.hidden!r}f;\n{BODY}"


BODY = r"""
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vf __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static constexpr int P = 2 * LANES;                       // columns of a panel
static constexpr int QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
static constexpr int CORE = HEADS * HEAD_DIM;
static constexpr int GROUP = HEADS / KV_HEADS;
static constexpr int up(int n) { return (n + P - 1) / P * P; }
static constexpr int most(int a, int b) { return a > b ? a : b; }
static constexpr int DEEPEST = most(most(HIDDEN, CORE), INNER);
#if INT8
typedef int8_t weight;
#else
typedef float weight;
#endif

struct Matrix { const weight *panels; const float *scales; const float *bias; };
struct Layer { Matrix qkv, output, gate_up, down; float *kv; };
struct Step {
  int64_t rows, threads, kv_lane, kv_head, length;        // strides of kv in floats; length: positions of a lane
  const int64_t *tokens, *positions, *lanes;
  const float *embed, *rotations, *norm_weight;
  const Layer *layers;
  const Matrix *head;
  float *scratch, *logits;
  int64_t *best;
};

extern "C" int64_t panel_columns() { return P; }
static int64_t per_thread(int64_t rows, int64_t length) { // scores of a group of heads, a panel made float, factors
  return (GROUP * (length + LANES) + (INT8 ? DEEPEST * P : 0) + rows + 15) / 16 * 16;
}
extern "C" int64_t scratch_floats(int64_t rows, int64_t threads, int64_t length) {
  return rows * (up(HIDDEN) + up(QKV) + up(CORE) + 3 * up(INNER) + most(up(VOCAB), up(HIDDEN))) +
         threads * per_thread(rows, length);
}

static inline vf load(const float *p) { return *(const vf *)p; }
static inline void store(float *p, vf v) { *(vf *)p = v; }
static inline vf all(float a) { return a - (vf){}; }
static inline float sum(vf v) {
#if LANES == 8
  __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
#else
  float s[LANES]; store(s, v);
  for (int n = LANES / 2; n; n /= 2) for (int i = 0; i < n; i++) s[i] += s[i + n];
  return s[0];
#endif
}
#if INT8
static inline vf widen(const int8_t *p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  vf v; for (int i = 0; i < LANES; i++) v[i] = p[i]; return v;
#endif
}
static inline vf load(const int8_t *p) { return widen(p); }
#endif

static inline vf exponential(vf x) {                      // relative error below 2e-7 in [-87, 88]; NaN stays NaN
  x = x < -87.33f ? all(-87.33f) : x;
  x = x > 88.37f ? all(88.37f) : x;
  const vf magic = all(12582912.0f);
  vf n = x * 1.44269504088896341f + magic;
  vi exponent = (vi)n;
  n -= magic;
  vf r = x - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  vf y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f; y = y * r + 8.3334519073e-3f; y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f; y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (vf)((exponent << 23) + 0x3f800000);
}

template <int R, int N, class T>                          // R rows times N half panels
static inline void product(const float *x, int64_t stride, const T *w, int depth, float *out, int64_t out_stride) {
  vf acc[R][N];
  for (int r = 0; r < R; r++) for (int n = 0; n < N; n++) acc[r][n] = (vf){};
  for (int k = 0; k < depth; k++) {
    vf b[N];
    for (int n = 0; n < N; n++) b[n] = load(w + (int64_t)(n / 2) * depth * P + k * P + n % 2 * LANES);
    if (AHEAD)
      for (int n = 0; n < N; n += 2) __builtin_prefetch(w + (int64_t)(n / 2) * depth * P + (k + AHEAD) * P);
    for (int r = 0; r < R; r++) {
      const vf a = all(x[r * stride + k]);
      for (int n = 0; n < N; n++) acc[r][n] += a * b[n];
    }
  }
  for (int r = 0; r < R; r++) for (int n = 0; n < N; n++) store(out + r * out_stride + n * LANES, acc[r][n]);
}

template <class T>
static inline void rows_of(int rows, const float *x, int64_t stride, const T *w, int depth, float *out, int64_t os) {
  int r = 0;
  for (; r + MR <= rows; r += MR) product<MR, 2>(x + r * stride, stride, w, depth, out + r * os, os);
  x += r * stride; out += r * os;
  switch (rows - r) {
    case 1: product<1, 2>(x, stride, w, depth, out, os); break;
    case 2: product<2, 2>(x, stride, w, depth, out, os); break;
    case 3: product<3, 2>(x, stride, w, depth, out, os); break;
    case 4: product<4, 2>(x, stride, w, depth, out, os); break;
    case 5: product<5, 2>(x, stride, w, depth, out, os); break;
    case 6: product<6, 2>(x, stride, w, depth, out, os); break;
    case 7: product<7, 2>(x, stride, w, depth, out, os); break;
  }
}

// Columns of panels [first, last) of x @ w, as they are, into out.
static void multiply(const Matrix &m, int first, int last, int rows, const float *x, int64_t stride, int depth,
                     float *out, int64_t os, float *panel) {
  int p = first;
  while (p < last) {
    const weight *w = m.panels + (int64_t)p * depth * P;
    if (rows == 1 && p + NP <= last) {
      product<1, 2 * NP>(x, stride, w, depth, out + p * P, os); p += NP; continue;
    }
    if (rows == 2 && NP >= 2 && p + 2 <= last) {
      product<2, 4>(x, stride, w, depth, out + p * P, os); p += 2; continue;
    }
#if INT8
    if (rows > MR) {                                      // several row blocks: widen once
      for (int i = 0; i < depth * P; i += LANES) store(panel + i, load(w + i));
      rows_of(rows, x, stride, (const float *)panel, depth, out + p * P, os); p++; continue;
    }
#endif
    rows_of(rows, x, stride, w, depth, out + p * P, os); p++;
  }
  (void)panel;
}

// out = out * factor of its row * scale of its column + bias, for columns [first, last) panels.
static inline vf finish(const Matrix &m, const float *out, int column, float factor, int biased) {
  vf v = load(out + column) * factor;
  if (INT8) v *= load(m.scales + column);
  if (biased) v += load(m.bias + column);
  return v;
}

static float inverse_size(const float *x) {               // 1 / sqrt(sum(x^2) + hidden * eps)
  vf s = {}; int i = 0; float rest = 0;
  for (; i + LANES <= HIDDEN; i += LANES) s += load(x + i) * load(x + i);
  for (; i < HIDDEN; i++) rest += x[i] * x[i];
  return 1.0f / std::sqrt(sum(s) + rest + SHIFT);
}

static void rotate(float *x, const float *turn) {
  for (int i = 0; i < HEAD_DIM; i += 2) {
    const float a = x[i], b = x[i + 1], c = turn[i], s = turn[i + 1];
    x[i] = a * c - b * s; x[i + 1] = a * s + b * c;
  }
}

// Queries of one row that share a key head: rotate, remember, attend.
static void attend(const Step &s, const Layer &layer, int row, int head, float *qkv, float *core, float *scores) {
  const int64_t at = s.positions[row], count = at + 1, width = s.length + LANES;
  const float *turn = s.rotations + at * HEAD_DIM;
  float *q = qkv + head * GROUP * HEAD_DIM, *k = qkv + (HEADS + head) * HEAD_DIM;
  const float *v = qkv + (HEADS + KV_HEADS + head) * HEAD_DIM;
  float *keys = layer.kv + s.lanes[row] * s.kv_lane + head * s.kv_head;
  float *values = layer.kv + s.lanes[row] * s.kv_lane + (KV_HEADS + head) * s.kv_head;
  rotate(k, turn);
  for (int g = 0; g < GROUP; g++) rotate(q + g * HEAD_DIM, turn);
  std::memcpy(keys + at * HEAD_DIM, k, HEAD_DIM * sizeof(float));
  std::memcpy(values + at * HEAD_DIM, v, HEAD_DIM * sizeof(float));
  const float root = 1.0f / std::sqrt((float)HEAD_DIM);
  constexpr int BODY = HEAD_DIM / LANES * LANES;
  float biggest[GROUP];
  for (int g = 0; g < GROUP; g++) biggest[g] = -INFINITY;
  for (int64_t t = 0; t < count; t++) {
    const float *key = keys + t * HEAD_DIM;
    for (int g = 0; g < GROUP; g++) {
      const float *query = q + g * HEAD_DIM;
      vf a = {}, b = {}; float rest = 0;
      int d = 0;
      for (; d + 2 * LANES <= HEAD_DIM; d += 2 * LANES) {
        a += load(query + d) * load(key + d);
        b += load(query + d + LANES) * load(key + d + LANES);
      }
      for (; d < HEAD_DIM; d++) rest += query[d] * key[d];
      const float found = (sum(a + b) + rest) * root;
      scores[g * width + t] = found;
      biggest[g] = found > biggest[g] ? found : biggest[g];
    }
  }
  for (int g = 0; g < GROUP; g++) {
    float *score = scores + g * width;
    vf total = {};
    for (int i = 0; i < LANES; i++) score[count + i] = -INFINITY;
    for (int64_t t = 0; t < count; t += LANES) {
      vf e = load(score + t);
      const vf past = e;
      e = exponential(e - biggest[g]);
      e = past == -INFINITY ? (vf){} : e;
      store(score + t, e); total += e;
    }
    const float scale = 1.0f / sum(total);
    vf acc[BODY / LANES + 1] = {}; float rest[LANES] = {};
    for (int64_t t = 0; t < count; t++) {
      const float p = score[t], *value = values + t * HEAD_DIM;
      for (int d = 0; d < BODY / LANES; d++) acc[d] += p * load(value + d * LANES);
      for (int d = BODY; d < HEAD_DIM; d++) rest[d - BODY] += p * value[d];
    }
    float *out = core + (head * GROUP + g) * HEAD_DIM;
    for (int d = 0; d < BODY / LANES; d++) store(out + d * LANES, acc[d] * scale);
    for (int d = BODY; d < HEAD_DIM; d++) out[d] = rest[d - BODY] * scale;
  }
}

struct Barrier {
  std::atomic<int> arrived{0}, round{0};
  void wait(int threads) {
    if (threads == 1) return;
    const int now = round.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived.store(0, std::memory_order_relaxed);
      round.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
      if (spins > 2000) sched_yield();                    // somebody else has our partner's core
  }
};

static inline int share(int items, int thread, int threads) { return (int64_t)items * thread / threads; }

static void run(const Step &s, int thread, int threads, Barrier &barrier) {
  const int rows = s.rows;
  constexpr int XS = up(HIDDEN), QS = up(QKV), CS = up(CORE), GS = 2 * up(INNER), HS = up(INNER);
  constexpr int VS = up(VOCAB), OS = most(VS, XS);
  float *x = s.scratch, *qkv = x + rows * XS, *core = qkv + rows * QS, *gate = core + rows * CS;
  float *inner = gate + rows * GS, *out = inner + rows * HS, *end = out + rows * OS;
  float *own = end + thread * per_thread(rows, s.length);
  float *scores = own, *panel = own + GROUP * (s.length + LANES), *factor = panel + (INT8 ? DEEPEST * P : 0);
  auto measure = [&] { for (int r = 0; r < rows; r++) factor[r] = inverse_size(x + r * XS); };
  for (int r = share(rows, thread, threads); r < share(rows, thread + 1, threads); r++) {
    std::memcpy(x + r * XS, s.embed + s.tokens[r] * HIDDEN, HIDDEN * sizeof(float));
    for (int i = HIDDEN; i < XS; i++) x[r * XS + i] = 0;
  }
  barrier.wait(threads);
  for (int l = 0; l < LAYERS; l++) {
    const Layer &layer = s.layers[l];
    int first = share(QS / P, thread, threads), last = share(QS / P, thread + 1, threads);
    measure();
    multiply(layer.qkv, first, last, rows, x, XS, HIDDEN, qkv, QS, panel);
    for (int r = 0; r < rows; r++)
      for (int c = first * P; c < last * P; c += LANES)
        store(qkv + r * QS + c, finish(layer.qkv, qkv + r * QS, c, factor[r], QKV_BIAS));
    barrier.wait(threads);
    for (int i = share(rows * KV_HEADS, thread, threads); i < share(rows * KV_HEADS, thread + 1, threads); i++)
      attend(s, layer, i / KV_HEADS, i % KV_HEADS, qkv + i / KV_HEADS * QS, core + i / KV_HEADS * CS, scores);
    barrier.wait(threads);
    first = share(XS / P, thread, threads), last = share(XS / P, thread + 1, threads);
    multiply(layer.output, first, last, rows, core, CS, CORE, out, OS, panel);
    for (int r = 0; r < rows; r++)
      for (int c = first * P; c < last * P; c += LANES)
        store(x + r * XS + c, load(x + r * XS + c) + finish(layer.output, out + r * OS, c, 1.0f, OUT_BIAS));
    barrier.wait(threads);
    measure();
    first = share(HS / P, thread, threads), last = share(HS / P, thread + 1, threads);
    multiply(layer.gate_up, 2 * first, 2 * last, rows, x, XS, HIDDEN, gate, GS, panel);
    for (int r = 0; r < rows; r++)
      for (int p = first; p < last; p++)
        for (int c = 0; c < P; c += LANES) {
          const vf g = finish(layer.gate_up, gate + r * GS, 2 * p * P + c, factor[r], MLP_BIAS);
          const vf u = finish(layer.gate_up, gate + r * GS, (2 * p + 1) * P + c, factor[r], MLP_BIAS);
          store(inner + r * HS + p * P + c, g / (exponential(-g) + 1.0f) * u);
        }
    barrier.wait(threads);
    first = share(XS / P, thread, threads), last = share(XS / P, thread + 1, threads);
    multiply(layer.down, first, last, rows, inner, HS, INNER, out, OS, panel);
    for (int r = 0; r < rows; r++)
      for (int c = first * P; c < last * P; c += LANES)
        store(x + r * XS + c, load(x + r * XS + c) + finish(layer.down, out + r * OS, c, 1.0f, MLP_BIAS));
    barrier.wait(threads);
  }
  measure();
  if (NORM_WEIGHT) {
    barrier.wait(threads);                                // all have measured what is changed now
    for (int r = share(rows, thread, threads); r < share(rows, thread + 1, threads); r++)
      for (int i = 0; i < HIDDEN; i++) x[r * XS + i] *= s.norm_weight[i];
    barrier.wait(threads);
  }
  const int first = share(VS / P, thread, threads), last = share(VS / P, thread + 1, threads);
  multiply(*s.head, first, last, rows, x, XS, HIDDEN, out, OS, panel);
  for (int r = 0; r < rows; r++)
    for (int c = first * P; c < last * P && c < VOCAB; c += LANES) {
      float v[LANES];
      store(v, finish(*s.head, out + r * OS, c, factor[r], HEAD_BIAS));
      for (int i = 0; i < LANES && c + i < VOCAB; i++) s.logits[(int64_t)r * VOCAB + c + i] = v[i];
    }
  barrier.wait(threads);
  for (int r = share(rows, thread, threads); r < share(rows, thread + 1, threads); r++) {
    const float *logits = s.logits + (int64_t)r * VOCAB;
    int64_t best = 0; bool number = true;
    for (int64_t i = 0; i < VOCAB; i++) {
      number &= logits[i] == logits[i];
      best = logits[i] > logits[best] ? i : best;
    }
    s.best[r] = number && std::isfinite(logits[best]) ? best : -1;
  }
}

extern "C" void decode_step(const Step *step) {
  Barrier barrier;
#ifdef _OPENMP
  if (step->threads > 1) {
#pragma omp parallel num_threads(step->threads)
    run(*step, omp_get_thread_num(), omp_get_num_threads(), barrier);
    return;
  }
#endif
  run(*step, 0, 1, barrier);
}
"""
