// Products of a short, wide matrix with chosen rows of another, where these rows lie: nothing is gathered.
//
// left [N, n], rows [n, m], index [k]. A tile holds R rows times two vectors of running sums in registers.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fxapprox {

// Vectors of 32 bytes everywhere: those of 64 are no faster where they fit, and are spilled more.
constexpr int BYTES = 32;
#if defined(__AVX512VL__)
constexpr int TILE = 12, DOTS = 5;  // of 32 registers
#else
constexpr int TILE = 6, DOTS = 3;  // of 16
#endif
constexpr int64_t AHEAD = 12;  // rows to fetch ahead: they lie too far apart for the processor to guess

template <typename T>
struct Vectors {
  typedef T Type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
  static constexpr int64_t LANES = BYTES / sizeof(T);
};
template <typename T>
using Vector = typename Vectors<T>::Type;

template <typename T>
inline Vector<T> load(const T* at) { return *reinterpret_cast<const Vector<T>*>(at); }

template <typename T>
inline void store(T* at, Vector<T> value) { *reinterpret_cast<Vector<T>*>(at) = value; }

// The first `count` lanes, zeros in the rest.
template <typename T>
inline Vector<T> load_some(const T* at, int64_t count) {
  T lanes[Vectors<T>::LANES] = {};
  std::memcpy(lanes, at, count * sizeof(T));
  return load<T>(lanes);
}

// The sum of the lanes, half by half.
template <typename T, int SIZE = BYTES>
inline T total(const T* lanes) {
  typedef T Half __attribute__((vector_size(SIZE / 2), aligned(alignof(T)), may_alias));
  constexpr int LANES = SIZE / 2 / sizeof(T);
  const Half sum = *reinterpret_cast<const Half*>(lanes) + *reinterpret_cast<const Half*>(lanes + LANES);
  if constexpr (LANES == 2) return sum[0] + sum[1];
  else return total<T, SIZE / 2>(reinterpret_cast<const T*>(&sum));
}

// Calls tile(std::integral_constant<int, R>, first) for `count` rows in tiles of as equal a size as can be.
template <int MOST, int R, typename Tile>
inline void of_size(int64_t size, int64_t first, Tile& tile) {
  if constexpr (R > 0) {
    if (size == R) tile(std::integral_constant<int, R>(), first);
    else of_size<MOST, R - 1>(size, first, tile);
  }
}

template <int MOST, typename Tile>
void in_tiles(int64_t count, Tile&& tile) {
  const int64_t tiles = (count + MOST - 1) / MOST;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = count * t / tiles;
    of_size<MOST, MOST>(count * (t + 1) / tiles - first, first, tile);
  }
}

// result [N, m] = bias + Σ_j kept[j, :]ᵀ · rows[index[j], :], kept [k, N]. m is at least two vectors.
template <typename T>
void forward(const T* kept, const T* rows, const T* bias, const int64_t* index, int64_t k, int64_t count,
             int64_t width, T* result) {
  constexpr int64_t LANES = Vectors<T>::LANES, WIDE = 2 * LANES;
  const int64_t tiles = (width + WIDE - 1) / WIDE;
  at::parallel_for(0, tiles, 1, [&](int64_t from, int64_t to) {
    std::vector<T> copy(count > 4 * TILE ? k * WIDE : 0);  // worth while where many tiles of rows read it
    for (int64_t t = from; t < to; ++t) {
      const int64_t own = t * WIDE, column = std::min(own, width - WIDE);  // the last tile begins inside the one before
      for (int64_t j = 0; j < static_cast<int64_t>(copy.size()) / WIDE; ++j)
        std::memcpy(&copy[j * WIDE], rows + index[j] * width + column, WIDE * sizeof(T));
      in_tiles<TILE>(count, [&](auto size, int64_t first) {
        constexpr int R = decltype(size)::value;
        Vector<T> sum[R][2];
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < 2; ++v) sum[r][v] = bias ? load(bias + column + v * LANES) : Vector<T>{};
        for (int64_t j = 0; j < k; ++j) {
          const T* row = copy.empty() ? rows + index[j] * width + column : &copy[j * WIDE];
          const T* factor = kept + j * count + first;
          if (copy.empty() && j + AHEAD < k) __builtin_prefetch(rows + index[j + AHEAD] * width + column);
          const Vector<T> a = load(row), b = load(row + LANES);
          for (int r = 0; r < R; ++r) {
            sum[r][0] += factor[r] * a;
            sum[r][1] += factor[r] * b;
          }
        }
        for (int r = 0; r < R; ++r) {
          T* out = result + (first + r) * width;
          if (own == column) {
            store(out + column, sum[r][0]);
            store(out + column + LANES, sum[r][1]);
          } else {
            for (int64_t c = own; c < width; ++c) out[c] = sum[r][(c - column) / LANES][(c - column) % LANES];
          }
        }
      });
    }
  });
}

// result [N, n] at the places of the index: Σ_c grad[:, c] · rows[index[j], c], times scale[j]; the rest is left.
template <typename T>
void grad_left(const T* grad, const T* rows, const int64_t* index, const T* scale, int64_t k, int64_t count,
               int64_t width, int64_t pairs, T* result) {
  constexpr int64_t LANES = Vectors<T>::LANES;
  const int64_t whole = width / LANES * LANES, rest = width - whole;
  const int64_t groups = (k + DOTS - 1) / DOTS;
  at::parallel_for(0, groups, 1, [&](int64_t from, int64_t to) {
    const int64_t start = k * from / groups, end = k * to / groups;
    in_tiles<DOTS>(end - start, [&](auto dots, int64_t offset) {
      constexpr int J = decltype(dots)::value;
      const T* row[J];
      for (int j = 0; j < J; ++j) row[j] = rows + index[start + offset + j] * width;
      in_tiles<DOTS>(count, [&](auto size, int64_t first) {
        constexpr int R = decltype(size)::value;
        const T* top = grad + first * width;
        Vector<T> sum[R][J] = {};
        for (int64_t column = 0; column < whole; column += LANES) {
          Vector<T> other[J];
          for (int j = 0; j < J; ++j) other[j] = load(row[j] + column);
          for (int r = 0; r < R; ++r) {
            const Vector<T> value = load(top + r * width + column);
            for (int j = 0; j < J; ++j) sum[r][j] += value * other[j];
          }
        }
        if (rest) {
          Vector<T> other[J];
          for (int j = 0; j < J; ++j) other[j] = load_some(row[j] + whole, rest);
          for (int r = 0; r < R; ++r) {
            const Vector<T> value = load_some(top + r * width + whole, rest);
            for (int j = 0; j < J; ++j) sum[r][j] += value * other[j];
          }
        }
        for (int r = 0; r < R; ++r)
          for (int j = 0; j < J; ++j) {
            const int64_t place = start + offset + j;
            const T value = total<T>(reinterpret_cast<const T*>(&sum[r][j]));
            result[(first + r) * pairs + index[place]] = scale ? scale[place] * value : value;
          }
      });
    });
  });
}

// result [n, m]: rows of the index are Σ_r kept[j, r] · grad[r, :], all others zero. The index is unique, ascending.
template <typename T>
void grad_rows(const T* kept, const T* grad, const int64_t* index, int64_t k, int64_t count, int64_t width,
               int64_t pairs, T* result) {
  constexpr int64_t LANES = Vectors<T>::LANES, WIDE = 2 * LANES;
  at::parallel_for(0, pairs, 16, [&](int64_t from, int64_t to) {
    const int64_t start = std::lower_bound(index, index + k, from) - index;
    const int64_t end = std::lower_bound(index + start, index + k, to) - index;
    int64_t next = from;
    for (int64_t j = start; j <= end; ++j) {  // what lies between them
      const int64_t place = j < end ? index[j] : to;
      std::memset(result + next * width, 0, (place - next) * width * sizeof(T));
      next = place + 1;
    }
    in_tiles<TILE>(end - start, [&](auto size, int64_t offset) {
      constexpr int R = decltype(size)::value;
      const T* factor = kept + (start + offset) * count;
      T* out[R];
      for (int j = 0; j < R; ++j) out[j] = result + index[start + offset + j] * width;
      for (int64_t own = 0; own < width; own += WIDE) {
        const int64_t column = std::min(own, width - WIDE);
        Vector<T> sum[R][2] = {};
        for (int64_t r = 0; r < count; ++r) {
          const Vector<T> a = load(grad + r * width + column), b = load(grad + r * width + column + LANES);
          for (int j = 0; j < R; ++j) {
            sum[j][0] += factor[j * count + r] * a;
            sum[j][1] += factor[j * count + r] * b;
          }
        }
        for (int j = 0; j < R; ++j) {
          store(out[j] + column, sum[j][0]);
          store(out[j] + column + LANES, sum[j][1]);
        }
      }
    });
  });
}

}  // namespace fxapprox
