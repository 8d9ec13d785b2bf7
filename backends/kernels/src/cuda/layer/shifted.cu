// What attention in shifted groups moves between a layer's rows and those of the groups, and the gradient of an RMS norm's
// weight, in bf16. Matrices are row-major; `xs`, `ys` and the like are elements from a row to the next, all multiples of 8. A
// row number of IGNORED is that of a row of zeros.

typedef bf16 T;
typedef Pack<bf16> P8;
#define IGNORED 0xffffffffu

__device__ __forceinline__ P8 pack_or_zeros(const T* x, u32 row, int stride, int column) {
  P8 zeros = {};
  return row == IGNORED ? zeros : *(const P8*)(x + (i64)row * stride + column);
}

// Heads `first .. first + n` of [q | k | v], key heads once for each of theirs, of the rows `rows`: [q | k | v] of n heads each.
extern "C" __global__ void gather_heads(const T* x, const u32* rows, T* y, i64 count, int xs, int h, int hkv, int d, int first, int n) {
  int packs = d / 8, heads = 3 * n;
  for (i64 i = thread_index(); i < count * heads * packs; i += thread_count()) {
    int pack = (int)(i % packs), head = (int)(i / packs % heads);
    i64 row = i / packs / heads;
    int part = head / n, own = first + head % n;
    int from = part == 0 ? own : h + (part - 1) * hkv + own / (h / hkv);
    ((P8*)y)[i] = pack_or_zeros(x, rows[row], xs, from * d + 8 * pack);
  }
}

// The same columns of the rows `rows`.
extern "C" __global__ void gather_columns(const T* x, const u32* rows, T* y, i64 count, int columns, int xs, int ys) {
  int packs = columns / 8;
  for (i64 i = thread_index(); i < count * packs; i += thread_count()) {
    i64 row = i / packs;
    int column = (int)(i % packs) * 8;
    *(P8*)(y + row * ys + column) = pack_or_zeros(x, rows[row], xs, column);
  }
}

// The way back of gather_heads for gradients: `early` and `late` are those of the first `half` heads and of the others, `to_early`
// and `to_late` say where a row's are; what the query heads of a key head gave it is added up.
extern "C" __global__ void scatter_heads(const T* early, const T* late, const u32* to_early, const u32* to_late, T* y, i64 count, int ys,
                                         int h, int hkv, int d, int half) {
  int packs = d / 8, heads = h + 2 * hkv, of_key = h / hkv;
  for (i64 i = thread_index(); i < count * heads * packs; i += thread_count()) {
    int pack = (int)(i % packs), head = (int)(i / packs % heads);
    i64 row = i / packs / heads;
    int part = head < h ? 0 : 1 + (head - h) / hkv;
    int from = part == 0 ? head : (head - h) % hkv * of_key, to = part == 0 ? head + 1 : from + of_key;
    float sum[8] = {};
    for (int own = from; own < to; own++) {
      bool first = own < half;
      int n = first ? half : h - half;
      u32 place = first ? to_early[row] : to_late[row];
      P8 part_of = pack_or_zeros(first ? early : late, place, 3 * n * d, (part * n + own - (first ? 0 : half)) * d + 8 * pack);
#pragma unroll
      for (int j = 0; j < 8; j++) sum[j] += widen(part_of.v[j]);
    }
    store<8>(y + row * ys + (i64)head * d + 8 * pack, sum);
  }
}

// Sums of g x / rms(x) over the rows of each warp, [warps, d]; columns of C packs of 8 per lane stay in registers.
template <int C>
__device__ void norm_weight_sums(const T* x, const T* g, float* sums, i64 rows, int d, int xs, int gs, float eps) {
  int lane = threadIdx.x % 32;
  i64 warp = thread_index() / 32, warps = thread_count() / 32;
  float total[C][8] = {};
  for (i64 row = warp; row < rows; row += warps) {
    float v[C][8], squares = 0.f;
#pragma unroll
    for (int i = 0; i < C; i++) {
      int column = (32 * i + lane) * 8;
#pragma unroll
      for (int j = 0; j < 8; j++) v[i][j] = 0.f;
      if (column < d) load<8>(x + row * xs + column, v[i]);
#pragma unroll
      for (int j = 0; j < 8; j++) squares += v[i][j] * v[i][j];
    }
    float r = rsqrtf(warp_sum(squares) / d + eps);
#pragma unroll
    for (int i = 0; i < C; i++) {
      int column = (32 * i + lane) * 8;
      if (column >= d) continue;
      float gradient[8];
      load<8>(g + row * gs + column, gradient);
#pragma unroll
      for (int j = 0; j < 8; j++) total[i][j] += gradient[j] * v[i][j] * r;
    }
  }
#pragma unroll
  for (int i = 0; i < C; i++) {
    int column = (32 * i + lane) * 8;
    if (column >= d) continue;
    store<4>(sums + warp * d + column, total[i]);
    store<4>(sums + warp * d + column + 4, total[i] + 4);
  }
}

#define NORM_WEIGHT_SUMS(C)                                                                                                             \
  extern "C" __global__ void norm_weight_sums_##C(const T* x, const T* g, float* sums, i64 rows, int d, int xs, int gs, float eps) {   \
    norm_weight_sums<C>(x, g, sums, rows, d, xs, gs, eps);                                                                              \
  }
NORM_WEIGHT_SUMS(1)
NORM_WEIGHT_SUMS(2)
NORM_WEIGHT_SUMS(3)
NORM_WEIGHT_SUMS(4)
NORM_WEIGHT_SUMS(8)
NORM_WEIGHT_SUMS(16)

// y[c] = sum of x[i][c], in order.
extern "C" __global__ void column_sums(const float* x, float* y, int rows, int d) {
  for (i64 c = thread_index(); c < d; c += thread_count()) {
    float sum = 0.f;
    for (int i = 0; i < rows; i++) sum += x[(i64)i * d + c];
    y[c] = sum;
  }
}
