/* Where a convolution looks: sizes of x with its channels last, and the places of its result. */
#pragma once
#include <stdint.h>

typedef struct { int64_t samples, height, width, channels, kernel[2], stride[2], padding[2], dilation[2], places[2]; } window_t;
