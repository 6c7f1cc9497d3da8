// The two parts of a block that are neither matrix products nor LayerNorm, for float32 on a CPU:
// the depthwise 7x7 convolution over visible positions, and GELU with what GRN needs of it.
//
// Both work on blocks of WIDTH channels, the width of a vector register. Every sum has a fixed
// order, whatever the number of threads. Compiled and called by __init__.py.
//
// Legend: N images, R rows (positions of all images), P positions of an image, H and W the dense
// map, C or K channels.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int KERNEL = 7;
constexpr int PADDING = KERNEL / 2;
constexpr int TAPS = KERNEL * KERNEL;
#ifdef __AVX512F__
constexpr int WIDTH = 16;
#else
constexpr int WIDTH = 8;
#endif
// Additions in a row before a partial sum is put aside: long chains lose accuracy.
constexpr int CHAIN = 64;

// Anywhere in memory, not only at multiples of their size.
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }

inline Vec load(const float* from, int width) {
    if (width == WIDTH) return load(from);
    Vec v = {};
    std::memcpy(&v, from, sizeof(float) * width);
    return v;
}

inline void store(float* to, Vec v, int width) {
    if (width == WIDTH) {
        *reinterpret_cast<Vec*>(to) = v;
    } else {
        std::memcpy(to, &v, sizeof(float) * width);
    }
}

// Where the rows of a packed tensor lie in the dense map. Rows come in runs, which lie side by side
// in one row of the map.
struct Grid {
    const int64_t* offsets;    // (N + 1): rows of image n are offsets[n] to offsets[n + 1] - 1
    const int64_t* positions;  // (R): each row's place in the flat (N, H, W) map; null: the same
    int64_t images, height, width, channels;
    int run;

    int64_t padded_width() const { return width + KERNEL - 1; }
    int64_t padded_size() const { return (height + KERNEL - 1) * padded_width() * WIDTH; }

    // Element of the padded map where the window of a row's output begins.
    int64_t window(int64_t row, int64_t image) const {
        int64_t place = (positions ? positions[row] : row) - image * height * width;
        return (place / width * padded_width() + place % width) * WIDTH;
    }

    int valid(int64_t channel) const {
        return static_cast<int>(std::min<int64_t>(WIDTH, channels - channel));
    }

    // One image's block of channels, with zeros around it and where nothing is visible.
    void fill(const float* rows, int64_t image, int64_t channel, float* map) const {
        std::memset(map, 0, sizeof(float) * padded_size());
        const int64_t centre = (PADDING * padded_width() + PADDING) * WIDTH;
        const int width = valid(channel);
        for (int64_t row = offsets[image]; row < offsets[image + 1]; row += run) {
            float* to = map + window(row, image) + centre;
            for (int i = 0; i < run; ++i) {
                const float* from = rows + (row + i) * channels + channel;
                store(to + i * WIDTH, load(from, width), WIDTH);
            }
        }
    }
};

// The taps of a block of channels: from (C, 49) to 49 vectors.
void load_taps(const float* weight, int64_t channel, int width, bool flip, Vec* taps) {
    for (int tap = 0; tap < TAPS; ++tap) {
        taps[tap] = Vec{};
        for (int i = 0; i < width; ++i) {
            taps[tap][i] = weight[(channel + i) * TAPS + (flip ? TAPS - 1 - tap : tap)];
        }
    }
}

template <int RUN>
void convolve(const float* rows, const float* weight, const float* bias, float* out, Grid grid,
              bool flip) {
#pragma omp parallel
    {
        std::vector<float> map(grid.padded_size());
#pragma omp for collapse(2) schedule(static)
        for (int64_t image = 0; image < grid.images; ++image) {
            for (int64_t channel = 0; channel < grid.channels; channel += WIDTH) {
                const int width = grid.valid(channel);
                Vec taps[TAPS];
                load_taps(weight, channel, width, flip, taps);
                const Vec start = bias ? load(bias + channel, width) : Vec{};
                grid.fill(rows, image, channel, map.data());
                for (int64_t row = grid.offsets[image]; row < grid.offsets[image + 1]; row += RUN) {
                    const float* window = map.data() + grid.window(row, image);
                    Vec sums[RUN];
                    for (int i = 0; i < RUN; ++i) sums[i] = start;
                    for (int y = 0; y < KERNEL; ++y) {
                        const float* line = window + y * grid.padded_width() * WIDTH;
#pragma GCC unroll 8
                        for (int x = 0; x < KERNEL; ++x) {
#pragma GCC unroll 8
                            for (int i = 0; i < RUN; ++i) {
                                sums[i] += taps[y * KERNEL + x] * load(line + (i + x) * WIDTH);
                            }
                        }
                    }
                    for (int i = 0; i < RUN; ++i) {
                        store(out + (row + i) * grid.channels + channel, sums[i], width);
                    }
                }
            }
        }
    }
}

// Gradients of taps and bias of one image's block of channels, 50 vectors.
template <int RUN>
void correlate(const float* map, const float* grad, const Grid& grid, int64_t image,
               int64_t channel, Vec* sums) {
    const int width = grid.valid(channel);
    const int64_t last = grid.offsets[image + 1];
    constexpr int64_t step = CHAIN / RUN * RUN;
    for (int y = 0; y < KERNEL; ++y) {
        for (int64_t first = grid.offsets[image]; first < last; first += step) {
            Vec chain[KERNEL + 1] = {};
            for (int64_t row = first; row < std::min(last, first + step); row += RUN) {
                const float* line = map + grid.window(row, image) + y * grid.padded_width() * WIDTH;
#pragma GCC unroll 8
                for (int i = 0; i < RUN; ++i) {
                    const float* from = grad + (row + i) * grid.channels + channel;
                    const Vec value = load(from, width);
#pragma GCC unroll 8
                    for (int x = 0; x < KERNEL; ++x) {
                        chain[x] += value * load(line + (i + x) * WIDTH);
                    }
                    if (y == 0) chain[KERNEL] += value;
                }
            }
            for (int x = 0; x < KERNEL; ++x) sums[y * KERNEL + x] += chain[x];
            sums[TAPS] += chain[KERNEL];
        }
    }
}

template <int RUN>
void weight_gradient(const float* rows, const float* grad, float* partial, Grid grid) {
    const int64_t blocks = (grid.channels + WIDTH - 1) / WIDTH;
#pragma omp parallel
    {
        std::vector<float> map(grid.padded_size());
#pragma omp for collapse(2) schedule(static)
        for (int64_t image = 0; image < grid.images; ++image) {
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t channel = block * WIDTH;
                grid.fill(rows, image, channel, map.data());
                Vec sums[TAPS + 1] = {};
                correlate<RUN>(map.data(), grad, grid, image, channel, sums);
                for (int tap = 0; tap <= TAPS; ++tap) {
                    float* to = partial + (image * (TAPS + 1) + tap) * grid.channels + channel;
                    store(to, sums[tap], grid.valid(channel));
                }
            }
        }
    }
}

// exp(x) for x <= 0; below -87 the result is exp(-87).
inline Vec exponential(Vec x) {
    const Vec low = Vec{} - 87.0f;
    x = x < low ? low : x;
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const Vec power = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const Vec rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
    Vec sum = 1.0f / 5040 * rest + 1.0f / 720;
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest * rest + rest + 1.0f;
    const IntVec scale = (__builtin_convertvector(power, IntVec) + 127) << 23;
    return sum * reinterpret_cast<const Vec&>(scale);
}

// Standard normal distribution at x, and its density.
struct Normal {
    Vec distribution, density;
};

inline Normal normal(Vec x) {
    const Vec size = x < 0.0f ? -x : x;
    const Vec a = size * 0.707106781f;
    const Vec e = exponential(-0.5f * size * size);
    // erfc(a) exp(a^2) as a polynomial in t, fitted for a in [0, 10] to a relative error of 1.2e-8.
    const Vec t = 1.0f / (1.0f + 0.375f * a);
    Vec sum = t * 0.061538761f - 0.287331f;
    sum = sum * t + 0.43240054f;
    sum = sum * t - 0.229415586f;
    sum = sum * t + 0.273726257f;
    sum = sum * t + 0.121504261f;
    sum = sum * t + 0.205313671f;
    sum = sum * t + 0.210649622f;
    sum = sum * t + 0.211613478f;
    const Vec zero = {};
    const Vec tail = size < 14.0f ? 0.5f * sum * t * e : zero;
    const Vec density = size < 14.0f ? 0.398942280f * e : zero;
    return {x < 0.0f ? tail : 1.0f - tail, density};
}

// Features (N, P, K).
struct Shape {
    int64_t images, positions, channels;
};

// Calls visit(i, j, k, width) for every block of `width` channels, whose first element lies at i in
// (N, P, K), at j in (N, K) and at k in (K).
template <class Visit>
void visit_image_rows(Shape shape, int64_t image, int64_t first, int64_t last, Visit visit) {
    const int64_t channels = shape.channels;
    for (int64_t p = first; p < last; ++p) {
        const int64_t row = (image * shape.positions + p) * channels;
        for (int64_t k = 0; k < channels; k += WIDTH) {
            const int width = static_cast<int>(std::min<int64_t>(WIDTH, channels - k));
            visit(row + k, image * channels + k, k, width);
        }
    }
}

template <class Visit>
void visit_rows(Shape shape, Visit visit) {
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t image = 0; image < shape.images; ++image) {
        for (int64_t p = 0; p < shape.positions; ++p) {
            visit_image_rows(shape, image, p, p + 1, visit);
        }
    }
}

// The same, and what `visit` returns is summed over positions into sums (N, K).
template <class Visit>
void sum_rows(Shape shape, float* sums, Visit visit) {
    const int64_t channels = shape.channels;
    const int64_t chains = (shape.positions + CHAIN - 1) / CHAIN;
    std::vector<float> partial(shape.images * chains * channels);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t image = 0; image < shape.images; ++image) {
        for (int64_t chain = 0; chain < chains; ++chain) {
            float* total = partial.data() + (image * chains + chain) * channels;
            const int64_t last = std::min(shape.positions, (chain + 1) * CHAIN);
            auto add = [=](int64_t i, int64_t j, int64_t k, int width) {
                store(total + k, load(total + k, width) + visit(i, j, k, width), width);
            };
            visit_image_rows(shape, image, chain * CHAIN, last, add);
        }
    }
    for (int64_t image = 0; image < shape.images; ++image) {
        float* to = sums + image * channels;
        std::fill(to, to + channels, 0.0f);
        for (int64_t chain = 0; chain < chains; ++chain) {
            const float* from = partial.data() + (image * chains + chain) * channels;
            for (int64_t k = 0; k < channels; ++k) to[k] += from[k];
        }
    }
}

}  // namespace

#define DISPATCH_RUN(function, ...)                      \
    switch (grid.run) {                                  \
        case 8: return function<8>(__VA_ARGS__);         \
        case 7: return function<7>(__VA_ARGS__);         \
        case 4: return function<4>(__VA_ARGS__);         \
        case 2: return function<2>(__VA_ARGS__);         \
        default: return function<1>(__VA_ARGS__);        \
    }

extern "C" {

// out (R, C) = depthwise convolution of rows (R, C) with weight (C, 7, 7), flipped or not, plus
// bias (C) or null.
void depthwise_convolve(const float* rows, const float* weight, const float* bias, float* out,
                        const int64_t* offsets, const int64_t* positions, int64_t images,
                        int64_t height, int64_t width, int64_t channels, int run, int flip) {
    const Grid grid{offsets, positions, images, height, width, channels, run};
    DISPATCH_RUN(convolve, rows, weight, bias, out, grid, flip != 0)
}

// partial (N, 50, C): each image's gradient of the 49 taps and of the bias.
void depthwise_weight_gradient(const float* rows, const float* grad, float* partial,
                               const int64_t* offsets, const int64_t* positions, int64_t images,
                               int64_t height, int64_t width, int64_t channels, int run) {
    const Grid grid{offsets, positions, images, height, width, channels, run};
    DISPATCH_RUN(weight_gradient, rows, grad, partial, grid)
}

// y = gelu(hidden + bias) with bias (K), and the sum of its squares over positions.
void gelu_forward(const float* hidden, const float* bias, float* y, float* squares, int64_t images,
                  int64_t positions, int64_t channels) {
    sum_rows({images, positions, channels}, squares, [=](int64_t i, int64_t, int64_t k, int width) {
        const Vec x = load(hidden + i, width) + load(bias + k, width);
        const Vec value = x * normal(x).distribution;
        store(y + i, value, width);
        return value * value;
    });
}

// With x = hidden + bias: y = gelu(x), its slope gelu'(x), and scaled = y * factor + shift, with
// factor (N, K) and shift (K).
void gelu_again(const float* hidden, const float* bias, const float* factor, const float* shift,
                float* y, float* slope, float* scaled, int64_t images, int64_t positions,
                int64_t channels) {
    visit_rows({images, positions, channels}, [=](int64_t i, int64_t j, int64_t k, int width) {
        const Vec x = load(hidden + i, width) + load(bias + k, width);
        const Normal n = normal(x);
        const Vec value = x * n.distribution;
        store(y + i, value, width);
        store(slope + i, n.distribution + x * n.density, width);
        store(scaled + i, value * load(factor + j, width) + load(shift + k, width), width);
    });
}

// Sum of a * b over positions.
void product_sum(const float* a, const float* b, float* sums, int64_t images, int64_t positions,
                 int64_t channels) {
    sum_rows({images, positions, channels}, sums, [=](int64_t i, int64_t, int64_t, int width) {
        return load(a + i, width) * load(b + i, width);
    });
}

// slope becomes (grad * factor + y * through) * slope, factor and through (N, K); and its sum over
// positions.
void gelu_backward(const float* grad, const float* y, const float* factor, const float* through,
                   float* slope, float* sums, int64_t images, int64_t positions,
                   int64_t channels) {
    sum_rows({images, positions, channels}, sums, [=](int64_t i, int64_t j, int64_t, int width) {
        const Vec direct = load(grad + i, width) * load(factor + j, width);
        const Vec shared = load(y + i, width) * load(through + j, width);
        const Vec value = (direct + shared) * load(slope + i, width);
        store(slope + i, value, width);
        return value;
    });
}

}  // extern "C"
