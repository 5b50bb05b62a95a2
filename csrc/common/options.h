// An operator's options: the names they have in its arguments, and their values as types, so that
// a kernel or a loop over voxels has no choice left in it.
#pragma once

#include <type_traits>

namespace diffreg {

// A value and its name. Every option has a table of these beside its type; the drivers look names
// up in it (parse, check.h).
template <typename Value>
struct Named {
  const char* name;
  Value value;
};

template <auto constant>
using Constant = std::integral_constant<decltype(constant), constant>;

// Calls run(Constant<value>()) for the one of `values` that `value` is.
template <auto... values, typename Value, typename Run>
void dispatch_value(Value value, const Run& run) {
  static_cast<void>(((value == values && (run(Constant<values>()), true)) || ...));
}

}  // namespace diffreg
