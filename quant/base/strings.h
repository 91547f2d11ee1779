// Distributions build Abseil with its own string_view, which std::string_view does not convert to.
// This StrCat takes both.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nibble {

inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

namespace strings_internal {

template <class T>
const T& Piece(const T& value) {
  return value;
}
inline absl::string_view Piece(const std::string_view& text) { return ToAbsl(text); }

}  // namespace strings_internal

template <class... Ts>
std::string StrCat(const Ts&... pieces) {
  return absl::StrCat(strings_internal::Piece(pieces)...);
}

}  // namespace nibble
