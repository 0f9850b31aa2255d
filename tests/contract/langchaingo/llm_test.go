package main

import (
	"os"
	"testing"

	"github.com/tmc/langchaingo/testing/llmtest"
)

// TestLLM is langchaingo's own suite for providers, against the server in GEMMULE_URL.
func TestLLM(t *testing.T) {
	url := os.Getenv("GEMMULE_URL")
	if url == "" {
		t.Skip("GEMMULE_URL names no server")
	}
	llm, err := open(url+"/v1", "scripted", `[{"text":"OK hello"}]`)
	if err != nil {
		t.Fatal(err)
	}
	llmtest.TestLLM(t, llm)
}
