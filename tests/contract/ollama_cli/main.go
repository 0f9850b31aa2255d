// The real ollama command, built from its own cmd package, to be pointed at a gemmule server; as
// `ollama parse-modelfiles` its Modelfile parser alone.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/cmd"
	"github.com/ollama/ollama/parser"
	"github.com/spf13/cobra"
	"golang.org/x/mod/semver"
)

// parsed is what one text says: its commands in order, or why it is none.
type parsed struct {
	Commands [][2]string `json:"commands"`
	Error    string      `json:"error,omitempty"`
}

func parse(text []byte) (found parsed) {
	file, err := parser.ParseFile(bytes.NewReader(text))
	if err != nil {
		return parsed{Error: err.Error()}
	}
	for _, command := range file.Commands {
		found.Commands = append(found.Commands, [2]string{command.Name, command.Args})
		if command.Name == "requires" && !semver.IsValid("v"+strings.TrimPrefix(command.Args, "v")) {
			return parsed{Error: fmt.Sprintf("%q is no version", command.Args)}
		}
		if known[command.Name] {
			continue
		}
		if _, err := api.FormatParams(map[string][]string{command.Name: {command.Args}}); err != nil {
			return parsed{Error: err.Error()}
		}
	}
	return found
}

// known are the commands that are no parameters.
var known = map[string]bool{
	"model": true, "license": true, "template": true, "system": true, "adapter": true,
	"renderer": true, "parser": true, "message": true, "requires": true,
}

// parseAll reads a JSON list of texts, in base64, and writes what each says.
func parseAll() error {
	var texts [][]byte
	if err := json.NewDecoder(os.Stdin).Decode(&texts); err != nil {
		return err
	}
	found := make([]parsed, 0, len(texts))
	for _, text := range texts {
		found = append(found, parse(text))
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "parse-modelfiles" {
		cobra.CheckErr(parseAll())
		return
	}
	cobra.CheckErr(cmd.NewCLI().ExecuteContext(context.Background()))
}
