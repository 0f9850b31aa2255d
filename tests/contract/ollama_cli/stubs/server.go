// Package server stands in for Ollama's own server, which the command links for `serve` alone: without it the
// program needs no C++ and builds in seconds. Everything a client does is the original code.
package server

import (
	"errors"
	"net"
)

// Serve refuses: the server under test is somebody else.
func Serve(net.Listener) error { return errors.New("this build is a client only") }
