// Speaks to a gemmule server through langchaingo's Ollama client and prints what it got as one JSON object.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/ollama"
)

// Outcome is one exchange as the program saw it.
type Outcome struct {
	Text     string         `json:"text,omitempty"`
	Chunks   int            `json:"chunks,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	Info     map[string]any `json:"info,omitempty"`
	Vectors  [][]float32    `json:"vectors,omitempty"`
	Error    string         `json:"error,omitempty"`
	Thinking string         `json:"thinking,omitempty"`
}

func main() {
	url := os.Args[1]
	results := map[string]Outcome{
		"whole":    ask(url, "scripted", nil),
		"streamed": stream(url),
		"json":     ask(url, "scripted", []ollama.Option{ollama.WithFormat("json")}),
		"pulled":   ask(url, "scripted", []ollama.Option{ollama.WithPullModel()}),
		"short":    ask(url, "scripted", nil, llms.WithMaxTokens(3)),
		"unknown":  ask(url, "nope", nil),
		"embedded": embed(url),
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(url, model string, more []ollama.Option) (*ollama.LLM, error) {
	return ollama.New(append([]ollama.Option{ollama.WithServerURL(url), ollama.WithModel(model)}, more...)...)
}

var conversation = []llms.MessageContent{
	llms.TextParts(llms.ChatMessageTypeSystem, "Be brief."),
	llms.TextParts(llms.ChatMessageTypeHuman, "Hello from Go."),
}

func ask(url, model string, more []ollama.Option, options ...llms.CallOption) Outcome {
	llm, err := open(url, model, more)
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	reply, err := llm.GenerateContent(context.Background(), conversation, options...)
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	choice := reply.Choices[0]
	return Outcome{Text: choice.Content, Reason: choice.StopReason, Info: choice.GenerationInfo}
}

func stream(url string) Outcome {
	outcome := Outcome{}
	said := ""
	got := ask(url, "scripted", nil, llms.WithStreamingFunc(func(_ context.Context, chunk []byte) error {
		outcome.Chunks++
		said += string(chunk)
		return nil
	}))
	got.Chunks = outcome.Chunks
	if got.Error == "" && said != got.Text {
		got.Error = fmt.Sprintf("streamed %q but returned %q", said, got.Text)
	}
	return got
}

func embed(url string) Outcome {
	llm, err := open(url, "scripted", nil)
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	vectors, err := llm.CreateEmbedding(context.Background(), []string{"one", "two"})
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	return Outcome{Vectors: vectors}
}
