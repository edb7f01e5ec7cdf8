// Instance norm, ReLU and 2x2 average pooling of maps that lie channels last, for CPUs.
//
// One image is worked on at a time, so that its map is read once from memory and then from the
// core's own cache. Pixels are read in the order of memory, a block of channels at a time, whose
// sums stay in registers.

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

constexpr int LANES = 16;  // floats of 64 bytes; a narrower CPU takes several registers for one
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct BFloat16 {
    uint16_t bits;
};

// `count` values at `at`, and zeros up to a whole vector
template <bool whole>
inline Floats load(const float* at, int count) {
    Floats values = {};
    std::memcpy(&values, at, whole ? sizeof values : count * sizeof(float));
    return values;
}

template <bool whole>
inline Floats load(const BFloat16* at, int count) {
    Halves halves = {};
    std::memcpy(&halves, at, whole ? sizeof halves : count * sizeof(BFloat16));
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

template <bool whole>
inline void store(float* at, Floats values, int count) {
    std::memcpy(at, &values, whole ? sizeof values : count * sizeof(float));
}

// rounds to the nearest, ties to even; NaN stays NaN
template <bool whole>
inline void store(BFloat16* at, Floats values, int count) {
#ifdef __AVX512BF16__
    Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)values);  // subnormal values become 0
#else
    Words bits = (Words)values;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words nan = (Words)(values != values);
    Halves halves = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves);
#endif
    std::memcpy(at, &halves, whole ? sizeof halves : count * sizeof(BFloat16));
}

struct Size {
    int64_t threads, images, channels, height, width;
};

// a block of `blocks` vectors of channels, of which the last has `last` values
template <typename T, int blocks, bool whole>
struct Block {
    const Size& size;
    int last;

    inline Floats at(const T* pixel, int block) const {
        return load<whole>(pixel + block * LANES, last);
    }

    inline Floats of(const float* values, int block) const {
        return load<whole>(values + block * LANES, last);
    }

    // the mean, and 1 / sqrt(variance + eps), by sums around the mean of the first row: at most
    // sqrt(height - 1) standard deviations from that of the map, so that few digits cancel
    void moments(const T* x, float eps, float* mean, float* rstd) const {
        const float pixels = float(size.height * size.width);
        Floats middle[blocks] = {}, first[blocks] = {}, second[blocks] = {};
        for (int64_t column = 0; column < size.width; column++)
            for (int b = 0; b < blocks; b++) middle[b] += at(x + column * size.channels, b);
        for (int b = 0; b < blocks; b++) middle[b] /= float(size.width);
        for (int64_t row = 0; row < size.height; row++) {
            Floats sum[blocks] = {}, squares[blocks] = {};
            const T* pixel = x + row * size.width * size.channels;
            for (int64_t column = 0; column < size.width; column++, pixel += size.channels)
                for (int b = 0; b < blocks; b++) {
                    Floats centred = at(pixel, b) - middle[b];
                    sum[b] += centred;
                    squares[b] += centred * centred;
                }
            for (int b = 0; b < blocks; b++) first[b] += sum[b], second[b] += squares[b];
        }
        for (int b = 0; b < blocks; b++) {
            Floats apart = first[b] / pixels;
            Floats variance = second[b] / pixels - apart * apart + eps;
            Floats inverse;
            for (int lane = 0; lane < LANES; lane++) inverse[lane] = 1 / std::sqrt(variance[lane]);
            store<whole>(mean + b * LANES, middle[b] + apart, last);
            store<whole>(rstd + b * LANES, inverse, last);
        }
    }

    // y = slope * (x - middle) + offset, the norm of a pixel
    struct Affine {
        Floats middle[blocks], slope[blocks], offset[blocks];

        Affine(const Block& block, const float* scale, const float* shift, const float* mean,
               const float* rstd) {
            for (int b = 0; b < blocks; b++) {
                middle[b] = block.of(mean, b);
                slope[b] = block.of(rstd, b) * block.of(scale, b);
                offset[b] = block.of(shift, b);
            }
        }
    };

    void forward(const T* x, const float* scale, const float* shift, float eps, T* out,
                 float* mean, float* rstd) const {
        moments(x, eps, mean, rstd);
        const Affine to(*this, scale, shift, mean, rstd);
        const int64_t down = size.width * size.channels;
        for (int64_t row = 0; row < size.height / 2; row++)
            for (int64_t column = 0; column < size.width / 2; column++, out += size.channels) {
                const T* pixel = x + 2 * (row * down + column * size.channels);
                for (int b = 0; b < blocks; b++) {
                    Floats total = {};
                    for (int64_t step : {int64_t(0), size.channels, down, down + size.channels}) {
                        Floats centred = at(pixel + step, b) - to.middle[b];
                        Floats y = centred * to.slope[b] + to.offset[b];
                        total += y < 0 ? Floats{} : y;
                    }
                    store<whole>(out + b * LANES, total * 0.25f, last);
                }
            }
    }

    void backward(const T* x, const float* scale, const float* shift, const float* mean,
                  const float* rstd, const T* grad, T* grad_x, float* grad_scale,
                  float* grad_shift) const {
        const Affine to(*this, scale, shift, mean, rstd);
        // of y at a pixel, whose distance from the mean is `centred`
        auto gradient = [&](Floats centred, Floats quarter, int b) {
            return centred * to.slope[b] + to.offset[b] <= 0 ? Floats{} : quarter;
        };
        Floats plain[blocks] = {}, weighted[blocks] = {};
        const int64_t down = size.width * size.channels;
        const int64_t rows = size.height / 2, columns = size.width / 2;
        for (int64_t row = 0; row < rows; row++) {
            Floats sum[blocks] = {}, product[blocks] = {};
            for (int64_t column = 0; column < columns; column++) {
                const T* pixel = x + 2 * (row * down + column * size.channels);
                const T* pooled = grad + (row * columns + column) * size.channels;
                for (int b = 0; b < blocks; b++) {
                    Floats quarter = at(pooled, b) * 0.25f;
                    for (int64_t step : {int64_t(0), size.channels, down, down + size.channels}) {
                        Floats centred = at(pixel + step, b) - to.middle[b];
                        Floats g = gradient(centred, quarter, b);
                        sum[b] += g;
                        product[b] += g * centred;
                    }
                }
            }
            for (int b = 0; b < blocks; b++) plain[b] += sum[b], weighted[b] += product[b];
        }
        Floats level[blocks], tilt[blocks];
        for (int b = 0; b < blocks; b++) {
            Floats inverse = of(rstd, b), share = to.slope[b] / float(size.height * size.width);
            weighted[b] *= inverse;
            level[b] = plain[b] * share;
            tilt[b] = weighted[b] * share * inverse;
            store<whole>(grad_shift + b * LANES, plain[b], last);
            store<whole>(grad_scale + b * LANES, weighted[b], last);
        }
        for (int64_t row = 0; row < size.height; row++)
            for (int64_t column = 0; column < size.width; column++) {
                const int64_t place = row * down + column * size.channels;
                const bool counts = row < 2 * rows && column < 2 * columns;
                const T* pooled = grad + (row / 2 * columns + column / 2) * size.channels;
                for (int b = 0; b < blocks; b++) {
                    Floats centred = at(x + place, b) - to.middle[b];
                    Floats g = {};
                    if (counts) g = gradient(centred, at(pooled, b) * 0.25f, b);
                    store<whole>(grad_x + place + b * LANES,
                                 to.slope[b] * g - level[b] - centred * tilt[b], last);
                }
            }
    }
};

// calls `work` on every block of channels of every image, images side by side
template <typename T, typename Work>
void each(const Size& size, Work work) {
#pragma omp parallel for schedule(static) num_threads(int(size.threads))
    for (int64_t image = 0; image < size.images; image++) {
        int64_t c = 0;
        for (; c + 8 * LANES <= size.channels; c += 8 * LANES)
            work(Block<T, 8, true>{size, LANES}, image, c);
        for (; c + 2 * LANES <= size.channels; c += 2 * LANES)
            work(Block<T, 2, true>{size, LANES}, image, c);
        for (; c < size.channels; c += LANES) {
            const int rest = int(size.channels - c < LANES ? size.channels - c : LANES);
            work(Block<T, 1, false>{size, rest}, image, c);
        }
    }
}

template <typename T>
void forward(const Size& size, const T* x, const float* scale, const float* shift, float eps,
             T* out, float* mean, float* rstd) {
    const int64_t map = size.channels * size.height * size.width;
    const int64_t pooled = size.channels * (size.height / 2) * (size.width / 2);
    each<T>(size, [&](auto block, int64_t image, int64_t c) {
        const int64_t channel = image * size.channels + c;
        block.forward(x + image * map + c, scale + c, shift + c, eps, out + image * pooled + c,
                      mean + channel, rstd + channel);
    });
}

template <typename T>
void backward(const Size& size, const T* x, const float* scale, const float* shift,
              const float* mean, const float* rstd, const T* grad, T* grad_x, float* grad_scale,
              float* grad_shift) {
    const int64_t map = size.channels * size.height * size.width;
    const int64_t pooled = size.channels * (size.height / 2) * (size.width / 2);
    each<T>(size, [&](auto block, int64_t image, int64_t c) {
        const int64_t channel = image * size.channels + c;
        block.backward(x + image * map + c, scale + c, shift + c, mean + channel, rstd + channel,
                       grad + image * pooled + c, grad_x + image * map + c, grad_scale + channel,
                       grad_shift + channel);
    });
}

}  // namespace

#define FUNCTIONS(T, name)                                                                       \
    extern "C" void forward_##name(int64_t threads, int64_t images, int64_t channels,            \
                                   int64_t height, int64_t width, const T* x,                    \
                                   const float* scale, const float* shift, float eps, T* out,    \
                                   float* mean, float* rstd) {                                   \
        forward<T>({threads, images, channels, height, width}, x, scale, shift, eps, out, mean,  \
                   rstd);                                                                        \
    }                                                                                            \
    extern "C" void backward_##name(int64_t threads, int64_t images, int64_t channels,           \
                                    int64_t height, int64_t width, const T* x,                   \
                                    const float* scale, const float* shift, const float* mean,   \
                                    const float* rstd, const T* grad, T* grad_x,                 \
                                    float* grad_scale, float* grad_shift) {                      \
        backward<T>({threads, images, channels, height, width}, x, scale, shift, mean, rstd,     \
                    grad, grad_x, grad_scale, grad_shift);                                       \
    }

FUNCTIONS(float, float32)
FUNCTIONS(BFloat16, bfloat16)
