// Package runner stands in for Ollama's inference runner; see llama.go beside this file.
package runner

import "errors"

// Execute refuses, as nothing here can run a model.
func Execute([]string) error { return errors.New("this build cannot run models") }
