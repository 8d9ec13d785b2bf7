// The forward pass. M rows per block, 16 R for each of W warps, against N keys at a time, of which the next ones are on their
// way while these are used.
constexpr int M = 16 * R * W;

// Grid: (row tiles, b * hkv, splits). With one split the result goes to `o` and `lse` ([b, h, tq]); with more, the
// unnormalised output, maximum (in units of log2) and sum of each split go to `acc`, `tops` and `totals`, for
// `attention_merge`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_forward(const T* q, const T* k, const T* v, T* o, float* lse, float* acc, float* tops, float* totals,
                      const int* lengths, Params p) {
  SHARED(memory);
  T *qt = (T*)memory, *tiles = qt + M * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  T* scratch = tiles + 4 * N * STRIDE + SCRATCH(warp, N);
  Turn turn;
  int b = turn.head / p.hkv, kv = turn.head % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  // The last rows see the most keys, and start first.
  int row0 = (gridDim.x - 1 - turn.tile) * M, count = min(M, rows - row0);
  int first = blockIdx.z * p.split_keys;
  int end = min(visible(p, lengths, b, group.position(row0 + count - 1)), first + p.split_keys);
  const T *kb = k + b * p.ks[0] + kv * p.ks[1], *vb = v + b * p.vs[0] + kv * p.vs[1];
  auto load_keys = [&](int n0, T* to) {
    load_rows<N>(to, kb + n0 * p.ks[2], p.ks[2], end - n0, p.d);
    load_rows<N>(to + N * STRIDE, vb + n0 * p.vs[2], p.vs[2], end - n0, p.d);
  };

  load_tile<M>(qt, q, count, p.d, [&](int i) { return place(group, p.qs, b, kv, row0 + i); });
  if (first < end) load_keys(first, tiles);

  int seen[R][2], least = end;
  float top[R][2], total[R][2], out[R][D / 8][4];
  clear(out);
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = row0 + (warp * R + r) * 16 + g + 8 * i;
      // A tile may reach into the keys of the next split.
      seen[r][i] = row < rows ? min(visible(p, lengths, b, group.position(row)), end) : 0;
      least = min(least, seen[r][i]);
      top[r][i] = -infinity();
      total[r][i] = 0.f;
    }
  least = __reduce_min_sync(0xffffffffu, least);

  float scale = p.scale * LOG2E;
  int odd = 0;
  for (int n0 = first; n0 < end; n0 += N, odd ^= 1) {
    T *kt = tiles + odd * 2 * N * STRIDE, *vt = kt + N * STRIDE;
    copied();
    __syncthreads();
    if (n0 + N < end) load_keys(n0 + N, tiles + (odd ^ 1) * 2 * N * STRIDE);
    float s[R][N / 8][4];
    clear(s);
    product_nt<N>(s, qt + warp * R * 16 * STRIDE, kt);
    if (n0 + N > least) {
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (n0 + 8 * n + 2 * t + e % 2 >= seen[r][e / 2]) s[r][n][e] = -infinity();
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float most = top[r][i];
#pragma unroll
        for (int n = 0; n < N / 8; n++) most = fmaxf(most, fmaxf(s[r][n][2 * i], s[r][n][2 * i + 1]));
        most = quad_max(most);
        float base = most == -infinity() ? 0.f : most * scale, shrink = power_of_2(top[r][i] * scale - base), sum = 0.f;
        top[r][i] = most;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          out[r][n][2 * i] *= shrink;
          out[r][n][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            s[r][n][2 * i + e] = power_of_2(s[r][n][2 * i + e] * scale - base);
            sum += s[r][n][2 * i + e];
          }
        total[r][i] = total[r][i] * shrink + sum;
      }
    product_nn<N>(out, s, vt, scratch);
  }
  // A tile without keys still has its copies under way.
  copied();

#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = row0 + (warp * R + r) * 16 + g + 8 * i;
      float all = quad_sum(total[r][i]), inverse = all > 0.f ? 1.f / all : all;
      i64 index = ((i64)b * p.h + kv * heads + group.head(row)) * p.tq + group.position(row);
      if (p.splits == 1) {
        store_row(o + place(group, p.os, b, kv, row), p.d, out[r], i, inverse, row < rows);
        if (t == 0 && row < rows) lse[index] = all == 0.f ? infinity() : top[r][i] * p.scale + logf(all);
        continue;
      }
      if (row >= rows) continue;
      index += (i64)blockIdx.z * gridDim.y * rows;
      if (t == 0) {
        tops[index] = top[r][i] * scale;
        totals[index] = all;
      }
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int c = 8 * n + 2 * t + e;
          if (c < p.d) acc[index * p.d + c] = out[r][n][2 * i + e];
        }
    }
}

// Combines the splits; one warp per row.
extern "C" __global__ void attention_merge(const float* acc, const float* tops, const float* totals, T* o, float* lse,
                                           i64 rows, Params p) {
  int lane = threadIdx.x % 32;
  for (i64 r = thread_index() / 32; r < rows; r += thread_count() / 32) {
    int position = (int)(r % p.tq), head = (int)(r / p.tq % p.h);
    i64 b = r / p.tq / p.h;
    float top = -infinity(), total = 0.f;
    for (int s = 0; s < p.splits; s++) top = fmaxf(top, tops[s * rows + r]);
    float base = top == -infinity() ? 0.f : top;
    for (int s = 0; s < p.splits; s++) total += totals[s * rows + r] * power_of_2(tops[s * rows + r] - base);
    float inverse = total > 0.f ? 1.f / total : total;
    if (lane == 0) lse[r] = total == 0.f ? infinity() : top * LN2 + logf(total);
    for (int c = lane; c < p.d; c += 32) {
      float value = 0.f;
      for (int s = 0; s < p.splits; s++) value += acc[(s * rows + r) * p.d + c] * power_of_2(tops[s * rows + r] - base);
      o[b * p.os[0] + head * p.os[1] + position * p.os[2] + c] = Narrow<T>::of(value * inverse);
    }
  }
}
