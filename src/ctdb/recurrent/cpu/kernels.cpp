// Recurrent loops on a CPU: forward and hand-written backward of whole scans, in single or double precision.
//
// The definitions are in ctdb/recurrent/eager.py; this file computes the same. What makes it fast:
// - Trials are cut into blocks and time runs inside a block, so that weights and state stay in the cache, and blocks are
//   independent tasks for threads. The cut depends on the number of trials alone, and sums over blocks are taken in
//   their order: the number of threads changes no byte.
// - Products run on register tiles of MR rows by NV vectors, over weights that are packed once per call.
// - Every gate is padded to whole vectors; the padding holds zeros and stays zero, so no loop has a remainder.
// - Weight gradients are deferred over a few steps, to one product over about 256 rows.
//
// Nothing here relies on -ffast-math: NaN and infinity propagate.
//
// Gates lie in the order of the cell's own weights: clipped GRU z, r, n; GRU r, z, n, and the recurrent part of n.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
constexpr int VB = 64, MR = 8;
#include <immintrin.h>
#elif defined(__AVX2__)
constexpr int VB = 32, MR = 4;
#include <immintrin.h>
#elif defined(__aarch64__)
constexpr int VB = 16, MR = 8;
#else
constexpr int VB = 16, MR = 4;
#endif
constexpr int NV = 3;         // vectors in a register tile
constexpr int ROW_PAD = 8;    // rows of a block are padded to a multiple of this
constexpr int DEFER = 256;    // rows over which weight gradients are deferred

template <class S> struct Vector;
template <> struct Vector<float> {
    typedef float type __attribute__((vector_size(VB), aligned(4), may_alias));
    typedef int32_t whole __attribute__((vector_size(VB), aligned(4), may_alias));
};
template <> struct Vector<double> {
    typedef double type __attribute__((vector_size(VB), aligned(8), may_alias));
    typedef int64_t whole __attribute__((vector_size(VB), aligned(8), may_alias));
};
template <class S> using Vec = typename Vector<S>::type;
template <class S> constexpr int VL = VB / sizeof(S);
template <class S> constexpr int PAD = VL<S> < 8 ? 8 : VL<S>;

static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
template <class S> static inline int64_t padded(int64_t n) { return up(n, PAD<S>); }
template <class S> static inline Vec<S> load(const S* p) { return *reinterpret_cast<const Vec<S>*>(p); }
template <class S> static inline void store(S* p, Vec<S> v) { *reinterpret_cast<Vec<S>*>(p) = v; }
template <class S> static inline Vec<S> all(S x) { return x - Vec<S>{}; }
// One number from memory in all lanes: a plain load on x86, where a shuffle would take the place of a multiplication.
static inline Vec<float> spread(const float* p) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_set1_ps(*p);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_broadcast_ss(p);
#else
    return all(*p);
#endif
}
static inline Vec<double> spread(const double* p) {
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_set1_pd(*p);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_broadcast_sd(p);
#else
    return all(*p);
#endif
}

// ---------------------------------------------------------------------------------------------- functions of vectors

typedef Vec<float> F;
typedef Vector<float>::whole I32;

// e^x for |x| <= 87, by 2^n e^r with |r| <= ln(2) / 2.
static inline F reduced_exp(F x, F& n) {
    const F magic = all(12582912.f);
    n = x * 1.44269504088896341f + magic;
    n = n - magic;
    F r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    F p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.f;
}
static inline F power_of_two(I32 n) {
    I32 bits = (n + 127) << 23;
    return reinterpret_cast<F&>(bits);
}
static inline I32 to_whole(F x) { return __builtin_convertvector(x, I32); }

static inline F small_exp(F x) {  // |x| <= 87
    F n, p = reduced_exp(x, n);
    return p * power_of_two(to_whole(n));
}
static inline F v_exp(F x) {  // any x: overflows to infinity, underflows to 0
    F y = x > all(89.f) ? all(89.f) : x;
    y = y < all(-104.f) ? all(-104.f) : y;
    F n, p = reduced_exp(y, n);
    I32 whole = to_whole(n), half = whole >> 1;
    F result = p * power_of_two(half) * power_of_two(whole - half);
    return x != x ? x : result;
}
static inline F inverse(F x) {  // 1 / x for 1 <= x < 2^126; a division takes as long as all the rest
#if defined(__AVX512F__)
    const F guess = (F)_mm512_rcp14_ps((__m512)x);
    return guess * (2.f - x * guess);
#else
    return 1.f / x;
#endif
}
static inline F v_sigmoid(F x) {
    F y = x < all(-80.f) ? all(-80.f) : x;
    y = y > all(80.f) ? all(80.f) : y;
    F result = inverse(1.f + small_exp(-y));
    return x != x ? x : result;
}
static inline F v_tanh(F x) {
    I32 bits = reinterpret_cast<I32&>(x);
    I32 sign = bits & (int32_t)0x80000000;
    I32 rest = bits & 0x7fffffff;
    F size = reinterpret_cast<F&>(rest);
    F capped = size > all(10.f) ? all(10.f) : size;
    F small = small_exp(capped * -2.f);
    F far = (1.f - small) * inverse(1.f + small);
    I32 far_bits = reinterpret_cast<I32&>(far) | sign;
    far = reinterpret_cast<F&>(far_bits);
    F z = x * x;
    F near = all(-5.70498872745e-3f);
    near = near * z + 2.06390887954e-2f;
    near = near * z - 5.37397155531e-2f;
    near = near * z + 1.33314422036e-1f;
    near = near * z - 3.33332819422e-1f;
    near = near * z * x + x;
    F result = size < all(0.625f) ? near : far;
    return x != x ? x : result;
}
static inline F v_log(F x) {  // 0 < x < infinity, normal
    I32 bits = reinterpret_cast<I32&>(x);
    I32 exponent = (bits >> 23) - 126;
    I32 mantissa = (bits & 0x007fffff) | 0x3f000000;
    F m = reinterpret_cast<F&>(mantissa), e = __builtin_convertvector(exponent, F);
    auto low = m < all(0.707106781186547524f);
    e = low ? e - 1.f : e;
    m = (low ? m + m : m) - 1.f;
    F z = m * m;
    F p = all(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    F y = p * m * z + e * -2.12194440e-4f - z * 0.5f;
    return m + y + e * 0.693359375f;
}
static inline void v_turn(F u, F& cosine, F& sine) {  // cos and sin of 2 pi u, 0 <= u <= 1
    const F magic = all(12582912.f);
    F v = u * 4.f, q = v + magic;
    q = q - magic;
    F f = (v - q) * 1.57079632679489662f, z = f * f;
    F s = all(-1.9515295891e-4f);
    s = s * z + 8.3321608736e-3f;
    s = s * z - 1.6666654611e-1f;
    s = s * z * f + f;
    F c = all(2.443315711809948e-5f);
    c = c * z - 1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = c * z * z - z * 0.5f + 1.f;
    I32 quarter = to_whole(q) & 3;
    auto odd = (quarter & 1) == 1;
    F a = odd ? s : c, b = odd ? c : s;
    cosine = (quarter == 1 || quarter == 2) ? -a : a;
    sine = quarter >= 2 ? -b : b;
}

static inline F v_sqrt(F x) {
#if defined(__AVX512F__)
    return (F)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (F)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < VL<float>; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
}

typedef Vec<double> D;
#define LANEWISE(name, expression)                    \
    static inline D name(D x) {                       \
        D y;                                          \
        for (int i = 0; i < VL<double>; ++i) {        \
            double v = x[i];                          \
            y[i] = expression;                        \
        }                                             \
        return y;                                     \
    }
LANEWISE(v_exp, std::exp(v))
LANEWISE(v_sigmoid, v < -700 ? std::exp(v) : 1 / (1 + std::exp(-v)))
LANEWISE(v_tanh, std::tanh(v))
LANEWISE(v_log, std::log(v))

// -------------------------------------------------------------------------------------------------------------- memory

// Scratch memory in chunks on huge pages, which go back to a common store and are used again: fresh memory costs more
// than the arithmetic on it, and small pages more than that.
class Store {
   public:
    static constexpr size_t PAGE = 2 << 20, MOST = 64;
    static Store& common() {
        static Store* store = new Store;  // never destroyed: threads may outlive static objects
        return *store;
    }
    void* get(size_t bytes) {
        {
            std::lock_guard<std::mutex> hold(mutex);
            auto found = free.lower_bound(bytes);
            if (found != free.end() && found->first <= 2 * bytes) {
                void* chunk = found->second;
                sizes[chunk] = found->first;
                free.erase(found);
                return chunk;
            }
        }
        void* chunk = std::aligned_alloc(PAGE, bytes);
        if (!chunk) std::abort();
#if defined(__linux__)
        madvise(chunk, bytes, MADV_HUGEPAGE);
#endif
        std::lock_guard<std::mutex> hold(mutex);
        sizes[chunk] = bytes;
        return chunk;
    }
    void put(void* chunk) {
        std::lock_guard<std::mutex> hold(mutex);
        free.emplace(sizes[chunk], chunk);
        sizes.erase(chunk);
        if (free.size() > MOST) {  // sizes that have gone out of use
            std::free(free.begin()->second);
            free.erase(free.begin());
        }
    }

   private:
    std::mutex mutex;
    std::multimap<size_t, void*> free;
    std::map<void*, size_t> sizes;
};

// Gives pieces of chunks, and all of them back when it goes.
class Arena {
   public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() {
        for (void* chunk : chunks) Store::common().put(chunk);
    }
    template <class S> S* take(int64_t n, bool zero = true) {
        const size_t bytes = (size_t)up(n * (int64_t)sizeof(S) + 64, 64);
        if (bytes > left) {
            const size_t whole = (size_t)up((int64_t)std::max(bytes, 2 * Store::PAGE), (int64_t)Store::PAGE);
            next = static_cast<char*>(Store::common().get(whole));
            chunks.push_back(next);
            left = whole;
        }
        S* mine = reinterpret_cast<S*>(next);
        next += bytes, left -= bytes;
        if (zero) std::memset(mine, 0, n * sizeof(S));
        return mine;
    }

   private:
    std::vector<void*> chunks;
    char* next = nullptr;
    size_t left = 0;
};

// ------------------------------------------------------------------------------------------------------------ products

// A dense (k, n) matrix in panels of at most NV vectors, each panel row after row. n is a multiple of the vector length.
template <class S> struct Packed {
    int64_t k = 0, n = 0;
    S* values = nullptr;
    // `get(row, unit, gate)`: column `gate * period + unit`, where the period is a multiple of the vector length.
    template <class Get> void pack(Arena& arena, int64_t k_, int64_t n_, int64_t period, Get get) {
        k = k_, n = n_;
        values = arena.take<S>(k * n, false);
        for (int64_t column = 0; column < n; column += VL<S>) {
            const int64_t panel = column / (NV * VL<S>) * (NV * VL<S>), width = std::min<int64_t>(NV * VL<S>, n - panel);
            const int64_t gate = column / period, unit = column % period;
            S* to = values + panel * k + column - panel;
            for (int64_t i = 0; i < k; ++i)
                for (int64_t j = 0; j < VL<S>; ++j) to[i * width + j] = get(i, unit + j, gate);
        }
    }
};

template <class S> struct Source {
    const S* rows;
    int64_t stride;
    const Packed<S>* weight;
};

enum Start { ZERO, BIAS, ADD };

template <class S, int V, int M>
static inline void tile(const Source<S>* sources, int n_sources, int64_t row, int64_t column, Start start,
                        const S* bias, S* out, int64_t stride) {
    Vec<S> sum[M][V];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j)
            sum[i][j] = start == ZERO ? Vec<S>{} : load(start == BIAS ? bias + column + j * VL<S>
                                                                       : out + i * stride + j * VL<S>);
    for (int s = 0; s < n_sources; ++s) {
        const Packed<S>& weight = *sources[s].weight;
        const S* b = weight.values + column * weight.k;
        const int64_t lda = sources[s].stride;
        const S* a = sources[s].rows + row * lda;
        for (int64_t k = 0; k < weight.k; ++k) {
            Vec<S> bv[V];
#pragma GCC unroll 3
            for (int j = 0; j < V; ++j) bv[j] = load(b + j * VL<S>);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) {
                const Vec<S> av = spread(a + i * lda + k);
#pragma GCC unroll 3
                for (int j = 0; j < V; ++j) sum[i][j] += av * bv[j];
            }
            b += V * VL<S>;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) store(out + i * stride + j * VL<S>, sum[i][j]);
}

// out (rows, n) = [bias | out | 0] + sum of sources times their weights; rows is a multiple of ROW_PAD.
template <class S>
static void product(int64_t rows, const Source<S>* sources, int n_sources, Start start, const S* bias, S* out,
                    int64_t stride) {
    const int64_t n = sources[0].weight->n;
    for (int64_t column = 0; column < n; column += NV * VL<S>) {
        const int64_t width = std::min<int64_t>(NV, (n - column) / VL<S>);
        for (int64_t row = 0; row < rows; row += MR) {
            S* to = out + row * stride + column;
            if (width == 3) tile<S, 3, MR>(sources, n_sources, row, column, start, bias, to, stride);
            else if (width == 2) tile<S, 2, MR>(sources, n_sources, row, column, start, bias, to, stride);
            else tile<S, 1, MR>(sources, n_sources, row, column, start, bias, to, stride);
        }
    }
}

template <class S, int V>
static inline void transposed_tile(int64_t rows, const S* x, int64_t ldx, const S* d, int64_t ldd, S* c, int64_t ldc) {
    Vec<S> sum[MR][V];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) sum[i][j] = Vec<S>{};
    for (int64_t r = 0; r < rows; ++r) {
        Vec<S> dv[V];
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) dv[j] = load(d + r * ldd + j * VL<S>);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            const Vec<S> xv = spread(x + r * ldx + i);
#pragma GCC unroll 3
            for (int j = 0; j < V; ++j) sum[i][j] += xv * dv[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < V; ++j) store(c + i * ldc + j * VL<S>, load(c + i * ldc + j * VL<S>) + sum[i][j]);
}

// c (k, n) += x^T d over rows, which are summed among themselves first: a long sum in one go would lose a digit.
// k is rounded up to MR, n a multiple of the vector length.
template <class S>
static void transposed_product(int64_t rows, int64_t k, int64_t n, const S* x, int64_t ldx, const S* d, int64_t ldd,
                               S* c, int64_t ldc) {
    constexpr int64_t ROWS = 96;  // so many rows of a panel of d, and of a tile of x, stay in the nearest cache
    for (int64_t column = 0; column < n; column += NV * VL<S>) {
        const int64_t width = std::min<int64_t>(NV, (n - column) / VL<S>);
        for (int64_t row = 0; row < rows; row += ROWS) {
            const int64_t own = std::min(ROWS, rows - row);
            const S* from = d + row * ldd + column;
            for (int64_t i = 0; i < k; i += MR) {
                S* to = c + i * ldc + column;
                const S* seen = x + row * ldx + i;
                if (width == 3) transposed_tile<S, 3>(own, seen, ldx, from, ldd, to, ldc);
                else if (width == 2) transposed_tile<S, 2>(own, seen, ldx, from, ldd, to, ldc);
                else transposed_tile<S, 1>(own, seen, ldx, from, ldd, to, ldc);
            }
        }
    }
}

template <class S> static void add_rows(int64_t rows, int64_t n, const S* d, int64_t ldd, S* sums) {
    for (int64_t j = 0; j < n; j += VL<S>) {
        Vec<S> sum = {};
        for (int64_t r = 0; r < rows; ++r) sum += load(d + r * ldd + j);
        store(sums + j, load(sums + j) + sum);
    }
}

// -------------------------------------------------------------------------------------------------------------- blocks

constexpr int64_t BLOCK = 32;  // trials in a block
static inline int64_t block_count(int64_t n_trials) { return (n_trials + BLOCK - 1) / BLOCK; }

// How torch's OpenMP runs a function on several threads, once it is known. Its threads wait busily for a while after each
// use: others beside them would have to share their processors.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
static Parallel openmp = nullptr;

template <class Task> static void run_tasks(int64_t n_tasks, int64_t n_threads, Task task) {
    n_threads = std::min(n_threads, n_tasks);
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t i; (i = next++) < n_tasks;) task(i);
    };
    if (n_threads > 1 && openmp) {
        openmp([](void* given) { (*static_cast<decltype(work)*>(given))(); }, &work, (unsigned)n_threads, 0);
        return;
    }
    std::vector<std::thread> others;
    for (int64_t i = 1; i < n_threads; ++i) others.emplace_back(work);
    work();
    for (auto& one : others) one.join();
}

// Rows of some trials at one bin: to and from arrays (trials, bins, width), whose rows lie far apart.
template <class S> static void gather(S* to, int64_t ld, const S* from, int64_t n, int64_t step, int64_t width) {
    for (int64_t i = 0; i < n && width; ++i) std::memcpy(to + i * ld, from + i * step, width * sizeof(S));
}
template <class S> static void scatter(S* to, int64_t step, const S* from, int64_t ld, int64_t n, int64_t width) {
    for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * step, from + i * ld, width * sizeof(S));
}
template <class S> static void add_gathered(S* to, int64_t ld, const S* from, int64_t n, int64_t step, int64_t width) {
    for (int64_t i = 0; i < n; ++i) {
        S* a = to + i * ld;
        const S* b = from + i * step;
        for (int64_t j = 0; j < width; ++j) a[j] += b[j];
    }
}

// --------------------------------------------------------------------------------------------------------------- cells

// Rows of an array (trials, bins, width), several bins at a time: of narrow rows, whole lines of the cache.
template <class S> struct Window {
    int64_t own, rows, ld, width, n_bins, chunk, first = -1;
    S* buffer;
    Window(Arena& arena, int64_t own_, int64_t rows_, int64_t ld_, int64_t width_, int64_t n_bins_)
        : own(own_), rows(rows_), ld(ld_), width(width_), n_bins(n_bins_) {
        chunk = std::max<int64_t>(1, std::min<int64_t>(n_bins, 32 / std::max<int64_t>(width, 1)));
        buffer = arena.take<S>(chunk * rows * ld);
    }
    S* slot(int64_t at) { return buffer + (at - first) * rows * ld; }
    // Rows of bin `at`, (rows, ld), 0 beyond the trials and their width; `from` is the block's first row.
    const S* read(const S* from, int64_t at) {
        if (at / chunk * chunk != first) {
            first = at / chunk * chunk;
            const int64_t bins = std::min(chunk, n_bins - first);
            for (int64_t i = 0; i < own && width; ++i)
                for (int64_t t = 0; t < bins; ++t)
                    std::memcpy(buffer + (t * rows + i) * ld, from + (i * n_bins + first + t) * width, width * sizeof(S));
        }
        return slot(at);
    }
    // Place for the rows of bin `at`; full windows go to `to`, and the last one by `flush`.
    S* write(S* to, int64_t at) {
        if (at / chunk * chunk != first) {
            flush(to);
            first = at / chunk * chunk;
        }
        return slot(at);
    }
    void flush(S* to) const {
        if (first < 0) return;
        const int64_t bins = std::min(chunk, n_bins - first);
        for (int64_t i = 0; i < own; ++i)
            for (int64_t t = 0; t < bins; ++t)
                std::memcpy(to + (i * n_bins + first + t) * width, buffer + (t * rows + i) * ld, width * sizeof(S));
    }
};

// Values of some rows that are not 0, in their order.
template <class S> struct Nonzero {
    int64_t* begin;
    int32_t* channel;
    S* value;
    static Nonzero make(Arena& arena, int64_t rows, int64_t width) {
        const int64_t most = rows * width + 16;  // whole vectors are stored
        return {arena.take<int64_t>(rows + 1), arena.take<int32_t>(most, false), arena.take<S>(most, false)};
    }
    // False where so many differ from 0 that a dense product is faster.
    // The rows of the next bin, `onward` from these, are asked for in time: they lie on other pages.
    bool collect(int64_t n, int64_t rows, const S* from, int64_t step, int64_t width, int64_t onward) {
        int64_t found = 0;
        const int64_t most = n * width / 6;
        for (int64_t i = 0; i < rows; ++i) {
            begin[i] = found;
            if (i >= n) continue;
            const S* row = from + i * step;
            for (int64_t line = 0; line < width + 16; line += 64 / sizeof(S)) __builtin_prefetch(row + onward + line);
            int64_t j = 0;
#if defined(__AVX512F__)
            if (sizeof(S) == 4)
                for (; j + 16 <= width; j += 16) {
                    const __m512 values = _mm512_loadu_ps((const float*)row + j);
                    const __mmask16 some = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_NEQ_UQ);
                    const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32((int)j), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
                    _mm512_storeu_ps((float*)value + found, _mm512_maskz_compress_ps(some, values));
                    _mm512_storeu_si512(channel + found, _mm512_maskz_compress_epi32(some, numbers));
                    found += __builtin_popcount(some);
                }
#endif
            for (; j < width; ++j)
                if (row[j] != S(0)) channel[found] = (int32_t)j, value[found++] = row[j];
            if (found > most) return false;
        }
        begin[rows] = found;
        return true;
    }
};

enum Kind { CLIPPED_GRU = 0, GRU = 1, RATE = 2 };
enum Activation { TANH = 0, RELU = 1, SOFTPLUS = 2 };

template <class S> struct Cell {
    int64_t kind, n_in, n, activation;
    S clip, leak;
    const S *w_in, *w_rec, *b_in, *b_rec;  // torch's layout: (gates * n, inputs); biases may be null
    int64_t np, gates, first, slots;       // padded states; gates; those in the first product; values kept per state
    Packed<S> in_first, rec_first, in_new, rec_new;     // forward: the sigmoid gates (or all), and the new state's
    Packed<S> rec_first_t, rec_new_t, in_t;             // backward
    std::vector<S> bias_all;                            // of all slots
    S* in_rows = nullptr;                               // input weights (n_in, gates * np), for inputs of mostly zeros

    void prepare(Arena& arena, bool backward, bool input_gradient, bool sparse = false) {
        np = padded<S>(n);
        gates = kind == RATE ? 1 : 3;
        slots = kind == CLIPPED_GRU ? 3 : kind == GRU ? 4 : 1;
        first = kind == RATE ? 1 : 2;
        auto at = [&](const S* w, int64_t width, int64_t gate, int64_t unit, int64_t k) {
            return unit < n ? w[(gate * n + unit) * width + k] : S(0);
        };
        auto bias = [&](const S* b, int64_t gate, int64_t unit) { return b && unit < n ? b[gate * n + unit] : S(0); };
        const int64_t wide = first * np;
        in_first.pack(arena, n_in, wide, np, [&](int64_t k, int64_t u, int64_t g) { return at(w_in, n_in, g, u, k); });
        rec_first.pack(arena, n, wide, np, [&](int64_t k, int64_t u, int64_t g) { return at(w_rec, n, g, u, k); });
        bias_all.resize(slots * np);
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t u = 0; u < np; ++u)
                bias_all[g * np + u] = bias(b_in, g, u) + (kind == GRU && g == 2 ? S(0) : bias(b_rec, g, u));
        if (gates == 3) {
            in_new.pack(arena, n_in, np, np, [&](int64_t k, int64_t u, int64_t) { return at(w_in, n_in, 2, u, k); });
            rec_new.pack(arena, n, np, np, [&](int64_t k, int64_t u, int64_t) { return at(w_rec, n, 2, u, k); });
        }
        if (kind == GRU)
            for (int64_t u = 0; u < np; ++u) bias_all[3 * np + u] = bias(b_rec, 2, u);
        if (sparse) {
            in_rows = arena.take<S>(n_in * gates * np);
            for (int64_t g = 0; g < gates; ++g)
                for (int64_t u = 0; u < n; ++u)
                    for (int64_t k = 0; k < n_in; ++k) in_rows[k * gates * np + g * np + u] = at(w_in, n_in, g, u, k);
        }
        if (!backward) return;
        auto back = [&](int64_t row, int64_t unit, int64_t gate) {
            return row < n && unit < n ? w_rec[(gate * n + row) * n + unit] : S(0);
        };
        rec_first_t.pack(arena, wide, np, np, [&](int64_t k, int64_t u, int64_t) { return back(k % np, u, k / np); });
        if (gates == 3) rec_new_t.pack(arena, np, np, np, [&](int64_t k, int64_t u, int64_t) { return back(k, u, 2); });
        if (input_gradient)
            in_t.pack(arena, gates * np, padded<S>(n_in), padded<S>(n_in), [&](int64_t k, int64_t j, int64_t) {
                return j < n_in && k % np < n ? w_in[(k / np * n + k % np) * n_in + j] : S(0);
            });
    }

    Vec<S> act(Vec<S> x) const {
        if (activation == TANH) return v_tanh(x);
        if (activation == RELU) return x < Vec<S>{} ? Vec<S>{} : x;
        const Vec<S> size = x < Vec<S>{} ? -x : x, tail = v_exp(-size);
        Vec<S> log1p;
        for (int i = 0; i < VL<S>; ++i) log1p[i] = std::log1p(tail[i]);
        return (x < Vec<S>{} ? Vec<S>{} : x) + log1p;
    }
    // Derivative of the activation where its value is y.
    Vec<S> slope(Vec<S> y) const {
        if (activation == TANH) return S(1) - y * y;
        if (activation == RELU) return y > Vec<S>{} ? all(S(1)) : Vec<S>{};
        return S(1) - v_exp(-y);
    }

    // An infinite input times the zeros of padded weights is NaN, which must not come back from the padding.
    void clear_padding(int64_t rows, S* sums, int64_t n_gates) const {
        if (n == np) return;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t g = 0; g < n_gates; ++g) {
                S* row = sums + i * slots * np + g * np;
                std::fill(row + n, row + np, S(0));
            }
    }

    // next (rows, np) from x (rows, ldx) and h (rows, np); gates (rows, slots * np) are kept for the way back. Where the
    // part of the inputs is in `kept` already, x is null.
    void forward(int64_t rows, const S* x, int64_t ldx, const S* h, S* kept, S* next, S* scratch) const {
        const int64_t ld = slots * np;
        const Start start = x ? BIAS : ADD;
        const Source<S> sources[2] = {{h, np, &rec_first}, {x, ldx, &in_first}};
        product<S>(rows, sources, x ? 2 : 1, start, bias_all.data(), kept, ld);
        clear_padding(rows, kept, first);
        if (kind == RATE) {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    const Vec<S> a = act(load(kept + i * ld + j)), before = load(h + i * np + j);
                    store(kept + i * ld + j, a);
                    store(next + i * np + j, leak == S(1) ? a : before + leak * (a - before));
                }
            return;
        }
        const Source<S> in[1] = {{x, ldx, &in_new}};
        if (kind == CLIPPED_GRU) {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    S* g = kept + i * ld + j;
                    const Vec<S> r = v_sigmoid(load(g + np));
                    store(g, v_sigmoid(load(g)));
                    store(g + np, r);
                    store(scratch + i * np + j, r * load(h + i * np + j));
                }
            const Source<S> both[2] = {{scratch, np, &rec_new}, in[0]};
            product<S>(rows, both, x ? 2 : 1, start, bias_all.data() + 2 * np, kept + 2 * np, ld);
            clear_padding(rows, kept + 2 * np, 1);
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    S* g = kept + i * ld + j;
                    const Vec<S> z = load(g), fresh = v_tanh(load(g + 2 * np));
                    store(g + 2 * np, fresh);
                    Vec<S> following = fresh + z * (load(h + i * np + j) - fresh);
                    following = following > all(clip) ? all(clip) : following;
                    following = following < all(-clip) ? all(-clip) : following;
                    store(next + i * np + j, following);
                }
            return;
        }
        const Source<S> rec[1] = {{h, np, &rec_new}};
        if (x) product<S>(rows, in, 1, BIAS, bias_all.data() + 2 * np, kept + 2 * np, ld);
        product<S>(rows, rec, 1, BIAS, bias_all.data() + 3 * np, kept + 3 * np, ld);
        clear_padding(rows, kept + 2 * np, 2);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < np; j += VL<S>) {
                S* g = kept + i * ld + j;
                const Vec<S> r = v_sigmoid(load(g)), z = v_sigmoid(load(g + np));
                const Vec<S> fresh = v_tanh(load(g + 2 * np) + r * load(g + 3 * np));
                store(g, r);
                store(g + np, z);
                store(g + 2 * np, fresh);
                store(next + i * np + j, fresh + z * (load(h + i * np + j) - fresh));
            }
    }

    // From the gradient of the next state: those of the gates' sums (rows, slots * np), of the state before, and, of the
    // clipped GRU, the reset state (rows, np) that its recurrent product saw. `clean` is for the state before noise.
    void backward(int64_t rows, const S* h, const S* kept, const S* d_next, S* d_sums, S* d_h, S* reset, S* scratch,
                  S* clean = nullptr) const {
        const int64_t ld = slots * np;
        if (kind == RATE) {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    const Vec<S> d = load(d_next + i * np + j);
                    const Vec<S> a = load(kept + i * ld + j);
                    if (clean) {
                        const Vec<S> before = load(h + i * np + j);
                        store(clean + i * np + j, leak == S(1) ? a : before + leak * (a - before));
                    }
                    store(d_sums + i * ld + j, leak * d * slope(a));
                    store(d_h + i * np + j, (S(1) - leak) * d);
                }
            const Source<S> back[1] = {{d_sums, ld, &rec_first_t}};
            product<S>(rows, back, 1, ADD, nullptr, d_h, np);
            return;
        }
        if (kind == CLIPPED_GRU) {
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    const S* g = kept + i * ld + j;
                    S* d = d_sums + i * ld + j;
                    const Vec<S> before = load(h + i * np + j), z = load(g), fresh = load(g + 2 * np);
                    Vec<S> dn = load(d_next + i * np + j);
                    const Vec<S> following = fresh + z * (before - fresh);
                    dn = following > all(clip) ? Vec<S>{} : dn;
                    dn = following < all(-clip) ? Vec<S>{} : dn;
                    if (clean) {
                        const Vec<S> low = following > all(clip) ? all(clip) : following;
                        store(clean + i * np + j, low < all(-clip) ? all(-clip) : low);
                    }
                    store(d, dn * (before - fresh) * z * (S(1) - z));
                    store(d + 2 * np, dn * (S(1) - z) * (S(1) - fresh * fresh));
                    store(d_h + i * np + j, dn * z);
                }
            const Source<S> new_back[1] = {{d_sums + 2 * np, ld, &rec_new_t}};
            product<S>(rows, new_back, 1, ZERO, nullptr, scratch, np);
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < np; j += VL<S>) {
                    const Vec<S> before = load(h + i * np + j), r = load(kept + i * ld + np + j);
                    const Vec<S> d = load(scratch + i * np + j);
                    store(d_sums + i * ld + np + j, d * before * r * (S(1) - r));
                    store(d_h + i * np + j, load(d_h + i * np + j) + d * r);
                    store(reset + i * np + j, r * before);
                }
            const Source<S> back[1] = {{d_sums, ld, &rec_first_t}};
            product<S>(rows, back, 1, ADD, nullptr, d_h, np);
            return;
        }
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < np; j += VL<S>) {
                const S* g = kept + i * ld + j;
                S* d = d_sums + i * ld + j;
                const Vec<S> before = load(h + i * np + j), dn = load(d_next + i * np + j);
                const Vec<S> r = load(g), z = load(g + np), fresh = load(g + 2 * np), inner = load(g + 3 * np);
                const Vec<S> da = dn * (S(1) - z) * (S(1) - fresh * fresh);
                if (clean) store(clean + i * np + j, fresh + z * (before - fresh));
                store(d, da * inner * r * (S(1) - r));
                store(d + np, dn * (before - fresh) * z * (S(1) - z));
                store(d + 2 * np, da);
                store(d + 3 * np, da * r);
                store(d_h + i * np + j, dn * z);
            }
        const Source<S> back[2] = {{d_sums, ld, &rec_first_t}, {d_sums + 3 * np, ld, &rec_new_t}};
        product<S>(rows, back, 2, ADD, nullptr, d_h, np);
    }

    // Inputs of mostly zeros, such as spike counts, need only the weights of those that are not.
    void sparse_inputs(int64_t rows, const Nonzero<S>& x, S* kept) const {
        const int64_t ld = slots * np, wide = gates * np;
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t start = 0; start < wide; start += 4 * VL<S>) {
                if (wide - start >= 4 * VL<S>) sparse_row<4>(x, i, start, kept + i * ld);
                else
                    for (int64_t j = start; j < wide; j += VL<S>) sparse_row<1>(x, i, j, kept + i * ld);
            }
        }
    }
    template <int V> void sparse_row(const Nonzero<S>& x, int64_t row, int64_t start, S* out) const {
        Vec<S> sum[V];
        for (int j = 0; j < V; ++j) sum[j] = load(bias_all.data() + start + j * VL<S>);
        for (int64_t e = x.begin[row]; e < x.begin[row + 1]; ++e) {
            const Vec<S> value = spread(x.value + e);
            const S* w = in_rows + x.channel[e] * gates * np + start;
            for (int j = 0; j < V; ++j) sum[j] += value * load(w + j * VL<S>);
        }
        for (int j = 0; j < V; ++j) store(out + start + j * VL<S>, sum[j]);
    }
    void add_sparse_gradients(int64_t rows, const Nonzero<S>& x, const S* d_sums, S* sums) const {
        const int64_t ld = slots * np, wide = gates * np;
        for (int64_t i = 0; i < rows; ++i) {
            const S* d = d_sums + i * ld;
            for (int64_t e = x.begin[i]; e < x.begin[i + 1]; ++e) {
                const Vec<S> value = spread(x.value + e);
                S* to = sums + x.channel[e] * wide;
                for (int64_t j = 0; j < wide; j += VL<S>) store(to + j, load(to + j) + value * load(d + j));
            }
        }
    }

    void input_gradient(int64_t rows, const S* d_sums, S* dx, int64_t ldx) const {
        const Source<S> back[1] = {{d_sums, slots * np, &in_t}};
        product<S>(rows, back, 1, ZERO, nullptr, dx, ldx);
    }

    // Sums of weight gradients of one block: inputs (n_in padded, gates * np), states (np, gates * np), slots * np sums.
    int64_t gradient_size() const { return (padded<S>(n_in) + np) * gates * np + slots * np; }
    void add_gradients(int64_t rows, const S* x, int64_t ldx, const S* h, const S* reset, const S* d_sums, S* sums) const {
        const int64_t ld = slots * np, wide = gates * np;
        S *d_in = sums, *d_rec = sums + padded<S>(n_in) * wide, *d_bias = d_rec + np * wide;
        if (x) transposed_product<S>(rows, n_in, wide, x, ldx, d_sums, ld, d_in, wide);
        if (kind == RATE) transposed_product<S>(rows, n, np, h, np, d_sums, ld, d_rec, wide);
        else {
            transposed_product<S>(rows, n, 2 * np, h, np, d_sums, ld, d_rec, wide);
            if (kind == CLIPPED_GRU)
                transposed_product<S>(rows, n, np, reset, np, d_sums + 2 * np, ld, d_rec + 2 * np, wide);
            else transposed_product<S>(rows, n, np, h, np, d_sums + 3 * np, ld, d_rec + 2 * np, wide);
        }
        add_rows<S>(rows, ld, d_sums, ld, d_bias);
    }
    // Gradients in torch's layout from the blocks' sums, added in the blocks' order.
    void reduce(int64_t n_blocks, const S* sums, S* d_w_in, S* d_w_rec, S* d_b_in, S* d_b_rec) const {
        const int64_t wide = gates * np, size = gradient_size();
        const int64_t rec = padded<S>(n_in) * wide, bias = rec + np * wide;
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t u = 0; u < n; ++u) {
                const int64_t column = g * np + u;
                for (int64_t k = 0; k < n_in; ++k) d_w_in[(g * n + u) * n_in + k] = 0;
                for (int64_t k = 0; k < n; ++k) d_w_rec[(g * n + u) * n + k] = 0;
                S b_in_sum = 0, b_rec_sum = 0;
                const int64_t rec_column = kind == GRU && g == 2 ? 3 * np + u : column;
                for (int64_t b = 0; b < n_blocks; ++b) {
                    const S* s = sums + b * size;
                    for (int64_t k = 0; k < n_in; ++k) d_w_in[(g * n + u) * n_in + k] += s[k * wide + column];
                    for (int64_t k = 0; k < n; ++k) d_w_rec[(g * n + u) * n + k] += s[rec + k * wide + column];
                    b_in_sum += s[bias + column];
                    b_rec_sum += s[bias + rec_column];
                }
                if (d_b_in) d_b_in[g * n + u] = b_in_sum;
                if (d_b_rec) d_b_rec[g * n + u] = b_rec_sum;
            }
    }
};

// Arguments come as arrays: pointers, whole numbers and real numbers, in the order in which they are read.
struct Arguments {
    void* const* pointers;
    const int64_t* wholes;
    const double* reals;
    template <class T> T* pointer() { return static_cast<T*>(*pointers++); }
    int64_t whole() { return *wholes++; }
    double real() { return *reals++; }
};

template <class S> static Cell<S> read_cell(Arguments& a) {
    Cell<S> cell;
    cell.kind = a.whole(), cell.n_in = a.whole(), cell.n = a.whole(), cell.activation = a.whole();
    cell.clip = S(a.real()), cell.leak = S(a.real());
    cell.w_in = a.pointer<S>(), cell.w_rec = a.pointer<S>(), cell.b_in = a.pointer<S>(), cell.b_rec = a.pointer<S>();
    return cell;
}

// ------------------------------------------------------------------------------------------------ counter-based numbers

// Philox 4x32-10 (Salmon et al. 2011), one counter per lane of 64 bits.
typedef uint64_t Lanes __attribute__((vector_size(VB), aligned(8), may_alias));
typedef uint32_t HalfLanes __attribute__((vector_size(VB / 2), aligned(4), may_alias));
constexpr int N_LANES = VB / 8;
constexpr uint64_t LOW = 0xffffffffu;

static inline Lanes wide_product(Lanes a, uint64_t b) {  // low halves
#if defined(__AVX512F__)
    return (Lanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)b));
#elif defined(__AVX2__)
    return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
#else
    return (a & LOW) * b;
#endif
}
static inline void philox(Lanes c[4], uint32_t key_low, uint32_t key_high) {
    for (int round = 0; round < 10; ++round) {
        const Lanes p = wide_product(c[0], 0xD2511F53u), q = wide_product(c[2], 0xCD9E8D57u);
        const Lanes first = (q >> 32) ^ c[1] ^ (uint64_t)key_low, third = (p >> 32) ^ c[3] ^ (uint64_t)key_high;
        c[1] = q & LOW, c[3] = p & LOW;
        c[0] = first & LOW, c[2] = third & LOW;
        key_low += 0x9E3779B9u, key_high += 0xBB67AE85u;
    }
}
static inline void counters(Lanes c[4], int64_t block, int64_t bin, int64_t trial, uint32_t stream) {
    Lanes numbers;
    for (int i = 0; i < N_LANES; ++i) numbers[i] = i;  // a constant
    c[0] = numbers + (uint64_t)(uint32_t)block;
    c[1] = Lanes{} + (uint64_t)(uint32_t)bin, c[2] = Lanes{} + (uint64_t)(uint32_t)trial, c[3] = Lanes{} + (uint64_t)stream;
}

// 1 with probability 1 - threshold / 2^16: eight per counter, from its 16-bit halves.
static void draw_keep(uint8_t* to, int64_t width, int64_t bin, int64_t trial, uint64_t key, uint32_t stream, int64_t threshold) {
    for (int64_t start = 0; start < width; start += 8 * N_LANES) {
        Lanes c[4], bytes = {};
        counters(c, start / 8, bin, trial, stream);
        philox(c, (uint32_t)key, (uint32_t)(key >> 32));
        for (int w = 0; w < 4; ++w) {
            bytes |= (Lanes)((c[w] & 0xffffu) >= Lanes{} + (uint64_t)threshold) & ((uint64_t)1 << (16 * w));
            bytes |= (Lanes)((c[w] >> 16) >= Lanes{} + (uint64_t)threshold) & ((uint64_t)1 << (16 * w + 8));
        }
        std::memcpy(to + start, &bytes, std::min<int64_t>(8 * N_LANES, width - start));
    }
}

// Standard normal numbers: channel j * n + i (n blocks of four) is number j of counter i, by Box and Muller's transform.
struct NormalScratch {
    std::vector<uint32_t> words[4];
    std::vector<float> drawn;
};
static const float* draw_normal(NormalScratch& s, int64_t width, int64_t bin, int64_t trial, uint64_t key, uint32_t stream) {
    const int64_t n = (width + 3) / 4, room = up(n, 16);
    if ((int64_t)s.drawn.size() < 4 * n + 16) {
        for (auto& one : s.words) one.assign(room, 0);
        s.drawn.assign(4 * n + 16, 0.f);
    }
    for (int64_t start = 0; start < n; start += N_LANES) {
        Lanes c[4];
        counters(c, start, bin, trial, stream);
        philox(c, (uint32_t)key, (uint32_t)(key >> 32));
        for (int w = 0; w < 4; ++w) {
            const HalfLanes low = __builtin_convertvector(c[w], HalfLanes);
            std::memcpy(&s.words[w][start], &low, sizeof low);
        }
    }
    for (int pair = 0; pair < 2; ++pair)
        for (int64_t i = 0; i < n; i += VL<float>) {
            I32 a, b;
            std::memcpy(&a, &s.words[2 * pair][i], sizeof a);
            std::memcpy(&b, &s.words[2 * pair + 1][i], sizeof b);
            const F u = (__builtin_convertvector((a >> 8) & 0xffffff, F) + 0.5f) * 5.9604644775390625e-8f;
            const F v = __builtin_convertvector((b >> 8) & 0xffffff, F) * 5.9604644775390625e-8f;
            F radius = v_sqrt(v_log(u) * -2.f), cosine, sine;
            v_turn(v, cosine, sine);
            cosine *= radius, sine *= radius;
            const int64_t keep = std::min<int64_t>(VL<float>, n - i) * sizeof(float);
            std::memcpy(&s.drawn[(2 * pair) * n + i], &cosine, keep);
            std::memcpy(&s.drawn[(2 * pair + 1) * n + i], &sine, keep);
        }
    return s.drawn.data();
}

static void keep_masks(Arguments a) {
    uint8_t* out = a.pointer<uint8_t>();
    const int64_t* trials = a.pointer<int64_t>();
    const int64_t n_trials = a.whole(), n_bins = a.whole(), width = a.whole(), threads = a.whole();
    const uint64_t key = a.whole();
    const uint32_t stream = a.whole();
    const int64_t threshold = a.whole();
    run_tasks(n_trials, n_trials * n_bins * width < (1 << 17) ? 1 : threads, [&](int64_t i) {
        for (int64_t t = 0; t < n_bins; ++t)
            draw_keep(out + (i * n_bins + t) * width, width, t, trials[i], key, stream, threshold);
    });
}

template <class S> static void normals(Arguments a) {
    S* out = a.pointer<S>();
    const int64_t* trials = a.pointer<int64_t>();
    const int64_t n_trials = a.whole(), n_bins = a.whole(), width = a.whole(), threads = a.whole();
    const uint64_t key = a.whole();
    const uint32_t stream = a.whole();
    run_tasks(n_trials, n_trials * n_bins * width < (1 << 15) ? 1 : threads, [&](int64_t i) {
        NormalScratch scratch;
        for (int64_t t = 0; t < n_bins; ++t) {
            const float* drawn = draw_normal(scratch, width, t, trials[i], key, stream);
            for (int64_t j = 0; j < width; ++j) out[(i * n_bins + t) * width + j] = drawn[j];
        }
    });
}

template <class S> static void masked(Arguments a) {
    S* out = a.pointer<S>();
    const void* data = a.pointer<void>();
    const uint8_t *first = a.pointer<uint8_t>(), *second = a.pointer<uint8_t>();
    const S* factor = a.pointer<S>();
    const int64_t n_trials = a.whole(), n_bins = a.whole(), width = a.whole(), threads = a.whole(), bytes = a.whole();
    run_tasks(n_trials, n_trials * n_bins * width < (1 << 17) ? 1 : threads, [&](int64_t i) {
        for (int64_t t = 0; t < n_bins; ++t) {
            const int64_t from = (i * n_bins + t) * width;
            S* to = out + from;
            const S by = factor[t];
            if (bytes) {
                const uint8_t* x = static_cast<const uint8_t*>(data) + from;
                if (first && second)
                    for (int64_t j = 0; j < width; ++j) to[j] = by * S(x[j] * (first[from + j] & second[from + j]));
                else if (first)
                    for (int64_t j = 0; j < width; ++j) to[j] = by * S(x[j] * first[from + j]);
                else
                    for (int64_t j = 0; j < width; ++j) to[j] = by * S(x[j]);
            } else {
                const S* x = static_cast<const S*>(data) + from;
                for (int64_t j = 0; j < width; ++j)
                    to[j] = by * x[j] * S((first ? first[from + j] : 1) * (second ? second[from + j] : 1));
            }
        }
    });
}

// ------------------------------------------------------------------------------------------------------------ one scan

// What one block keeps between the forward and the backward pass, and what a task needs meanwhile.
template <class S> struct Memory {
    S* next;
    S* take(int64_t n) {
        S* mine = next;
        next += up(n, 64 / sizeof(S));
        return mine;
    }
};

template <class S> struct Scan {
    Arena arena;
    Cell<S> cell;
    int64_t n_trials, n_bins, threads, reverse, keeps, n_out, noisy;
    uint64_t key;
    uint32_t stream;
    S noise_scale;
    const S *inputs, *start, *w_out, *b_out;
    const uint8_t* valid;
    const int64_t* trials;
    S* memory;
    Packed<S> out_forward, out_back;
    std::vector<S> out_bias;
    bool sparse;
    int64_t size, blocks, rows, np, slots, in_pad, out_pad;

    explicit Scan(Arguments& a, bool backward, bool input_gradient) {
        cell = read_cell<S>(a);
        n_trials = a.whole(), n_bins = a.whole(), threads = a.whole(), reverse = a.whole(), keeps = a.whole();
        n_out = a.whole(), noisy = a.whole(), key = a.whole(), stream = a.whole();
        noise_scale = S(a.real());
        inputs = a.pointer<S>(), start = a.pointer<S>(), valid = a.pointer<uint8_t>(), trials = a.pointer<int64_t>();
        w_out = a.pointer<S>(), b_out = a.pointer<S>(), memory = a.pointer<S>();
        // Skipping zeros would also skip 0 times NaN.
        sparse = cell.n_in >= 16 && std::all_of(cell.w_in, cell.w_in + (cell.kind == RATE ? 1 : 3) * cell.n * cell.n_in,
                                                [](S w) { return std::isfinite(w); });
        cell.prepare(arena, backward, input_gradient, sparse);
        size = BLOCK, blocks = block_count(n_trials), rows = up(std::min(size, n_trials), ROW_PAD);
        np = cell.np, slots = cell.slots, in_pad = padded<S>(cell.n_in), out_pad = padded<S>(n_out);
        const int64_t n = cell.n;
        if (n_out) {
            out_forward.pack(arena, n, out_pad, out_pad, [&](int64_t k, int64_t j, int64_t) { return j < n_out ? w_out[j * n + k] : S(0); });
            out_bias.assign(out_pad, S(0));
            std::copy(b_out, b_out + n_out, out_bias.begin());
            if (backward)
                out_back.pack(arena, n_out, np, np, [&](int64_t k, int64_t j, int64_t) { return j < n ? w_out[k * n + j] : S(0); });
        }
    }
    static int64_t states_size(int64_t n_bins, int64_t rows, int64_t np) { return (n_bins + 1) * rows * np; }
    static int64_t block_memory(const Cell<S>& cell, int64_t n_trials, int64_t n_bins, bool keeps) {
        const int64_t rows = up(std::min(BLOCK, n_trials), ROW_PAD), np = padded<S>(cell.n);
        const int64_t slots = cell.kind == CLIPPED_GRU ? 3 : cell.kind == GRU ? 4 : 1;
        const int64_t kept_bins = keeps ? n_bins : 1;
        return up(states_size(kept_bins, rows, np), 16) + up(kept_bins * rows * slots * np, 16) + 64;
    }
    int64_t bin(int64_t t) const { return reverse ? n_bins - 1 - t : t; }

    void forward(S* states, S* last, S* out) {
        const int64_t each = block_memory(cell, n_trials, n_bins, keeps), n = cell.n;
        run_tasks(blocks, threads, [&](int64_t block) {
            Arena local;
            const int64_t first = block * size, own = std::min(size, n_trials - first);
            Memory<S> mine{memory + block * each};
            S* hs = mine.take(states_size(keeps ? n_bins : 1, rows, np));
            S* kept = mine.take((keeps ? n_bins : 1) * rows * slots * np);
            Window<S> seen(local, own, rows, in_pad, cell.n_in, n_bins), read(local, own, rows, out_pad, n_out, n_bins);
            S* scratch = local.take<S>(rows * np);
            S* out_block = out + first * n_bins * n_out;
            NormalScratch drawn;
            Nonzero<S> few = Nonzero<S>::make(local, rows, sparse ? cell.n_in : 0);
            std::fill(hs, hs + rows * np, S(0));
            gather(hs, np, start + first * n, own, n, n);
            for (int64_t t = 0; t < n_bins; ++t) {
                const int64_t at = bin(t);
                S* h = hs + (keeps ? t : t % 2) * rows * np;
                S* next = hs + (keeps ? t + 1 : (t + 1) % 2) * rows * np;
                S* g = kept + (keeps ? t : 0) * rows * slots * np;
                const S* from = inputs + (first * n_bins + at) * cell.n_in;
                const int64_t onward = reverse ? -cell.n_in : cell.n_in;
                if (sparse && few.collect(own, rows, from, n_bins * cell.n_in, cell.n_in, onward)) {
                    cell.sparse_inputs(rows, few, g);
                    cell.forward(rows, nullptr, 0, h, g, next, scratch);
                } else {
                    const S* x = seen.read(inputs + first * n_bins * cell.n_in, at);
                    cell.forward(rows, x, in_pad, h, g, next, scratch);
                }
                if (n_out) {
                    const Source<S> source[1] = {{next, np, &out_forward}};
                    product<S>(rows, source, 1, BIAS, out_bias.data(), read.write(out_block, at), out_pad);
                }
                for (int64_t i = 0; i < own; ++i) {
                    if (valid && !valid[(first + i) * n_bins + at]) std::memcpy(next + i * np, h + i * np, np * sizeof(S));
                    else if (noisy) {
                        const float* z = draw_normal(drawn, n, at, trials[first + i], key, stream);
                        for (int64_t j = 0; j < n; ++j) next[i * np + j] += noise_scale * S(z[j]);
                    }
                }
                if (states) scatter(states + (first * n_bins + at) * n, n_bins * n, next, np, own, n);
            }
            if (n_out) read.flush(out_block);
            if (last) scatter(last + first * n, n, hs + (keeps ? n_bins : n_bins % 2) * rows * np, np, own, n);
        });
    }

    void backward(Arguments& a) {
        const S *d_states = a.pointer<S>(), *d_last = a.pointer<S>(), *d_out = a.pointer<S>();
        S *d_inputs = a.pointer<S>(), *d_start = a.pointer<S>(), *d_w_in = a.pointer<S>(), *d_w_rec = a.pointer<S>();
        S *d_b_in = a.pointer<S>(), *d_b_rec = a.pointer<S>(), *d_w_out = a.pointer<S>(), *d_b_out = a.pointer<S>();
        const int64_t each = block_memory(cell, n_trials, n_bins, keeps), n = cell.n, ld = slots * np;
        const int64_t steps = std::max<int64_t>(1, DEFER / rows), out_size = (np + 1) * out_pad;
        S* sums = arena.take<S>(blocks * cell.gradient_size());
        S* out_sums = arena.take<S>(n_out ? blocks * out_size : 0);
        run_tasks(blocks, threads, [&](int64_t block) {
            Arena local;
            const int64_t first = block * size, own = std::min(size, n_trials - first);
            Memory<S> mine{memory + block * each};
            const S* hs = mine.take(states_size(n_bins, rows, np));
            const S* kept = mine.take(n_bins * rows * ld);
            S* sum = sums + block * cell.gradient_size();
            S* out_sum = out_sums + block * out_size;
            S* x = local.take<S>(steps * rows * in_pad);
            S* d_sums = local.take<S>(steps * rows * ld);
            S* reset = local.take<S>(steps * rows * np);
            S* d = local.take<S>(rows * np);
            S* d_before = local.take<S>(rows * np);
            S* held = local.take<S>(valid ? rows * np : 0);
            S* scratch = local.take<S>(rows * np);
            S* dx = local.take<S>(rows * in_pad);
            S* clean = local.take<S>(n_out ? steps * rows * np : 0);
            S* d_read = local.take<S>(n_out ? steps * rows * out_pad : 0);
            Nonzero<S> few = Nonzero<S>::make(local, rows, sparse ? cell.n_in : 0);
            Window<S> seen(local, own, rows, in_pad, cell.n_in, n_bins), told(local, own, rows, out_pad, n_out, n_bins);
            bool dense = false;  // whether some of the deferred inputs wait in x, those of the other bins being 0
            if (d_last) gather(d, np, d_last + first * n, own, n, n);
            for (int64_t t = n_bins - 1; t >= 0; --t) {
                const int64_t at = bin(t), step = t % steps;
                const S *h = hs + t * rows * np, *g = kept + t * rows * ld;
                if (d_states) add_gathered(d, np, d_states + (first * n_bins + at) * n, own, n_bins * n, n);
                if (valid) {
                    std::fill(held, held + rows * np, S(0));
                    for (int64_t i = 0; i < own; ++i)
                        if (!valid[(first + i) * n_bins + at]) {
                            std::swap_ranges(&held[i * np], &held[i * np] + np, &d[i * np]);
                        }
                }
                if (n_out) {
                    const S* read = told.read(d_out + first * n_bins * n_out, at);
                    std::memcpy(d_read + step * rows * out_pad, read, rows * out_pad * sizeof(S));
                    const Source<S> back[1] = {{read, out_pad, &out_back}};
                    product<S>(rows, back, 1, ADD, nullptr, d, np);
                }
                S* own_sums = d_sums + step * rows * ld;
                S* clean_now = n_out ? clean + step * rows * np : nullptr;
                cell.backward(rows, h, g, d, own_sums, d_before, reset + step * rows * np, scratch, clean_now);
                if (valid)
                    for (int64_t i = 0; i < own * np; ++i) d_before[i] += held[i];
                if (d_inputs) {
                    cell.input_gradient(rows, own_sums, dx, in_pad);
                    scatter(d_inputs + (first * n_bins + at) * cell.n_in, n_bins * cell.n_in, dx, in_pad, own, cell.n_in);
                }
                const S* from = inputs + (first * n_bins + at) * cell.n_in;
                const int64_t onward = reverse ? cell.n_in : -cell.n_in;
                S* x_now = x + step * rows * in_pad;
                if (sparse && few.collect(own, rows, from, n_bins * cell.n_in, cell.n_in, onward))
                    cell.add_sparse_gradients(rows, few, own_sums, sum);
                else {
                    if (sparse && !dense) std::fill(x, x + steps * rows * in_pad, S(0));
                    std::memcpy(x_now, seen.read(inputs + first * n_bins * cell.n_in, at), rows * in_pad * sizeof(S));
                    dense = true;
                }
                std::swap(d, d_before);
                if (step == 0) {
                    const int64_t deferred = std::min(steps, n_bins - t) * rows;
                    cell.add_gradients(deferred, !sparse || dense ? x : nullptr, in_pad, h, reset, d_sums, sum);
                    dense = false;
                    if (n_out) {
                        transposed_product<S>(deferred, n, out_pad, clean, np, d_read, out_pad, out_sum, out_pad);
                        add_rows<S>(deferred, out_pad, d_read, out_pad, out_sum + np * out_pad);
                    }
                }
            }
            scatter(d_start + first * n, n, d, np, own, n);
        });
        cell.reduce(blocks, sums, d_w_in, d_w_rec, d_b_in, d_b_rec);
        for (int64_t o = 0; o < n_out; ++o) {
            std::fill(d_w_out + o * n, d_w_out + (o + 1) * n, S(0));
            d_b_out[o] = 0;
            for (int64_t b = 0; b < blocks; ++b) {
                for (int64_t j = 0; j < n; ++j) d_w_out[o * n + j] += out_sums[b * out_size + j * out_pad + o];
                d_b_out[o] += out_sums[b * out_size + np * out_pad + o];
            }
        }
    }
};

template <class S> static void scan_forward(Arguments a) {
    Scan<S> scan(a, false, false);
    S *states = a.pointer<S>(), *last = a.pointer<S>(), *out = a.pointer<S>();
    scan.forward(states, last, out);
}
template <class S> static void scan_backward(Arguments a) {
    const bool input_gradient = a.whole();
    Scan<S> scan(a, true, input_gradient);
    scan.backward(a);
}

// ------------------------------------------------------------------------------------------ controller and generator

// One run of the generator with its controller; see eager.controlled_scan. Without a controller n_co is 0.
template <class S> struct Controlled {
    Arena arena;
    Cell<S> gen, con;
    int64_t n_trials, n_bins, threads, keeps, n_ci, n_co, n_ext, n_fac;
    S keep_scale;
    const S *gen_start, *con_start, *ci, *ext, *w_co, *b_co, *w_fac, *noise, *control;
    const uint8_t *keep_start, *keep_ci, *keep_fac, *keep_gen;
    S* memory;
    Packed<S> to_co, from_co, to_fac, from_fac;
    std::vector<S> co_bias;
    int64_t size, blocks, rows, gp, cp, in_pad, con_pad, co_pad, fac_pad, onward = 1;

    explicit Controlled(Arguments& a, bool backward) {
        gen = read_cell<S>(a), con = read_cell<S>(a);
        n_trials = a.whole(), n_bins = a.whole(), threads = a.whole(), keeps = a.whole();
        n_ci = a.whole(), n_co = a.whole(), n_ext = a.whole(), n_fac = a.whole();
        keep_scale = S(a.real());
        gen_start = a.pointer<S>(), con_start = a.pointer<S>(), ci = a.pointer<S>(), ext = a.pointer<S>();
        w_co = a.pointer<S>(), b_co = a.pointer<S>(), w_fac = a.pointer<S>(), noise = a.pointer<S>(), control = a.pointer<S>();
        keep_start = a.pointer<uint8_t>(), keep_ci = a.pointer<uint8_t>(), keep_fac = a.pointer<uint8_t>();
        keep_gen = a.pointer<uint8_t>();
        memory = a.pointer<S>();
        gen.prepare(arena, backward, n_co > 0 || n_ext > 0);
        size = BLOCK, blocks = block_count(n_trials), rows = up(std::min(size, n_trials), ROW_PAD);
        gp = gen.np, in_pad = padded<S>(gen.n_in), fac_pad = padded<S>(n_fac);
        cp = con_pad = co_pad = 0;
        to_fac.pack(arena, gen.n, fac_pad, fac_pad, [&](int64_t k, int64_t j, int64_t) { return j < n_fac ? w_fac[j * gen.n + k] : S(0); });
        if (backward) from_fac.pack(arena, n_fac, gp, gp, [&](int64_t k, int64_t j, int64_t) { return j < gen.n ? w_fac[k * gen.n + j] : S(0); });
        if (!n_co) return;
        con.prepare(arena, backward, true);
        cp = con.np, con_pad = padded<S>(con.n_in), co_pad = padded<S>(2 * n_co);
        to_co.pack(arena, con.n, co_pad, co_pad, [&](int64_t k, int64_t j, int64_t) { return j < 2 * n_co ? w_co[j * con.n + k] : S(0); });
        co_bias.assign(co_pad, S(0));
        std::copy(b_co, b_co + 2 * n_co, co_bias.begin());
        if (backward) from_co.pack(arena, 2 * n_co, cp, cp, [&](int64_t k, int64_t j, int64_t) { return j < con.n ? w_co[k * con.n + j] : S(0); });
    }
    static int64_t block_memory(const Cell<S>& gen, const Cell<S>& con, int64_t n_trials, int64_t n_bins, bool keeps, int64_t n_co,
                                int64_t n_fac) {
        const int64_t rows = up(std::min(BLOCK, n_trials), ROW_PAD), bins = keeps ? n_bins : 1;
        const int64_t gp = padded<S>(gen.n), cp = n_co ? padded<S>(con.n) : 0;
        auto slots = [](const Cell<S>& c) { return c.kind == CLIPPED_GRU ? 3 : c.kind == GRU ? 4 : 1; };
        int64_t need = (bins + 1) * rows * gp + bins * rows * slots(gen) * gp + bins * rows * padded<S>(gen.n_in);
        need += (bins + 1) * rows * padded<S>(n_fac);
        if (n_co) {
            need += (bins + 1) * rows * cp + bins * rows * slots(con) * cp + 2 * bins * rows * n_co;
        }
        return need + 16 * 8;
    }
    struct Block {
        S *hs, *kept, *u, *facs, *cs, *con_kept, *std;
    };
    Block block_at(int64_t block) {
        const int64_t bins = keeps ? n_bins : 1;
        Memory<S> mine{memory + block * block_memory(gen, con, n_trials, n_bins, keeps, n_co, n_fac)};
        Block b{};
        b.hs = mine.take((bins + 1) * rows * gp);
        b.kept = mine.take(bins * rows * gen.slots * gp);
        b.u = mine.take(bins * rows * in_pad);
        b.facs = mine.take((bins + 1) * rows * fac_pad);
        if (n_co) {
            b.cs = mine.take((bins + 1) * rows * cp);
            b.con_kept = mine.take(bins * rows * con.slots * cp);
            b.std = mine.take(bins * rows * n_co);
        }
        return b;
    }
    // Multiply rows by a 0/1 mask and 1 / (1 - rate); `mask` points at the first trial's row of this bin.
    void masked(S* to, int64_t ld_to, const S* from, int64_t ld_from, const uint8_t* mask, int64_t step, int64_t own, int64_t n) const {
        for (int64_t i = 0; i < own; ++i) {
            const uint8_t* row = mask + i * step;
            for (int64_t line = 0; line < n + 64; line += 64) __builtin_prefetch(row + onward * n + line);  // the next bin's
            for (int64_t j = 0; j < n; ++j) to[i * ld_to + j] = from[i * ld_from + j] * (S(row[j]) * keep_scale);
        }
    }
    // State as the factors see it: dropped out where there is a mask (of this bin, or of the start), else as it is.
    const S* seen(const S* h, S* buffer, const uint8_t* mask, int64_t step, int64_t own) const {
        if (!mask) return h;
        masked(buffer, gp, h, gp, mask, step, own, gen.n);
        return buffer;
    }
    void controller_input(S* x, const S* fac, int64_t first, int64_t own, int64_t t) const {
        const int64_t row = first * n_bins + t;
        gather(x, con_pad, ci + row * n_ci, own, n_bins * n_ci, n_ci);
        if (keep_ci) masked(x, con_pad, x, con_pad, keep_ci + row * n_ci, n_bins * n_ci, own, n_ci);
        if (keep_fac) masked(x + n_ci, con_pad, fac, fac_pad, keep_fac + row * n_fac, n_bins * n_fac, own, n_fac);
        else gather(x + n_ci, con_pad, fac, own, fac_pad, n_fac);
    }

    void forward(Arguments& a) {
        S *gen_states = a.pointer<S>(), *factors = a.pointer<S>(), *gen_inputs = a.pointer<S>();
        S *con_states = a.pointer<S>(), *co_means = a.pointer<S>(), *co_stds = a.pointer<S>();
        run_tasks(blocks, threads, [&](int64_t block) {
            Arena local;
            const int64_t first = block * size, own = std::min(size, n_trials - first);
            Block m = block_at(block);
            S* x = local.take<S>(rows * con_pad);
            S* scratch = local.take<S>(rows * std::max(gp, cp));
            S* dropped = local.take<S>(rows * gp);
            S* co = local.take<S>(rows * co_pad);
            S* std_now = local.take<S>(rows * std::max<int64_t>(n_co, 1));
            std::fill(m.hs, m.hs + rows * gp, S(0));
            gather(m.hs, gp, gen_start + first * gen.n, own, gen.n, gen.n);
            if (n_co) {
                std::fill(m.cs, m.cs + rows * cp, S(0));
                gather(m.cs, cp, con_start + first * con.n, own, con.n, con.n);
                const uint8_t* mask = keep_start ? keep_start + first * gen.n : nullptr;
                const Source<S> source[1] = {{seen(m.hs, dropped, mask, gen.n, own), gp, &to_fac}};
                product<S>(rows, source, 1, ZERO, nullptr, m.facs, fac_pad);
            }
            for (int64_t t = 0; t < n_bins; ++t) {
                const int64_t row = first * n_bins + t, now = keeps ? t : 0;
                const int64_t from = keeps ? t : t % 2, to = keeps ? t + 1 : (t + 1) % 2;
                S *h = m.hs + from * rows * gp, *h_next = m.hs + to * rows * gp, *u = m.u + now * rows * in_pad;
                if (t == 0 || keeps) std::fill(u, u + rows * in_pad, S(0));
                if (n_co) {
                    S *c = m.cs + from * rows * cp, *c_next = m.cs + to * rows * cp;
                    controller_input(x, m.facs + from * rows * fac_pad, first, own, t);
                    con.forward(rows, x, con_pad, c, m.con_kept + now * rows * con.slots * cp, c_next, scratch);
                    const Source<S> source[1] = {{c_next, cp, &to_co}};
                    product<S>(rows, source, 1, BIAS, co_bias.data(), co, co_pad);
                    S* deviations = keeps ? m.std + t * rows * n_co : std_now;
                    for (int64_t i = 0; i < own; ++i)
                        for (int64_t j = 0; j < n_co; ++j) {
                            const S mean = co[i * co_pad + j], deviation = std::exp(S(0.5) * co[i * co_pad + n_co + j]);
                            const int64_t place = (row + i * n_bins) * n_co + j;
                            S value = noise ? mean + deviation * noise[place] : mean;
                            if (control) value *= control[t];
                            u[i * in_pad + j] = value;
                            deviations[i * n_co + j] = deviation;
                            co_means[place] = mean, co_stds[place] = deviation;
                        }
                    if (con_states) scatter(con_states + row * con.n, n_bins * con.n, c_next, cp, own, con.n);
                }
                gather(u + n_co, in_pad, ext + row * n_ext, own, n_bins * n_ext, n_ext);
                gen.forward(rows, u, in_pad, h, m.kept + now * rows * gen.slots * gp, h_next, scratch);
                const uint8_t* mask = keep_gen ? keep_gen + row * gen.n : nullptr;
                const Source<S> source[1] = {{seen(h_next, dropped, mask, n_bins * gen.n, own), gp, &to_fac}};
                S* fac = m.facs + to * rows * fac_pad;
                product<S>(rows, source, 1, ZERO, nullptr, fac, fac_pad);
                scatter(factors + row * n_fac, n_bins * n_fac, fac, fac_pad, own, n_fac);
                if (gen_states) scatter(gen_states + row * gen.n, n_bins * gen.n, h_next, gp, own, gen.n);
                if (gen_inputs) scatter(gen_inputs + row * gen.n_in, n_bins * gen.n_in, u, in_pad, own, gen.n_in);
            }
        });
    }

    void backward(Arguments& a) {
        const S *d_gen_states = a.pointer<S>(), *d_factors = a.pointer<S>(), *d_gen_inputs = a.pointer<S>();
        const S *d_con_states = a.pointer<S>(), *d_co_means = a.pointer<S>(), *d_co_stds = a.pointer<S>();
        onward = -1;
        S *d_gen_start = a.pointer<S>(), *d_con_start = a.pointer<S>(), *d_ci = a.pointer<S>(), *d_ext = a.pointer<S>();
        S *d_w_co = a.pointer<S>(), *d_b_co = a.pointer<S>(), *d_w_fac = a.pointer<S>();
        S* d_gen[4];
        S* d_con[4];
        for (auto& one : d_gen) one = a.pointer<S>();
        for (auto& one : d_con) one = a.pointer<S>();
        const int64_t steps = std::max<int64_t>(1, DEFER / rows), gl = gen.slots * gp, cl = n_co ? con.slots * cp : 0;
        const int64_t gen_size = gen.gradient_size(), con_size = n_co ? con.gradient_size() : 0;
        const int64_t fac_size = gp * fac_pad, co_size = (cp + 1) * co_pad;
        S* gen_sums = arena.take<S>(blocks * gen_size);
        S* con_sums = arena.take<S>(blocks * con_size);
        S* fac_sums = arena.take<S>(blocks * fac_size);
        S* co_sums = arena.take<S>(blocks * co_size);
        run_tasks(blocks, threads, [&](int64_t block) {
            Arena local;
            const int64_t first = block * size, own = std::min(size, n_trials - first);
            const Block m = block_at(block);
            S *gen_sum = gen_sums + block * gen_size, *con_sum = con_sums + block * con_size;
            S *fac_sum = fac_sums + block * fac_size, *co_sum = co_sums + block * co_size;
            S* d_sums = local.take<S>(steps * rows * gl);
            S* reset = local.take<S>(steps * rows * gp);
            S* dropped = local.take<S>(steps * rows * gp);
            S* d_fac = local.take<S>(steps * rows * fac_pad);
            S* d = local.take<S>(rows * gp);
            S* d_before = local.take<S>(rows * gp);
            S* du = local.take<S>(rows * in_pad);
            S* con_d_sums = local.take<S>(steps * rows * cl);
            S* con_reset = local.take<S>(steps * rows * cp);
            S* x = local.take<S>(steps * rows * con_pad);
            S* d_co = local.take<S>(steps * rows * co_pad);
            S* dc = local.take<S>(rows * cp);
            S* dc_before = local.take<S>(rows * cp);
            S* dx = local.take<S>(rows * con_pad);
            S* scratch = local.take<S>(rows * std::max(gp, cp));
            S* fac_back = local.take<S>(rows * gp);
            S* d_next_fac = local.take<S>(rows * fac_pad);
            for (int64_t t = n_bins - 1; t >= 0; --t) {
                const int64_t row = first * n_bins + t, step = t % steps;
                const S *h = m.hs + t * rows * gp, *g = m.kept + t * rows * gl, *u = m.u + t * rows * in_pad;
                // factors: from the loss, and from the controller one bin later
                S* df = d_fac + step * rows * fac_pad;
                std::copy(d_next_fac, d_next_fac + rows * fac_pad, df);
                if (d_factors) add_gathered(df, fac_pad, d_factors + row * n_fac, own, n_bins * n_fac, n_fac);
                const Source<S> back[1] = {{df, fac_pad, &from_fac}};
                S* seen_now = dropped + step * rows * gp;
                if (keep_gen) {
                    const uint8_t* mask = keep_gen + row * gen.n;
                    product<S>(rows, back, 1, ZERO, nullptr, fac_back, gp);
                    masked(seen_now, gp, h + rows * gp, gp, mask, n_bins * gen.n, own, gen.n);
                    for (int64_t i = 0; i < own; ++i) {
                        const uint8_t* row_mask = mask + i * n_bins * gen.n;
                        for (int64_t j = 0; j < gen.n; ++j) d[i * gp + j] += fac_back[i * gp + j] * (S(row_mask[j]) * keep_scale);
                    }
                } else {
                    product<S>(rows, back, 1, ADD, nullptr, d, gp);
                    std::copy(h + rows * gp, h + 2 * rows * gp, seen_now);
                }
                if (d_gen_states) add_gathered(d, gp, d_gen_states + row * gen.n, own, n_bins * gen.n, gen.n);
                gen.backward(rows, h, g, d, d_sums + step * rows * gl, d_before,
                             reset + step * rows * gp, scratch);
                std::swap(d, d_before);
                if (n_co || d_ext || d_gen_inputs) {
                    if (gen.n_in) gen.input_gradient(rows, d_sums + step * rows * gl, du, in_pad);
                    if (d_gen_inputs) add_gathered(du, in_pad, d_gen_inputs + row * gen.n_in, own, n_bins * gen.n_in, gen.n_in);
                    if (d_ext) scatter(d_ext + row * n_ext, n_bins * n_ext, du + n_co, in_pad, own, n_ext);
                }
                if (n_co) {
                    const S *c = m.cs + t * rows * cp, *cg = m.con_kept + t * rows * cl, *deviations = m.std + t * rows * n_co;
                    S* dp = d_co + step * rows * co_pad;
                    for (int64_t i = 0; i < own; ++i)
                        for (int64_t j = 0; j < n_co; ++j) {
                            const int64_t place = (row + i * n_bins) * n_co + j;
                            const S deviation = deviations[i * n_co + j], dv = du[i * in_pad + j] * (control ? control[t] : S(1));
                            S d_mean = dv, d_std = noise ? dv * noise[place] : S(0);
                            if (d_co_means) d_mean += d_co_means[place];
                            if (d_co_stds) d_std += d_co_stds[place];
                            dp[i * co_pad + j] = d_mean;
                            dp[i * co_pad + n_co + j] = S(0.5) * deviation * d_std;
                        }
                    const Source<S> from[1] = {{dp, co_pad, &from_co}};
                    product<S>(rows, from, 1, ADD, nullptr, dc, cp);
                    if (d_con_states) add_gathered(dc, cp, d_con_states + row * con.n, own, n_bins * con.n, con.n);
                    S* sums_now = con_d_sums + step * rows * cl;
                    con.backward(rows, c, cg, dc, sums_now, dc_before, con_reset + step * rows * cp, scratch);
                    std::swap(dc, dc_before);
                    con.input_gradient(rows, sums_now, dx, con_pad);
                    controller_input(x + step * rows * con_pad, m.facs + t * rows * fac_pad, first, own, t);
                    if (keep_ci) masked(dx, con_pad, dx, con_pad, keep_ci + row * n_ci, n_bins * n_ci, own, n_ci);
                    if (d_ci) scatter(d_ci + row * n_ci, n_bins * n_ci, dx, con_pad, own, n_ci);
                    if (keep_fac)
                        masked(d_next_fac, fac_pad, dx + n_ci, con_pad, keep_fac + row * n_fac, n_bins * n_fac, own, n_fac);
                    else gather(d_next_fac, fac_pad, dx + n_ci, own, con_pad, n_fac);
                }
                if (step == 0) {
                    const int64_t deferred = std::min(steps, n_bins - t) * rows;
                    gen.add_gradients(deferred, u, in_pad, h, reset, d_sums, gen_sum);
                    transposed_product<S>(deferred, gen.n, fac_pad, dropped, gp, d_fac, fac_pad, fac_sum, fac_pad);
                    if (n_co) {
                        const S* c = m.cs + t * rows * cp;
                        con.add_gradients(deferred, x, con_pad, c, con_reset, con_d_sums, con_sum);
                        transposed_product<S>(deferred, con.n, co_pad, c + rows * cp, cp, d_co, co_pad, co_sum, co_pad);
                        add_rows<S>(deferred, co_pad, d_co, co_pad, co_sum + cp * co_pad);
                    }
                }
            }
            if (n_co) {  // the factors before the first bin
                const Source<S> back[1] = {{d_next_fac, fac_pad, &from_fac}};
                const uint8_t* mask = keep_start ? keep_start + first * gen.n : nullptr;
                product<S>(rows, back, 1, ZERO, nullptr, fac_back, gp);
                std::fill(dropped, dropped + rows * gp, S(0));
                const S* seen_start = seen(m.hs, dropped, mask, gen.n, own);
                transposed_product<S>(rows, gen.n, fac_pad, seen_start, gp, d_next_fac, fac_pad, fac_sum, fac_pad);
                if (mask) masked(fac_back, gp, fac_back, gp, mask, gen.n, own, gen.n);
                for (int64_t i = 0; i < own * gp; ++i) d[i] += fac_back[i];
                scatter(d_con_start + first * con.n, con.n, dc, cp, own, con.n);
            }
            scatter(d_gen_start + first * gen.n, gen.n, d, gp, own, gen.n);
        });
        gen.reduce(blocks, gen_sums, d_gen[0], d_gen[1], d_gen[2], d_gen[3]);
        for (int64_t f = 0; f < n_fac; ++f)
            for (int64_t j = 0; j < gen.n; ++j) {
                S sum = 0;
                for (int64_t b = 0; b < blocks; ++b) sum += fac_sums[b * fac_size + j * fac_pad + f];
                d_w_fac[f * gen.n + j] = sum;
            }
        if (!n_co) return;
        con.reduce(blocks, con_sums, d_con[0], d_con[1], d_con[2], d_con[3]);
        for (int64_t o = 0; o < 2 * n_co; ++o) {
            for (int64_t j = 0; j <= con.n; ++j) {
                S sum = 0;
                for (int64_t b = 0; b < blocks; ++b) sum += co_sums[b * co_size + (j < con.n ? j : cp) * co_pad + o];
                if (j < con.n) d_w_co[o * con.n + j] = sum;
                else d_b_co[o] = sum;
            }
        }
    }
};

template <class S> static void controlled_forward(Arguments a) {
    Controlled<S> run(a, false);
    run.forward(a);
}
template <class S> static void controlled_backward(Arguments a) {
    Controlled<S> run(a, true);
    run.backward(a);
}

// ---------------------------------------------------------------------------------------------- readout and likelihood

// Sum over trials, bins and neurons of weight times the Poisson negative log-likelihood of counts whose log-rates are a
// linear map of the factors, and its gradients, in one pass: no array of rates is made. Counts are bytes or numbers.
template <class S> static void poisson(Arguments a) {
    const int64_t n_trials = a.whole(), n_bins = a.whole(), threads = a.whole(), n_fac = a.whole(), n = a.whole();
    const int64_t bytes = a.whole(), weight_wide = a.whole();
    const S *factors = a.pointer<S>(), *w = a.pointer<S>(), *bias = a.pointer<S>();
    const void* counts = a.pointer<void>();
    const S* weight = a.pointer<S>();
    const uint8_t* learned = a.pointer<uint8_t>();
    S *total = a.pointer<S>(), *d_factors = a.pointer<S>(), *d_w = a.pointer<S>(), *d_bias = a.pointer<S>();
    const int64_t fac_pad = padded<S>(n_fac), np = padded<S>(n), size = BLOCK, blocks = block_count(n_trials);
    Arena arena;
    Packed<S> forward, back;
    forward.pack(arena, n_fac, np, np, [&](int64_t k, int64_t j, int64_t) { return j < n ? w[j * n_fac + k] : S(0); });
    if (d_factors) back.pack(arena, n, fac_pad, fac_pad, [&](int64_t k, int64_t j, int64_t) { return j < n_fac ? w[k * n_fac + j] : S(0); });
    S* padded_bias = arena.take<S>(np);
    std::copy(bias, bias + n, padded_bias);
    S stirling[256];
    for (int i = 0; i < 256; ++i) stirling[i] = S(std::lgamma(double(i) + 1));
    const int64_t tile_rows = 64, sum_size = (fac_pad + 1) * np;
    S* sums = arena.take<S>(d_factors ? blocks * sum_size : 0);
    std::vector<double> totals(blocks);
    run_tasks(blocks, threads, [&](int64_t block) {
        Arena local;
        const int64_t from = block * size * n_bins, to = std::min(n_trials, (block + 1) * size) * n_bins;
        S* f = local.take<S>(tile_rows * fac_pad);
        S* rate = local.take<S>(tile_rows * np);
        S* df = local.take<S>(tile_rows * fac_pad);
        S *k_row = local.take<S>(np), *w_row = local.take<S>(np), *c_row = local.take<S>(np);
        S* sum = sums + block * sum_size;
        double nll = 0;
        for (int64_t row = from; row < to; row += tile_rows) {
            const int64_t own = std::min(tile_rows, to - row), rows = up(own, ROW_PAD);
            gather(f, fac_pad, factors + row * n_fac, own, n_fac, n_fac);
            for (int64_t i = own; i < rows; ++i) std::fill(&f[i * fac_pad], &f[i * fac_pad] + fac_pad, S(0));
            const Source<S> source[1] = {{f, fac_pad, &forward}};
            product<S>(rows, source, 1, BIAS, padded_bias, rate, np);
            for (int64_t i = 0; i < own; ++i) {
                S* r = &rate[i * np];
                const int64_t place = (row + i) * n;
                S constant = 0;
                const S row_weight = weight && !weight_wide ? weight[row + i] : S(1);
                if (bytes) {
                    const uint8_t* k = static_cast<const uint8_t*>(counts) + place;
                    for (int64_t j = 0; j < n; ++j) k_row[j] = S(k[j]), c_row[j] = stirling[k[j]];
                } else {
                    const S* k = static_cast<const S*>(counts) + place;
                    for (int64_t j = 0; j < n; ++j) {
                        const S value = k[j];
                        k_row[j] = value;
                        const bool listed = value >= 0 && value < 256 && value == S(int(value));
                        c_row[j] = listed ? stirling[int(value)] : S(std::lgamma(double(value) + 1));
                    }
                }
                for (int64_t j = 0; j < n; ++j) w_row[j] = weight_wide ? weight[place + j] : row_weight;
                Vec<S> part = Vec<S>{};
                for (int64_t j = 0; j < np; j += VL<S>) {
                    const Vec<S> x = load(r + j), k = load(&k_row[j]), lambda = v_exp(x), wv = load(&w_row[j]);
                    const Vec<S> value = lambda - k * x + load(&c_row[j]);
                    part += wv == Vec<S>{} ? Vec<S>{} : wv * value;
                    store(r + j, wv == Vec<S>{} ? Vec<S>{} : wv * (lambda - k));
                }
                for (int l = 0; l < VL<S>; ++l) constant += part[l];
                nll += double(constant);
                if (learned)
                    for (int64_t j = 0; j < n; ++j) r[j] = learned[place + j] ? r[j] : S(0);
            }
            if (!d_factors) continue;
            for (int64_t i = own; i < rows; ++i) std::fill(&rate[i * np], &rate[i * np] + np, S(0));
            const Source<S> into[1] = {{rate, np, &back}};
            product<S>(rows, into, 1, ZERO, nullptr, df, fac_pad);
            scatter(d_factors + row * n_fac, n_fac, df, fac_pad, own, n_fac);
            transposed_product<S>(rows, n_fac, np, f, fac_pad, rate, np, sum, np);
            add_rows<S>(rows, np, rate, np, sum + fac_pad * np);
        }
        totals[block] = nll;
    });
    double whole = 0;
    for (double one : totals) whole += one;
    *total = S(whole);
    if (!d_factors) return;
    for (int64_t j = 0; j < n; ++j) {
        for (int64_t k = 0; k <= n_fac; ++k) {
            S sum = 0;
            for (int64_t b = 0; b < blocks; ++b) sum += sums[b * sum_size + (k < n_fac ? k : fac_pad) * np + j];
            if (k < n_fac) d_w[j * n_fac + k] = sum;
            else d_bias[j] = sum;
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- entries

#define ENTRY(name, call)                                                                                    \
    extern "C" void name(void* const* pointers, const int64_t* wholes, const double* reals) {                \
        call(Arguments{pointers, wholes, reals});                                                            \
    }
ENTRY(keep_masks_bytes, keep_masks)
ENTRY(normals_float, normals<float>)
ENTRY(normals_double, normals<double>)
ENTRY(masked_float, masked<float>)
ENTRY(masked_double, masked<double>)
ENTRY(scan_forward_float, scan_forward<float>)
ENTRY(scan_forward_double, scan_forward<double>)
ENTRY(scan_backward_float, scan_backward<float>)
ENTRY(scan_backward_double, scan_backward<double>)
ENTRY(controlled_forward_float, controlled_forward<float>)
ENTRY(controlled_forward_double, controlled_forward<double>)
ENTRY(controlled_backward_float, controlled_backward<float>)
ENTRY(controlled_backward_double, controlled_backward<double>)
ENTRY(poisson_float, poisson<float>)
ENTRY(poisson_double, poisson<double>)

// Numbers of `bytes` each that a scan, or a controlled one, keeps per call; the caller gives the memory.
extern "C" int64_t scan_memory(int64_t kind, int64_t n, int64_t n_trials, int64_t n_bins, int64_t keeps, int64_t bytes) {
    if (bytes == 4) {
        Cell<float> cell;
        cell.kind = kind, cell.n = n;
        return block_count(n_trials) * Scan<float>::block_memory(cell, n_trials, n_bins, keeps);
    }
    Cell<double> cell;
    cell.kind = kind, cell.n = n;
    return block_count(n_trials) * Scan<double>::block_memory(cell, n_trials, n_bins, keeps);
}
template <class S>
static int64_t controlled_need(int64_t kind, int64_t con_kind, const int64_t* sizes, int64_t n_trials, int64_t n_bins, int64_t keeps) {
    Cell<S> gen, con;
    gen.kind = kind, con.kind = con_kind, gen.n = sizes[0], gen.n_in = sizes[1], con.n = sizes[2];
    return block_count(n_trials) * Controlled<S>::block_memory(gen, con, n_trials, n_bins, keeps, sizes[3], sizes[4]);
}
extern "C" int64_t controlled_memory(int64_t kind, int64_t con_kind, int64_t n, int64_t n_in, int64_t n_con, int64_t n_co, int64_t n_fac,
                                     int64_t n_trials, int64_t n_bins, int64_t keeps, int64_t bytes) {
    const int64_t sizes[5] = {n, n_in, n_con, n_co, n_fac};
    return bytes == 4 ? controlled_need<float>(kind, con_kind, sizes, n_trials, n_bins, keeps)
                      : controlled_need<double>(kind, con_kind, sizes, n_trials, n_bins, keeps);
}
extern "C" int64_t advise_huge_pages(int64_t address, int64_t bytes) {
#if defined(__linux__)
    return madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
#else
    return address && bytes ? 0 : 1;
#endif
}
extern "C" void use_openmp(void* parallel) { openmp = reinterpret_cast<Parallel>(parallel); }
extern "C" int64_t vector_bytes() { return VB; }
