// Compiles the functions of one file for an instruction set that the rest of the library does not assume.
//
// GEMMULE_TARGET(features) ... GEMMULE_TARGET_END around everything, headers of templates included, so that
// every instantiation is inlined into code of the same target.
#pragma once

#define GEMMULE_STRING(text) #text
#if defined(__clang__)
#define GEMMULE_TARGET(features) \
  _Pragma(GEMMULE_STRING(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define GEMMULE_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define GEMMULE_TARGET(features) _Pragma("GCC push_options") _Pragma(GEMMULE_STRING(GCC target(features)))
#define GEMMULE_TARGET_END _Pragma("GCC pop_options")
#endif
