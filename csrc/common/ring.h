// CPU only: the last rows of an image that is computed row by row.
#pragma once

#include <cstdint>
#include <vector>

namespace diffreg {

template <typename T>
class Ring {
 public:
  Ring(int64_t rows, int64_t width) : rows_(rows), width_(width), values_(rows * width) {}

  int64_t rows() const { return rows_; }
  T* row(int64_t y) { return &values_[y % rows_ * width_]; }
  const T* row(int64_t y) const { return &values_[y % rows_ * width_]; }

 private:
  int64_t rows_, width_;
  std::vector<T> values_;
};

}  // namespace diffreg
