// A decoder layer that reads R new positions behind remembered ones, in bf16: norms, products, rotation, the memory and
// residuals in four kernels. What they read is the weights; a warp makes the sums of two of their rows at
// once, for R positions, and asks for the first of them before the kernel ahead has ended. Widths are multiples of 8 elements and addresses of 16 bytes.

// Packs of 8 elements of both rows that a lane has on their way at once, while it adds up as many others.
constexpr int U = 4;

struct Packs {
  uint4 a[U], b[U];
};

__device__ __forceinline__ void fetch(Packs& w, const T* a, const T* b, int from, int k) {
#pragma unroll
  for (int u = 0; u < U; u++) {
    int c = from + 256 * u + threadIdx.x % 32 * 8;
    w.a[u] = w.b[u] = uint4{0, 0, 0, 0};
    if (c < k) {
      w.a[u] = load_once(a + c);
      w.b[u] = load_once(b + c);
    }
  }
}

__device__ __forceinline__ void add(const Packs& w, const T* x, int from, int k, float (&sum)[2][R]) {
#pragma unroll
  for (int u = 0; u < U; u++) {
    int c = from + 256 * u + threadIdx.x % 32 * 8;
    if (c >= k) continue;
    float a[8], b[8], v[8];
    widen(w.a[u], a);
    widen(w.b[u], b);
#pragma unroll
    for (int r = 0; r < R; r++) {
      load<8>(x + r * k + c, v);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[0][r] += a[j] * v[j];
        sum[1][r] += b[j] * v[j];
      }
    }
  }
}

// Products of pairs of rows of weights, k wide, with R rows x in shared memory: a warp takes every so many-th pair, and
// has its next packs on their way while it adds up. `rows(p, a, b)` says where pair p is, `ready()` makes x once the
// kernels before have ended, `begin(p)` asks for what `done(p, sum)` needs, which gets the sums in every lane: a warp that
// read it only then would wait for it with nothing else on its way.
template <class Rows, class Ready, class Begin, class Done>
__device__ __forceinline__ void products(int pairs, const T* x, int k, Rows rows, Ready ready, Begin begin, Done done) {
  int p = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, step = gridDim.x * (blockDim.x / 32), from = 0;
  const T *a, *b;
  Packs next;
  if (p < pairs) {
    rows(p, a, b);
    fetch(next, a, b, 0, k);
  }
  let_next_start();
  wait_for_previous();
  ready();
  __syncthreads();
  float sum[2][R];
#pragma unroll
  for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = 0.f;
  while (p < pairs) {
    Packs now = next;
    int q = p, c = from + 256 * U;
    if (c >= k) {
      c = 0;
      q += step;
      if (q < pairs) rows(q, a, b);
    }
    if (q < pairs) fetch(next, a, b, c, k);
    if (from == 0) begin(p);
    add(now, x, from, k, sum);
    if (c == 0) {
#pragma unroll
      for (int r = 0; r < R; r++) {
        sum[0][r] = warp_sum(sum[0][r]);
        sum[1][r] = warp_sum(sum[1][r]);
      }
      done(p, sum);
#pragma unroll
      for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = 0.f;
    }
    p = q;
    from = c;
  }
}

__device__ __forceinline__ void norms(const T* x, const T* weight, T* y, int d, float eps) {
  for (int r = 0; r < R; r++) norm_row(x + (i64)r * d, weight, y + r * d, d, eps);
}

// x to shared memory; eight packs of a thread are on their way at once.
__device__ __forceinline__ void copy(const T* x, T* y, int d) {
  int n = R * d, step = blockDim.x * 8;
  for (int c = threadIdx.x * 8; c < n; c += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (c + i * step < n) v[i] = load_new(x + c + i * step);
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (c + i * step < n) *(uint4*)(y + c + i * step) = v[i];
  }
}

// q of the norm of x, rotated, to rows of stride `qs`; k, rotated, and v to the memory.
extern "C" __global__ void __launch_bounds__(256, 2)
    attend_in(const T* x, const T* norm, Projections w, T* q, T* keys, T* values, const T* cos, const T* sin, Place place,
              int width, int qs, int h, int hkv, int d, float eps) {
  SHARED(memory);
  T* y = (T*)memory;
  T co, si, *to = q;  // of the pair at hand, for this lane's row
  int half = d / 2, lane = threadIdx.x % 32;
  auto own = [&](int head) { return head < h ? head : head < h + hkv ? head - h : head - h - hkv; };
  products(
      (h + 2 * hkv) * half, y, width,
      [&](int p, const T*& a, const T*& b) {
        int head = p / half;
        const T* weight = head < h ? w.q : head < h + hkv ? w.k : w.v;
        a = weight + ((i64)own(head) * d + p % half) * width;
        b = a + (i64)half * width;
      },
      [&] { norms(x, norm, y, width, eps); },
      [&](int p) {
        int head = p / half, i = p % half, r = lane;
        if (r >= R) return;
        if (head < h + hkv) {
          co = cos[(i64)r * half + i];
          si = sin[(i64)r * half + i];
        }
        to = head < h ? q + (i64)r * qs + head * d + i : (head < h + hkv ? keys : values) + memory_index(place, r, own(head), d) + i;
      },
      [&](int p, const float(&sum)[2][R]) {
        int head = p / half, i = p % half, row = own(head) * d + i;
        const T* bias = head < h ? w.q_bias : head < h + hkv ? w.k_bias : w.v_bias;
#pragma unroll
        for (int r = 0; r < R; r++) {
          if (lane != r) continue;
          float a = sum[0][r], b = sum[1][r];
          if (bias) {
            a += widen(bias[row]);
            b += widen(bias[row + half]);
          }
          a = widen(Narrow<T>::of(a));
          b = widen(Narrow<T>::of(b));
          if (head < h + hkv) rotate(widen(co), widen(si), a, b);
          to[0] = Narrow<T>::of(a);
          to[half] = Narrow<T>::of(b);
        }
      });
}

// x += W y + bias for the matrix W [n, k].
extern "C" __global__ void __launch_bounds__(256, 2)
    add_product(T* x, const T* y, const T* weight, const T* bias, int n, int k) {
  SHARED(memory);
  T* input = (T*)memory;
  u32 old = 0;  // x of the pair at hand, for this lane's row
  int lane = threadIdx.x % 32;
  products(
      n / 2, input, k,
      [&](int p, const T*& a, const T*& b) {
        a = weight + (i64)(2 * p) * k;
        b = a + k;
      },
      [&] { copy(y, input, k); },
      [&](int p) {
        if (lane < R) old = load_new_pair(x + (i64)lane * n + 2 * p);
      },
      [&](int p, const float(&sum)[2][R]) {
#pragma unroll
        for (int r = 0; r < R; r++) {
          if (lane != r) continue;
          float a = __uint_as_float(old << 16) + sum[0][r], b = __uint_as_float(old & 0xffff0000u) + sum[1][r];
          if (bias) {
            a += widen(bias[2 * p]);
            b += widen(bias[2 * p + 1]);
          }
          *(u32*)(x + (i64)r * n + 2 * p) = (u32)round_to_bf16(a) | (u32)round_to_bf16(b) << 16;
        }
      });
}

// y = silu(gate) up for the norm of x, m wide.
extern "C" __global__ void __launch_bounds__(256, 2)
    gate_up(const T* x, const T* norm, const T* gate, const T* up, const T* gate_bias, const T* up_bias, T* y, int width, int m,
            float eps) {
  SHARED(memory);
  T* normal = (T*)memory;
  int lane = threadIdx.x % 32;
  products(
      m, normal, width,
      [&](int p, const T*& a, const T*& b) {
        a = gate + (i64)p * width;
        b = up + (i64)p * width;
      },
      [&] { norms(x, norm, normal, width, eps); },
      [](int) {},
      [&](int p, const float(&sum)[2][R]) {
#pragma unroll
        for (int r = 0; r < R; r++) {
          if (lane != r) continue;
          float g = sum[0][r] + (gate_bias ? widen(gate_bias[p]) : 0.f), u = sum[1][r] + (up_bias ? widen(up_bias[p]) : 0.f);
          y[(i64)r * m + p] = Narrow<T>::of(silu(g) * u);
        }
      });
}

// The largest `choice` of W x + bias for each row of x, which is normalised already; n rows of W.
extern "C" __global__ void __launch_bounds__(256, 2)
    choose(const T* x, const T* weight, const T* bias, u64* best, int n, int k) {
  SHARED(memory);
  __shared__ u64 own[R];
  T* input = (T*)memory;
  u64 most[R];
#pragma unroll
  for (int r = 0; r < R; r++) most[r] = 0;
  if (threadIdx.x < R) own[threadIdx.x] = 0;
  products(
      (n + 1) / 2, input, k,
      [&](int p, const T*& a, const T*& b) {
        a = weight + (i64)(2 * p) * k;
        b = 2 * p + 1 < n ? a + k : a;
      },
      [&] { copy(x, input, k); },
      [](int) {},
      [&](int p, const float(&sum)[2][R]) {
#pragma unroll
        for (int r = 0; r < R; r++)
          for (int i = 0; i < 2; i++)
            if (2 * p + i < n) most[r] = max(most[r], choice(sum[i][r] + (bias ? widen(bias[2 * p + i]) : 0.f), 2 * p + i));
      });
#pragma unroll
  for (int r = 0; r < R; r++)
    if (threadIdx.x % 32 == 0) atomicMax(own + r, most[r]);
  __syncthreads();
  if (threadIdx.x < R) atomicMax(best + threadIdx.x, own[threadIdx.x]);
}
