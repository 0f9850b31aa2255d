// Speaks to a gemmule server through langchaingo's OpenAI client and prints what it got as one JSON object.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/openai"
)

// Outcome is one exchange as the program saw it.
type Outcome struct {
	Text    string         `json:"text,omitempty"`
	Chunks  int            `json:"chunks,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Info    map[string]any `json:"info,omitempty"`
	Calls   []string       `json:"calls,omitempty"`
	Vectors [][]float32    `json:"vectors,omitempty"`
	Error   string         `json:"error,omitempty"`
	Kind    string         `json:"kind,omitempty"`
}

// scripted adds to every request what the scripted engine shall say.
type scripted struct{ script string }

func (s scripted) Do(request *http.Request) (*http.Response, error) {
	if s.script != "" {
		old, err := io.ReadAll(request.Body)
		if err != nil {
			return nil, err
		}
		var body map[string]any
		if err := json.Unmarshal(old, &body); err != nil {
			return nil, err
		}
		body["script"] = s.script
		changed, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		request.Body = io.NopCloser(bytes.NewReader(changed))
		request.ContentLength = int64(len(changed))
	}
	return http.DefaultClient.Do(request)
}

var tool = llms.Tool{Type: "function", Function: &llms.FunctionDefinition{
	Name:        "get_weather",
	Description: "the weather",
	Parameters:  map[string]any{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}},
}}

func main() {
	url := os.Args[1] + "/v1"
	calls := `[{"tokens":[263]},{"text":"{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}"},{"tokens":[264]},` +
		`{"tokens":[263]},{"text":"{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Rome\"}}"},{"tokens":[264]}]`
	broken := `[{"text":"begun"},{"fail":"error"}]`
	results := map[string]Outcome{
		"whole":         ask(url, "scripted", "", false),
		"streamed":      ask(url, "scripted", "", true),
		"tools":         ask(url, "scripted", calls, false, llms.WithTools([]llms.Tool{tool})),
		"toolsStreamed": ask(url, "scripted", calls, true, llms.WithTools([]llms.Tool{tool})),
		"json":          ask(url, "scripted", `[{"text":"{\"a\": 1}"}]`, false, llms.WithJSONMode()),
		"short":         ask(url, "scripted", "", false, llms.WithMaxTokens(3)),
		"unknown":       ask(url, "nope", "", false),
		"broken":        ask(url, "scripted", broken, false),
		"brokenStream":  ask(url, "scripted", broken, true),
		"silent":        ask(url, "scripted", `[{"text":"late","delay_ms":30000}]`, true),
		"long":          long(url),
		"embedded":      embed(url),
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(url, model, script string) (*openai.LLM, error) {
	return openai.New(openai.WithBaseURL(url), openai.WithToken("any"), openai.WithModel(model),
		openai.WithEmbeddingModel(model), openai.WithHTTPClient(scripted{script}))
}

func failed(err error) Outcome {
	mapped := openai.MapError(err)
	outcome := Outcome{Error: err.Error()}
	for name, is := range map[string]func(error) bool{
		"token limit": llms.IsTokenLimitError, "invalid request": llms.IsInvalidRequestError,
		"authentication": llms.IsAuthenticationError, "unavailable": llms.IsProviderUnavailableError,
	} {
		if is(mapped) {
			outcome.Kind = name
		}
	}
	return outcome
}

func ask(url, model, script string, streaming bool, options ...llms.CallOption) Outcome {
	llm, err := open(url, model, script)
	if err != nil {
		return failed(err)
	}
	chunks := 0
	if streaming {
		options = append(options, llms.WithStreamingFunc(func(_ context.Context, _ []byte) error {
			chunks++
			return nil
		}))
	}
	conversation := []llms.MessageContent{
		llms.TextParts(llms.ChatMessageTypeSystem, "Be brief."),
		llms.TextParts(llms.ChatMessageTypeHuman, "Hello from Go."),
	}
	reply, err := llm.GenerateContent(context.Background(), conversation, options...)
	if err != nil {
		return failed(err)
	}
	choice := reply.Choices[0]
	outcome := Outcome{Text: choice.Content, Chunks: chunks, Reason: choice.StopReason, Info: choice.GenerationInfo}
	for _, call := range choice.ToolCalls {
		outcome.Calls = append(outcome.Calls, call.FunctionCall.Name+call.FunctionCall.Arguments)
	}
	return outcome
}

func long(url string) Outcome {
	llm, err := open(url, "scripted", "")
	if err != nil {
		return failed(err)
	}
	if _, err = llm.Call(context.Background(), strings.Repeat("x", 140_000)); err != nil {
		return failed(err)
	}
	return Outcome{}
}

func embed(url string) Outcome {
	llm, err := open(url, "scripted", "")
	if err != nil {
		return failed(err)
	}
	vectors, err := llm.CreateEmbedding(context.Background(), []string{"meteor", "comet", "puppy"})
	if err != nil {
		return failed(err)
	}
	return Outcome{Vectors: vectors}
}
