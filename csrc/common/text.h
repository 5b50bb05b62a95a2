// An operator's argument that is text. Before torch 2.14 its own conversion to std::string loses 48
// bytes at every call (pytorch/pytorch#191340), and is compiled into the operators.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

namespace diffreg {

struct Text : std::string {
  using std::string::string;
};

}  // namespace diffreg

template <>
struct torch::stable::detail::ToImpl<diffreg::Text> {
  // The string behind `value` is taken over.
  static diffreg::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* letters = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &letters));
    const diffreg::Text text(letters, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
