// libFuzzer's target: the CPU operators, called as torch.ops.diffreg.* are, with arguments made of
// the fuzzer's bytes by their types and names in the schema. One operator a case, forward and
// backward. A c10::Error is an answer; what AddressSanitizer or UBSan says is not.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Arguments = std::map<std::string, c10::IValue>;
using Shape = std::vector<int64_t>;

// What an operator gives, under the names that its backward pass calls it by.
struct Operator {
  const char* name;
  std::vector<const char*> results;
};

const std::vector<Operator> kOperators = {
    {"warp", {"gradient"}},
    {"affine_warp", {"gradient"}},
    {"correlation", {"gradient", "moments"}},
    {"deformation_energy", {"grad_diffusion", "grad_bending", "grad_determinant"}},
    {"gradient_scale", {"gradient"}},
    {"jacobian_determinant", {"gradient"}},
    {"local_correlation", {"gradient"}},
    {"mutual_information", {"gradient", "histograms", "ranges"}},
    {"parallel_level_sets", {"gradient"}},
    {"registration_objective",
     {"grad_total", "grad_similarity", "grad_diffusion", "grad_bending", "grad_determinant"}},
};

const std::map<std::string, std::vector<const char*>> kWords = {
    {"interpolation", {"linear", "nearest", "cubic"}},
    {"padding", {"border", "zeros", "reflection"}},
    {"penalty", {"hyperelastic", "log2", "hinge", "relu", ""}},
    {"variant", {"pls", "smooth", "ngf", ""}},
    {"reduce", {"none", "min", "mean", "bound", ""}},
};

class Case {
 public:
  Case(const uint8_t* data, size_t size) : bytes_(data, size) {
    const bool volume = bytes_.ConsumeBool();
    samples_ = bytes_.ConsumeIntegralInRange<int64_t>(0, 3);
    channels_ = bytes_.ConsumeIntegralInRange<int64_t>(1, 3);
    longest_ = volume ? 14 : 70;
    for (int k = 0; k < 2 + volume; ++k) size_.push_back(side());
    other_ = bytes_.ConsumeBool() ? size_ : size_of_another();
    type_ = bytes_.ConsumeBool() ? at::kFloat : at::kDouble;
    if (rarely() && rarely()) type_ = at::kHalf;  // which Python's layer computes in float
  }

  const Operator& drawn_operator() {
    return kOperators[bytes_.ConsumeIntegralInRange<size_t>(0, kOperators.size() - 1)];
  }

  // Calls the operator; arguments that `given` has are those, all others are drawn and kept there.
  std::vector<c10::IValue> call(const std::string& name, Arguments& given) {
    const auto found =
        c10::Dispatcher::singleton().findSchemaOrThrow(("diffreg::" + name).c_str(), "");
    std::vector<c10::IValue> stack;
    for (const auto& argument : found.schema().arguments()) {
      const auto known = given.find(argument.name());
      if (known == given.end()) given[argument.name()] = value(*argument.type(), argument.name());
      stack.push_back(given[argument.name()]);
    }
    found.callBoxed(&stack);
    return stack;
  }

  // As what the operator gave, or, one time in eight, as nothing that it could have given.
  c10::IValue gradient_like(const c10::IValue& result) {
    const at::Tensor& like = result.toTensor();
    const Shape shape(like.sizes().begin(), like.sizes().end());
    if (like.scalar_type() == at::kDouble && type_ != at::kDouble) return result;
    return rarely() ? tensor(wrong(shape)) : tensor(shape);
  }

 private:
  bool rarely() { return bytes_.ConsumeIntegralInRange(0, 7) == 7; }

  int64_t side() { return bytes_.ConsumeIntegralInRange<int64_t>(rarely() ? 0 : 1, longest_); }

  Shape size_of_another() {
    Shape size;
    for (size_t k = 0; k < size_.size(); ++k) size.push_back(side());
    return size;
  }

  Shape wrong(Shape shape) {
    const int64_t length = bytes_.ConsumeIntegralInRange<int64_t>(0, 5);
    if (shape.empty() || bytes_.ConsumeBool()) {
      shape.push_back(length);
    } else if (bytes_.ConsumeBool()) {
      shape.pop_back();
    } else {
      shape[bytes_.ConsumeIntegralInRange<size_t>(0, shape.size() - 1)] = length;
    }
    return shape;
  }

  static Shape field(int64_t samples, int64_t components, const Shape& size) {
    Shape shape = {samples, components};
    shape.insert(shape.end(), size.begin(), size.end());
    return shape;
  }

  // Numbers of the drawn bytes over and over: their bits as they are, or whole and half ones.
  at::Tensor tensor(const Shape& shape) {
    int64_t voxels = 1;
    for (const int64_t length : shape) voxels *= length;
    std::vector<uint8_t> drawn = bytes_.ConsumeBytes<uint8_t>(bytes_.ConsumeIntegralInRange(1, 64));
    if (drawn.empty()) drawn = {3, 5};
    const bool bits = rarely();
    at::Tensor values = at::ones(shape, at::kFloat);
    float* out = values.data_ptr<float>();
    for (int64_t i = 0; i < voxels; ++i) {
      const auto byte = [&](int64_t k) { return uint32_t{drawn[(4 * i + k) % drawn.size()]}; };
      const uint32_t word = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
      if (bits) {
        std::memcpy(out + i, &word, sizeof word);
      } else {
        out[i] = (static_cast<float>(drawn[i % drawn.size()]) - 128.f) / 16.f;
      }
    }
    const bool other_type = rarely() && rarely();
    at::Tensor result = values.to(other_type ? at::kLong : type_);
    if (shape.size() > 1 && rarely())
      result = result.transpose(0, -1).contiguous().transpose(0, -1);
    return result;
  }

  Shape shape_of(const std::string& name) {
    const int64_t dimensions = static_cast<int64_t>(size_.size());
    if (name == "displacement") return field(samples_, dimensions, size_);
    if (name == "matrix") return {samples_, dimensions, dimensions + 1};
    if (name == "mask") return field(samples_, 1, size_);
    if (name == "moving") return field(samples_, channels_, other_);
    if (name.rfind("eps_", 0) == 0) return {samples_};
    return field(samples_, channels_, size_);
  }

  double number() {
    if (rarely()) return bytes_.ConsumeFloatingPoint<double>();
    return bytes_.ConsumeFloatingPointInRange<double>(0.01, 2.0);
  }

  c10::IValue value(const c10::Type& type, const std::string& name) {
    switch (type.kind()) {
      case c10::TypeKind::TensorType:
        return rarely() ? tensor(wrong(shape_of(name))) : tensor(shape_of(name));
      case c10::TypeKind::OptionalType:
        if (bytes_.ConsumeBool()) return c10::IValue();
        return value(*type.containedType(0), name);
      case c10::TypeKind::StringType: {
        const auto& words = kWords.at(name);
        return std::string(words[bytes_.ConsumeIntegralInRange<size_t>(0, words.size() - 1)]);
      }
      case c10::TypeKind::BoolType: return bytes_.ConsumeBool();
      case c10::TypeKind::IntType:
        return bytes_.ConsumeIntegralInRange<int64_t>(rarely() ? -3 : 1, 70);
      case c10::TypeKind::FloatType: return number();
      default: return numbers(type, name);
    }
  }

  c10::IValue numbers(const c10::Type& type, const std::string& name) {
    if (type.containedType(0)->kind() == c10::TypeKind::IntType) return rarely() ? other_ : size_;
    const size_t usual = name == "spacing" ? size_.size() : 4;
    std::vector<double> found(rarely() ? bytes_.ConsumeIntegralInRange<size_t>(0, 6) : usual);
    for (double& one : found) one = number();
    return found;
  }

  FuzzedDataProvider bytes_;
  int64_t samples_, channels_, longest_;
  Shape size_, other_;  // of the fixed grid and of the moving image
  at::ScalarType type_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Case one(data, size);
  try {
    const Operator& op = one.drawn_operator();
    Arguments arguments;
    const auto results = one.call(op.name, arguments);
    for (size_t i = 0; i < op.results.size(); ++i) {
      arguments[op.results[i]] = one.gradient_like(results[i]);
    }
    one.call(std::string(op.name) + "_backward", arguments);
  } catch (const std::runtime_error&) {  // of the stable interface's checks
  } catch (const c10::Error&) {          // of the dispatcher's and torch's own
  }
  return 0;
}
