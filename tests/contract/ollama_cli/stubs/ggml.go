// Package ggml stands in for the arithmetic that `ollama create --quantize` uses; see llama.go beside this file.
package ggml

import fsggml "github.com/ollama/ollama/fs/ggml"

// ConvertToF32 is never reached without --quantize.
func ConvertToF32([]byte, uint32, uint64) []float32 { panic("this build cannot quantize") }

// Quantize is never reached without --quantize.
func Quantize(fsggml.TensorType, []float32, []uint64) []byte { panic("this build cannot quantize") }
