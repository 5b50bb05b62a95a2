// An operator's argument that is text. Before torch 2.14 its own conversion to std::string loses 48
// bytes at every call (pytorch/pytorch#191340), and is compiled into the operators.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

namespace diffreg {

struct Text : std::string {};

}  // namespace diffreg

template <>
struct torch::stable::detail::ToImpl<diffreg::Text> {
  // The string behind `value` is taken over.
  static diffreg::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* letters = nullptr;
    bool read = torch_string_length(handle, &length) == AOTI_TORCH_SUCCESS &&
                torch_string_c_str(handle, &letters) == AOTI_TORCH_SUCCESS;
    diffreg::Text text;
    if (read) text.assign(letters, length);
    read &= torch_delete_string(handle) == AOTI_TORCH_SUCCESS;
    STD_TORCH_CHECK(read, "torch does not give an argument of text");
    return text;
  }
};
