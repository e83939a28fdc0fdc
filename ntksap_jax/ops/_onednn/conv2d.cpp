// The three sums of a convolution by oneDNN, as one handler of XLA's foreign function interface.
//
// oneDNN computes on one thread at a time here: the batch is cut into chunks, which the caller and
// the threads of XLA's own pool take one after the other. So no second pool of threads competes
// with XLA's or is left dead in a forked child, and a busy core costs one chunk, not the call. The
// caller waits only for chunks that a thread has begun: a pool whose threads all wait is no danger.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "dnnl.hpp"
#include "xla/ffi/api/ffi.h"

// Of the OpenMP that oneDNN brings; the compiler's own might be another.
extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);

namespace ffi = xla::ffi;
using dnnl::memory;
using Dims = memory::dims;

namespace {

enum Sum : int64_t { kOutputs, kInputGradient, kKernelGradient };

// OpenMP's number of threads is a setting of each thread: oneDNN reads it, others' must not change.
struct OneThread {
  int before = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
};

// Memory that a thread keeps from call to call: fresh pages for each would cost much time.
class Buffer {
 public:
  ~Buffer() { std::free(data_); }
  float* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<float*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Not destroyed at exit, when threads of XLA's may still be at work.
dnnl::engine& engine() {
  static auto& cpu = *new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return cpu;
}

dnnl::stream& stream() {
  thread_local dnnl::stream own(engine());
  return own;
}

// The static part of a call; `strides` to `groups` are those of ops._geometry.
struct Shape {
  int64_t sum, batch, height, width, channels, rows, columns, features, kernel_height, kernel_width;
  int64_t stride[2], before[2], after[2], dilation[2], groups;
};

memory::desc activation(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return {{batch, channels, height, width}, memory::data_type::f32, memory::format_tag::nhwc};
}

// HWIO, where the features of a group are side by side.
memory::desc hwio(const Shape& s, bool any) {
  const int64_t in = s.channels / s.groups, out = s.features, tap = in * out;
  Dims dims{out / s.groups, in, s.kernel_height, s.kernel_width};
  Dims strides{1, out, s.kernel_width * tap, tap};
  if (s.groups > 1) {
    dims.insert(dims.begin(), s.groups);
    strides.insert(strides.begin(), out / s.groups);
  }
  if (any) return {dims, memory::data_type::f32, memory::format_tag::any};
  return {dims, memory::data_type::f32, strides};
}

struct Chunk {
  dnnl::primitive run;
  memory::desc source, kernel, outputs, scratchpad;
};

Chunk make_chunk(const Shape& s, int64_t batch, const memory::desc& kernel) {
  using namespace dnnl;
  const auto source = activation(batch, s.channels, s.height, s.width);
  const auto outputs = activation(batch, s.features, s.rows, s.columns);
  const Dims strides{s.stride[0], s.stride[1]}, before{s.before[0], s.before[1]};
  const Dims after{s.after[0], s.after[1]}, dilation{s.dilation[0] - 1, s.dilation[1] - 1};
  const auto algorithm = algorithm::convolution_direct;
  primitive_attr attributes;
  attributes.set_scratchpad_mode(scratchpad_mode::user);
  const convolution_forward::primitive_desc forward(
      engine(), prop_kind::forward_training, algorithm, source,
      s.sum == kOutputs ? kernel : hwio(s, true), outputs, strides, dilation, before, after,
      attributes);
  if (s.sum == kOutputs) {
    return {convolution_forward(forward), source, forward.weights_desc(), outputs,
            forward.scratchpad_desc()};
  }
  if (s.sum == kInputGradient) {
    const convolution_backward_data::primitive_desc backward(
        engine(), algorithm, source, kernel, outputs, strides, dilation, before, after, forward,
        attributes);
    return {convolution_backward_data(backward), source, backward.weights_desc(), outputs,
            backward.scratchpad_desc()};
  }
  const convolution_backward_weights::primitive_desc backward(
      engine(), algorithm, source, kernel, outputs, strides, dilation, before, after, forward,
      attributes);
  return {convolution_backward_weights(backward), source, backward.diff_weights_desc(), outputs,
          backward.scratchpad_desc()};
}

// What is made once for a shape: the primitives of chunks of two sizes, one example apart.
struct Plan {
  int64_t size, num_larger;
  Chunk larger, smaller;
  memory::desc kernel;
  bool reordered;
  dnnl::reorder reorder;

  Plan(const Shape& s, int64_t chunks) : size(s.batch / chunks), num_larger(s.batch % chunks) {
    kernel = hwio(s, false);
    smaller = make_chunk(s, size, hwio(s, true));
    if (num_larger > 0) larger = make_chunk(s, size + 1, smaller.kernel);
    reordered = smaller.kernel != kernel;
    if (!reordered) return;
    const auto& [from, to] = s.sum == kKernelGradient ? std::tie(smaller.kernel, kernel)
                                                      : std::tie(kernel, smaller.kernel);
    reorder = dnnl::reorder({engine(), from, engine(), to});
  }
};

std::shared_ptr<const Plan> find_plan(const Shape& s, int64_t chunks) {
  static auto& mutex = *new std::mutex;
  static auto& plans = *new std::map<std::vector<int64_t>, std::shared_ptr<const Plan>>;
  const auto* numbers = reinterpret_cast<const int64_t*>(&s);
  std::vector<int64_t> key(numbers, numbers + sizeof(Shape) / sizeof(int64_t));
  key.push_back(chunks);
  const std::lock_guard lock(mutex);
  auto& plan = plans[key];
  if (!plan) plan = std::make_shared<const Plan>(s, chunks);
  return plan;
}

// Tasks 0 to total - 1, taken by whoever is free.
struct Job {
  std::function<void(int64_t)> task;  // touched only by who has taken one: the caller waits for it
  int64_t total;
  std::atomic<int64_t> taken = 0, done = 0;
  std::mutex mutex;
  std::string error;

  void work() {
    for (int64_t i = taken++; i < total; i = taken++) {
      try {
        const OneThread setting;
        task(i);
      } catch (const std::exception& e) {
        const std::lock_guard lock(mutex);
        error = e.what();
      }
      if (++done == total) done.notify_all();
    }
  }
};

void run_all(ffi::ThreadPool& pool, int64_t helpers, int64_t total,
             std::function<void(int64_t)> task) {
  const auto job = std::make_shared<Job>();
  job->task = std::move(task);
  job->total = total;
  for (int64_t i = 0; i < std::min(helpers, total - 1); ++i) pool.Schedule([job] { job->work(); });
  job->work();
  for (int64_t done = job->done; done < total; done = job->done) job->done.wait(done);
  if (!job->error.empty()) throw std::runtime_error(job->error);
}

void compute(ffi::ThreadPool& pool, const Shape& s, int64_t stack, const float* left,
             const float* right, float* result) {
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t chunks = std::min(s.batch, threads);
  const OneThread setting;
  const auto plan = find_plan(s, chunks);
  const int64_t image = s.height * s.width * s.channels, output = s.rows * s.columns * s.features;
  const int64_t taps = s.kernel_height * s.kernel_width * s.channels / s.groups * s.features;
  const size_t bytes = plan->smaller.kernel.get_size(), floats = bytes / sizeof(float);

  thread_local Buffer kernels;
  const bool gradient = s.sum == kKernelGradient;
  const int64_t copies = gradient ? stack * chunks : plan->reordered ? stack : 0;
  float* own = kernels.reserve(copies * bytes);
  const auto reorder = [&](float* from, float* to) {
    memory source(gradient ? plan->smaller.kernel : plan->kernel, engine(), from);
    memory target(gradient ? plan->kernel : plan->smaller.kernel, engine(), to);
    plan->reorder.execute(stream(), source, target);
  };
  if (!gradient && plan->reordered) {
    for (int64_t i = 0; i < stack; ++i) {
      reorder(const_cast<float*>(right) + i * taps, own + i * floats);
    }
  }

  run_all(pool, threads - 1, stack * chunks, [&](int64_t task) {
    const int64_t entry = task / chunks, index = task % chunks;
    const int64_t first = index * plan->size + std::min(index, plan->num_larger);
    const Chunk& chunk = index < plan->num_larger ? plan->larger : plan->smaller;
    const int64_t example = entry * s.batch + first;
    thread_local Buffer scratch;
    const auto at = [](const memory::desc& desc, const float* data) {
      return memory(desc, engine(), const_cast<float*>(data));
    };
    const float* source = s.sum == kInputGradient ? result : left;
    const float* outputs = s.sum == kOutputs ? result : gradient ? right : left;
    const float* kernel = gradient          ? own + task * floats
                          : plan->reordered ? own + entry * floats
                                            : right + entry * taps;
    const auto source_at = at(chunk.source, source + example * image);
    const auto outputs_at = at(chunk.outputs, outputs + example * output);
    const auto kernel_at = at(chunk.kernel, kernel);
    chunk.run.execute(
        stream(),
        {{s.sum == kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, source_at},
         {gradient ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, kernel_at},
         {s.sum == kOutputs ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, outputs_at},
         {DNNL_ARG_SCRATCHPAD, at(chunk.scratchpad, scratch.reserve(chunk.scratchpad.get_size()))}});
  });

  if (!gradient) return;
  for (int64_t entry = 0; entry < stack; ++entry) {
    float* total = own + entry * chunks * floats;
    for (int64_t i = 1; i < chunks; ++i) {
      for (size_t j = 0; j < floats; ++j) total[j] += total[i * floats + j];
    }
    if (plan->reordered) reorder(total, result + entry * taps);
    else std::copy_n(total, taps, result + entry * taps);
  }
}

ffi::Error conv2d(ffi::ThreadPool pool, int64_t sum, ffi::Span<const int64_t> steps,
                  ffi::Buffer<ffi::F32> left, ffi::Buffer<ffi::F32> right,
                  ffi::ResultBuffer<ffi::F32> result) {
  const auto source = sum == kInputGradient ? result->dimensions() : left.dimensions();
  const auto kernel = sum == kKernelGradient ? result->dimensions() : right.dimensions();
  const auto outputs = sum == kOutputs         ? result->dimensions()
                       : sum == kInputGradient ? left.dimensions()
                                               : right.dimensions();
  const size_t rank = source.size();
  if (rank < 4 || rank > 5 || kernel.size() != rank || outputs.size() != rank || steps.size() != 9) {
    return ffi::Error::InvalidArgument("conv2d: expected operands of 4 or 5 axes and 9 steps");
  }
  const auto n = source.end() - 4, k = kernel.end() - 4, o = outputs.end() - 4;
  const auto* p = steps.begin();
  const Shape shape{sum,  n[0], n[1], n[2],         n[3],         o[1],         o[2],
                    o[3], k[0], k[1], {p[0], p[1]}, {p[2], p[4]}, {p[3], p[5]}, {p[6], p[7]},
                    p[8]};
  const int64_t stack = rank == 5 ? source[0] : 1;
  try {
    compute(pool, shape, stack, left.typed_data(), right.typed_data(), result->typed_data());
  } catch (const std::exception& e) {
    return ffi::Error::Internal(std::string("conv2d by oneDNN: ") + e.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(ntksap_conv2d, conv2d,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("sum")
                                  .Attr<ffi::Span<const int64_t>>("steps")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
