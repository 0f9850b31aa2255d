// Splits attention among threads.
#pragma once

#include "activations.h"
#include "attention.h"

namespace gemmule {

void attend(const Path& path, const AttentionTask& task);

}  // namespace gemmule
