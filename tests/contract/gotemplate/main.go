// Renders templates with the real text/template, as the oracle of a differential test.
//
// Reads one JSON object per line, {"template": text, "data": value}, and answers each with
// {"output": base64, "error": text}. Functions and options are those that model templates get.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log"
	"os"
	"slices"
	"text/template"
)

type request struct {
	Template string `json:"template"`
	Data     any    `json:"data"`
}

type answer struct {
	Output []byte `json:"output"`
	Error  string `json:"error"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	},
}

// clip gives every slice the capacity of its length: JSON decoding leaves spare room, which `slice` can reach.
func clip(value any) any {
	switch value := value.(type) {
	case []any:
		for i := range value {
			value[i] = clip(value[i])
		}
		return slices.Clip(value)
	case map[string]any:
		for key := range value {
			value[key] = clip(value[key])
		}
	}
	return value
}

func render(r request) (string, error) {
	parsed, err := template.New("t").Option("missingkey=zero").Funcs(functions).Parse(r.Template)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, clip(r.Data))
	return out.String(), err
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			log.Fatal(err)
		}
		text, err := render(r)
		a := answer{Output: []byte(text)}
		if err != nil {
			a.Error = err.Error()
		}
		if err := encoder.Encode(a); err != nil {
			log.Fatal(err)
		}
	}
}
