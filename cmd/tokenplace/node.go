package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"token.place/identity"
	"token.place/internal/devnet"
	"token.place/node"
)

const nodeUsage = `Usage:

	tokenplace node run --relay URL [--relay URL]... [--engine auto|pocket|URL]
	                    [--capacity N] [--identity FILE] [--json]
	tokenplace node id [--identity FILE]

Lends a language model on this computer to a network. It opens connections to the
relays itself, so no port has to be forwarded. Prompts arrive sealed and are
opened here: whoever runs a node can read what it computes on.

	--relay URL        a relay, as it prints itself: https://host:port/#ID
	--engine WHICH     what runs the model:
	                     auto    a local Ollama, LM Studio, vLLM or llama-server that
	                             has a model, else pocket (the default)
	                     pocket  the tiny demonstration model in this program
	                     URL     any OpenAI-compatible server: http://127.0.0.1:8080
	--engine-key FILE  a file with the engine's API key, if it wants one
	--capacity N       requests at one time; default 4
	--identity FILE    the node's key, made if it is not there;
	                   default tokenplace/node.pem in the user's configuration
	--json             print one JSON line: {"id":…,"engine":…,"models":[…]}

The node prints its ID. Give it to those who are to use this node: they pin it
with --node, and no relay can stand in for it. Ctrl-C finishes running answers.

Example:

	$ tokenplace node run --relay https://127.0.0.1:8443/#rvsxhs6y6rqn5uzpbdjq2lgr4e
	iq2lgr4erqn5uzpbdjvsxhs6y6 runs pocket (the built-in demonstration model): pocket
`

func runNode(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "node run", nodeUsage)
	relays := f.relays()
	which := f.String("engine", "auto", "")
	keyFile := f.String("engine-key", "", "")
	capacity := f.Int("capacity", 4, "")
	file := f.identityFile("node")
	asJSON := f.Bool("json", false, "")
	if err := f.parse(args, false); err != nil {
		return err
	}
	if len(relays.values) == 0 {
		return badUsage("name a relay with --relay URL; the relay's operator has the URL, tokenplace relay run prints it")
	}
	if *capacity < 1 || *capacity > 1000 {
		return badUsage("--capacity %d is not within 1 to 1000", *capacity)
	}
	log, err := logger(s)
	if err != nil {
		return err
	}
	key, err := secret(*keyFile)
	if err != nil {
		return err
	}
	cred, err := identity.LoadCredential(*file)
	if err != nil {
		return err
	}
	eng, err := devnet.OpenEngine(ctx, *which, key)
	if err != nil {
		return err
	}
	models, err := eng.Models(ctx)
	if err != nil {
		fmt.Fprintf(s.err, "tokenplace: the engine does not answer yet (%v); the node starts and asks again every 15 s\n", err)
	}
	tuneGC()
	n, err := node.New(node.Config{Credential: cred, Relays: relays.values, Engine: eng, Capacity: *capacity, Log: log})
	if err != nil {
		return err
	}
	names := []string{}
	for _, m := range models {
		names = append(names, m.ID)
	}
	if *asJSON {
		json.NewEncoder(s.out).Encode(struct {
			ID     identity.ID `json:"id"`
			Engine string      `json:"engine"`
			Models []string    `json:"models"`
		}{cred.ID(), eng.Name(), names})
	} else {
		fmt.Fprintf(s.out, "%s runs %s: %s\n", cred.ID(), describe(eng.Name()), strings.Join(names, ", "))
	}
	return n.Run(ctx)
}

// describe says in plain words what an engine is.
func describe(name string) string {
	if name == "pocket" {
		return "pocket (the built-in demonstration model)"
	}
	return name
}

// secret reads a one-line secret from a file; no path is no secret.
func secret(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	key := strings.TrimSpace(string(raw))
	if key == "" || strings.ContainsAny(key, "\r\n") {
		return "", errors.New("read key: " + path + " should hold the key on one line")
	}
	return key, nil
}

func runNodeID(_ context.Context, s streams, args []string) error {
	return printID(s, "node", nodeUsage, args)
}
