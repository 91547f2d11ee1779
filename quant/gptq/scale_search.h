// Scales chosen among candidates, by the error that rounding makes under them; the other way,
// ComputeRowScales, takes them from the largest weight alone. Private to gptq/.
//
// The error of a group under S is sum_c h_c (w_c - q(w_c; S))^2, h = diag(H): the output's error
// where inputs are uncorrelated. With S_g the group's scale as ComputeGroupScale has it and t of
// 0.5, 0.55, .. 1, the candidates are
//   NONE  t S_g
//   M1    2^e, e of ceil - 2 .. ceil + 1, ceil = ceil(log2 S_g); e is kept from L - 11 to L, L
//         the largest ceil of the row
//   M2    the row's scale t S_max and, for each t, k of floor - 1 .. ceil + 1 around
//         log2(t S_max / S_g), kept in 0..11; the t whose groups' least errors sum to the least
// ComputeRowScales' choice is among them for every rounding of M2. Of equal candidates the one
// nearest to it is taken.
#pragma once

#include <ATen/ATen.h>

#include "quant/formats/formats.h"
#include "quant/gptq/packing.h"

namespace nibble {

// w: f32 [N, K], finite; spec: symmetric; column_weights: f32 [K], h, at least 0. By tensor
// operations on w's device, over so many rows at a time that temporaries stay small. Clamped are
// groups whose S_g is more than 2^11 below the row's scale.
MatrixScales SearchScales(const WeightSpec& spec, const at::Tensor& w,
                          const at::Tensor& column_weights);

// RoundToFormat of every element, f32, to the bit.
at::Tensor RoundTensor(Format format, const at::Tensor& x);

}  // namespace nibble
