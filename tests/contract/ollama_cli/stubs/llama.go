// Package llama stands in for the C++ library that Ollama's server links to run models. With it cut out the
// program needs no C++ compiler; what is left, store, create, show and the client, is the original code.
package llama

import "errors"

var errNoEngine = errors.New("this build cannot run models")

// Model would be a loaded vocabulary.
type Model struct{}

// ModelParams says how to load one.
type ModelParams struct{ VocabOnly bool }

// LoadModelFromFile refuses.
func LoadModelFromFile(string, ModelParams) (*Model, error) { return nil, errNoEngine }

// FreeModel has nothing to free.
func FreeModel(*Model) {}

// SchemaToGrammar knows no grammar.
func SchemaToGrammar([]byte) []byte { return nil }

// Tokenize refuses.
func (*Model) Tokenize(string, bool, bool) ([]int, error) { return nil, errNoEngine }

// TokenToPiece knows no tokens.
func (*Model) TokenToPiece(int) string { return "" }
