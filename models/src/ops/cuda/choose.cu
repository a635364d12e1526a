// What is asked of rows of logits, as ../choose.rs has it: the most likely tokens, what log-probabilities are made of, and the
// token at a point of a distribution. Of equal logits the token with the smaller id comes first. Of a row whose largest
// logit is not finite, or that has one that is no number, nothing but that is told.
//
// A block answers for a row, in several passes, of which all but the first find it in a cache. In each pass a warp has a
// stretch of the row, of which a lane takes LEN neighbours at a time. Sums are f64, of at most LEN f32 numbers each.
#include "common.cuh"

struct Question {
    double point;   // in [0, 1)
    float scale;    // of the weights: log2(e) / temperature
    float floor;    // lighter ones weigh nothing
    uint32_t row;
    uint32_t best;  // how many; 1 to MOST_BEST and no more than there are
    uint32_t pick;
    uint32_t token; // that is picked
    uint32_t with_logprobs;
    uint32_t padding;
};

struct Answer {
    double sum;      // of exp(logit - largest)
    double weighted; // of the same, each times its exponent
    double mass;     // of the weights
    uint32_t token;
    float logit;
    uint32_t rank;   // from 1
    float largest;   // no number where any logit is none
};

struct ChooseArgs {
    const void *logits;        // [rows, vocab_size]
    const Question *questions; // [grid]
    Answer *answers;           // [grid]
    uint64_t *best;            // [grid, most_best] places, as many as were asked for, the first first
    int32_t vocab_size;
    int32_t most_best;
};

enum Pick : uint32_t { PICK_BEST, PICK_DRAWN, PICK_GIVEN, PICK_MASS };

constexpr int CHOOSE_WARPS = 16;
constexpr int CHOOSE_THREADS = CHOOSE_WARPS * WARP;
constexpr int GROUP = 2; // neighbouring lanes
constexpr int GROUPS = CHOOSE_THREADS / GROUP;
constexpr float NEGLIGIBLE = -72.13475f; // log2(exp(-50)): what weighs less weighs nothing

// A token's place in the order of likelihood, as a number: a larger one comes before. 0 is nobody's.
typedef uint64_t TokenPlace;

__device__ __forceinline__ TokenPlace place_of(float logit, uint32_t token) {
    uint32_t bits = __float_as_uint(logit + 0.0f); // two zeros are equal
    uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)ascending << 32 | (0xffffffffu - token);
}

__device__ __forceinline__ uint32_t token_at(TokenPlace place) { return 0xffffffffu - (uint32_t)place; }

__device__ __forceinline__ float logit_at(TokenPlace place) {
    uint32_t ascending = place >> 32;
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

template <typename T> struct LogitRow {
    static constexpr int LEN = 16 / sizeof(T);
    struct __align__(16) Piece {
        T logits[LEN];
    };

    const T *logits;
    int vocab_size;

    __device__ __forceinline__ int num_pieces() const { return (vocab_size + LEN - 1) / LEN; }

    // Beyond the row's end is minus infinity, which weighs nothing and comes after all tokens.
    __device__ __forceinline__ void load(int piece, float (&values)[LEN]) const {
        int first = piece * LEN;
        if (first + LEN <= vocab_size && (uintptr_t)logits % sizeof(Piece) == 0) {
            Piece loaded = *(const Piece *)(logits + first);
            for (int i = 0; i < LEN; i++) values[i] = widened(loaded.logits[i]);
        } else {
            for (int i = 0; i < LEN; i++) values[i] = first + i < vocab_size ? widened(logits[first + i]) : -INFINITY;
        }
    }

    // Where this warp's stretch begins, or that of the warp behind it.
    __device__ __forceinline__ int stretch(int warp) const {
        int each = (num_pieces() + CHOOSE_WARPS - 1) / CHOOSE_WARPS;
        return min(warp * each, num_pieces());
    }

    // Shows each of the thread's pieces: its elements and the token of the first.
    template <typename Visit> __device__ __forceinline__ void walk(Visit visit) const {
        int end = stretch(warp_index() + 1);
#pragma unroll 4
        for (int piece = stretch(warp_index()) + lane_index(); piece < end; piece += WARP) {
            float values[LEN];
            load(piece, values);
            visit(values, piece * LEN);
        }
    }
};

struct ChooseScratch {
    TokenPlace places[CHOOSE_THREADS];
    TokenPlace groups[GROUPS];
    double masses[CHOOSE_WARPS];
    double lanes[WARP];
    TokenPlace bound;
    uint32_t token;
    int count;
    int is_number;
};

__device__ __forceinline__ uint64_t from_lane(uint64_t bits, int distance) {
    uint32_t low = __shfl_xor_sync(ALL_LANES, (uint32_t)bits, distance);
    uint32_t high = __shfl_xor_sync(ALL_LANES, (uint32_t)(bits >> 32), distance);
    return (uint64_t)high << 32 | low;
}

__device__ __forceinline__ double warp_total(double x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x += __longlong_as_double((long long)from_lane((uint64_t)__double_as_longlong(x), distance));
    }
    return x;
}

// Leaves every warp's part in `scratch.masses`.
__device__ double block_total(double x, ChooseScratch &scratch) {
    x = warp_total(x);
    __syncthreads(); // whoever still reads the parts of a call before
    if (lane_index() == 0) scratch.masses[warp_index()] = x;
    __syncthreads();
    double total = 0.0;
    for (int warp = 0; warp < CHOOSE_WARPS; warp++) total += scratch.masses[warp];
    return total;
}

// The first place of the row, and in `scratch.groups` that of each group of lanes. Notes whether all are numbers.
template <typename T> __device__ TokenPlace first_place(const LogitRow<T> &row, ChooseScratch &scratch) {
    constexpr int LEN = LogitRow<T>::LEN;
    int own = row.stretch(warp_index()) + lane_index();
    bool has_any = own < row.stretch(warp_index() + 1), is_number = true;
    float largest = -INFINITY;
    uint32_t token = own * LEN;
    row.walk([&](const auto &values, int first) {
        for (int i = 0; i < LEN; i++) {
            is_number &= values[i] == values[i];
            // Tokens ascend, so an equal one never displaces an earlier one.
            if (values[i] > largest) {
                largest = values[i];
                token = first + i;
            }
        }
    });
    TokenPlace place = has_any ? place_of(largest, token) : 0;
    if (threadIdx.x == 0) scratch.is_number = 1;
    __syncthreads();
    if (!is_number) scratch.is_number = 0;
    for (int distance = 1; distance < WARP; distance *= 2) {
        if (distance == GROUP && lane_index() % GROUP == 0) scratch.groups[threadIdx.x / GROUP] = place;
        TokenPlace other = from_lane(place, distance);
        if (other > place) place = other;
    }
    if (lane_index() == 0) scratch.places[warp_index()] = place;
    __syncthreads();
    for (int warp = 0; warp < CHOOSE_WARPS; warp++) place = max(place, scratch.places[warp]);
    __syncthreads();
    return place;
}

// How many of `places` come before `place`.
__device__ __forceinline__ int rank_among(const TokenPlace *places, int count, TokenPlace place) {
    int rank = 0;
    for (int i = 0; i < count; i++) rank += places[i] > place;
    return rank;
}

// In `scratch.places`, in any order, those that do not come after `bound`, as many as there is room for. How many there are.
template <typename T> __device__ int collect(const LogitRow<T> &row, TokenPlace bound, ChooseScratch &scratch) {
    if (threadIdx.x == 0) scratch.count = 0;
    __syncthreads();
    float least = logit_at(bound); // may be no number, which is not larger than anything
    row.walk([&](const auto &values, int first) {
        for (int i = 0; i < LogitRow<T>::LEN; i++) {
            if (values[i] < least) continue;
            TokenPlace place = place_of(values[i], first + i);
            if (place < bound) continue;
            int index = atomicAdd(&scratch.count, 1);
            if (index < CHOOSE_THREADS) scratch.places[index] = place;
        }
    });
    __syncthreads();
    int count = scratch.count;
    __syncthreads();
    return count;
}

// The `wanted` first places. As many groups of lanes have a place of their own that is no worse than the worst of their
// firsts, so what does not come after that one is enough, and seldom much more. Where it is more than there is room for, the
// bound is searched between it and the first of all: no two places are equal, so there is one.
template <typename T>
__device__ void find_best(const LogitRow<T> &row, TokenPlace first, int wanted, TokenPlace *best, ChooseScratch &scratch) {
    if (threadIdx.x == 0) scratch.bound = 1;
    __syncthreads();
    if (threadIdx.x < GROUPS) {
        TokenPlace own = scratch.groups[threadIdx.x];
        if (own > 0 && rank_among(scratch.groups, GROUPS, own) == wanted - 1) scratch.bound = own;
    }
    __syncthreads();
    TokenPlace low = scratch.bound, high = first, bound = low;
    int count = collect(row, bound, scratch);
    while (count < wanted || count > CHOOSE_THREADS) {
        (count < wanted ? high : low) = bound;
        bound = low + (high - low) / 2;
        count = collect(row, bound, scratch);
    }
    if ((int)threadIdx.x < count) {
        TokenPlace own = scratch.places[threadIdx.x];
        int rank = rank_among(scratch.places, count, own);
        if (rank < wanted) best[rank] = own;
    }
}

__device__ __forceinline__ float weight_of(float logit, float largest, const Question &question) {
    float exponent = (logit - largest) * question.scale;
    float weight = exponent < NEGLIGIBLE ? 0.0f : exp2f(exponent);
    return weight < question.floor ? 0.0f : weight;
}

// The weight of all tokens, and in `scratch.masses` that of each warp's stretch.
template <typename T>
__device__ double mass_of(const LogitRow<T> &row, float largest, const Question &question, ChooseScratch &scratch) {
    double mass = 0.0;
    row.walk([&](const auto &values, int) {
        float sum = 0.0f;
        for (int i = 0; i < LogitRow<T>::LEN; i++) sum += weight_of(values[i], largest, question);
        mass += sum;
    });
    return block_total(mass, scratch);
}

// The first of some masses that `left` does not use up, after taking those before from it. Where rounding has used up all, the
// last that is one, of which then all is used up.
__device__ __forceinline__ int reached(const double *masses, int count, double &left) {
    int last = 0;
    for (int i = 0; i < count; i++) {
        if (left < masses[i]) return i;
        if (masses[i] > 0.0) last = i;
        left -= masses[i];
    }
    left = INFINITY;
    return last;
}

// Of this warp's stretch, by all of its lanes, the token at `left` of its mass.
template <typename T>
__device__ uint32_t drawn_of_stretch(
    const LogitRow<T> &row, float largest, const Question &question, double left, ChooseScratch &scratch
) {
    constexpr int LEN = LogitRow<T>::LEN;
    int end = row.stretch(warp_index() + 1), at = row.stretch(warp_index());
    double lane_mass = 0.0;
    auto weigh = [&](int start) {
        float values[LEN], sum = 0.0f;
        int piece = start + lane_index();
        if (piece < end) {
            row.load(piece, values);
            for (int i = 0; i < LEN; i++) sum += weight_of(values[i], largest, question);
        }
        lane_mass = sum;
        return warp_total(lane_mass);
    };
    int last = at;
    bool is_reached = false;
    for (; at < end && !is_reached; at += WARP) {
        double mass = weigh(at);
        if (mass > 0.0) last = at;
        is_reached = left < mass;
        if (!is_reached) left -= mass;
    }
    if (!is_reached) {
        weigh(last);
        left = INFINITY;
    }
    scratch.lanes[lane_index()] = lane_mass;
    __syncwarp();
    int piece = last + reached(scratch.lanes, WARP, left);
    float values[LEN];
    double weights[LEN];
    row.load(piece, values);
    for (int i = 0; i < LEN; i++) weights[i] = weight_of(values[i], largest, question);
    return piece * LEN + reached(weights, LEN, left);
}

// The token at the question's point of all weights, which are added up by id.
template <typename T>
__device__ uint32_t
drawn(const LogitRow<T> &row, float largest, const Question &question, double mass, ChooseScratch &scratch) {
    double left = question.point * mass;
    int warp = reached(scratch.masses, CHOOSE_WARPS, left);
    if (warp_index() == warp) {
        uint32_t token = drawn_of_stretch(row, largest, question, left, scratch);
        if (lane_index() == 0) scratch.token = token;
    }
    __syncthreads();
    return scratch.token;
}

// For log-probabilities and entropy.
template <typename T> __device__ void add_up(const LogitRow<T> &row, float largest, Answer &answer, ChooseScratch &scratch) {
    constexpr float LOG2_E = 1.44269504f;
    double sum = 0.0, weighted = 0.0;
    row.walk([&](const auto &values, int) {
        float some = 0.0f, some_weighted = 0.0f;
        for (int i = 0; i < LogitRow<T>::LEN; i++) {
            float below = values[i] - largest, weight = exp2f(below * LOG2_E);
            some += weight;
            some_weighted += weight > 0.0f ? weight * below : 0.0f; // minus infinity times zero is no number
        }
        sum += some;
        weighted += some_weighted;
    });
    answer.sum = block_total(sum, scratch);
    answer.weighted = block_total(weighted, scratch);
}

template <typename T>
__device__ uint32_t rank_of(const LogitRow<T> &row, float logit, uint32_t token, ChooseScratch &scratch) {
    int before = 0;
    row.walk([&](const auto &values, int first) {
        for (int i = 0; i < LogitRow<T>::LEN; i++) {
            bool is_before = values[i] > logit || (values[i] == logit && (uint32_t)(first + i) < token);
            before += is_before && first + i < row.vocab_size;
        }
    });
    return 1 + (uint32_t)block_total(before, scratch);
}

// Grid (questions), CHOOSE_WARPS warps.
template <typename T> __device__ __forceinline__ void choose(const ChooseArgs &args) {
    __shared__ ChooseScratch scratch;
    const Question question = args.questions[blockIdx.x];
    const LogitRow<T> row = {(const T *)args.logits + (size_t)question.row * args.vocab_size, args.vocab_size};
    TokenPlace *best = args.best + (size_t)blockIdx.x * args.most_best;
    TokenPlace first = first_place(row, scratch);
    float largest = logit_at(first);
    if (!scratch.is_number) largest = NAN;
    Answer answer = {0.0, 0.0, 0.0, token_at(first), largest, 1, largest};
    if (largest > -INFINITY && largest < INFINITY) {
        if (question.best > 1) {
            find_best(row, first, question.best, best, scratch);
        } else if (threadIdx.x == 0) {
            best[0] = first;
        }
        if (question.pick == PICK_DRAWN || question.pick == PICK_MASS) answer.mass = mass_of(row, largest, question, scratch);
        if (question.pick == PICK_DRAWN) answer.token = drawn(row, largest, question, answer.mass, scratch);
        if (question.pick == PICK_GIVEN) answer.token = question.token;
        bool is_inside = answer.token < (uint32_t)args.vocab_size;
        answer.logit = is_inside ? widened(row.logits[answer.token]) : -INFINITY;
        if (question.with_logprobs) {
            add_up(row, largest, answer, scratch);
            if (question.pick == PICK_DRAWN || question.pick == PICK_GIVEN) {
                answer.rank = rank_of(row, answer.logit, answer.token, scratch);
            }
        }
    }
    if (threadIdx.x == 0) args.answers[blockIdx.x] = answer;
}

extern "C" __global__ void __launch_bounds__(CHOOSE_THREADS) choose_f32(const ChooseArgs args) { choose<float>(args); }
extern "C" __global__ void __launch_bounds__(CHOOSE_THREADS) choose_bf16(const ChooseArgs args) { choose<bf16>(args); }
