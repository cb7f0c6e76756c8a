package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"token.place/engine"
	"token.place/identity"
	"token.place/internal/devnet"
	"token.place/internal/telemetry"
	"token.place/node"
)

const nodeUsage = `Usage:

	tokenplace node run --relay URL [--relay URL]... [--engine auto|pocket|URL]
	                    [--engine-key FILE] [--capacity N] [--identity FILE] [--json]
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
with --node, and no relay can stand in for it. It logs when it is connected, and
what is wrong while it is not. node id prints the ID. Ctrl-C takes no more work;
running answers have 30 s to finish.

Example:

	$ tokenplace node run --relay https://127.0.0.1:8443/#rvsxhs6y6rqn5uzpbdjq2lgr4e
	iq2lgr4erqn5uzpbdjvsxhs6y6 runs pocket (the built-in demonstration model): pocket
`

func runNode(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "node run", nodeUsage)
	relays := f.relays()
	source := f.engine()
	capacity := f.Int("capacity", 4, "")
	file := f.identityFile("node")
	asJSON := f.Bool("json", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	if len(relays.values) == 0 {
		return badUsage("name a relay with --relay URL; the relay's operator has the URL, tokenplace relay run prints it")
	}
	if *capacity < 1 || *capacity > 1000 {
		return badUsage("--capacity %d is not within 1 to 1000", *capacity)
	}
	log, err := logger(s, telemetry.New)
	if err != nil {
		return err
	}
	cred, err := loadIdentity(*file)
	if err != nil {
		return err
	}
	eng, err := source.open(ctx)
	if err != nil {
		return err
	}
	models, err := eng.Models(ctx)
	if err != nil {
		fmt.Fprintf(s.err, "tokenplace: %v. The node starts and asks again every 15 s\n", source.explain(err))
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
	switch name {
	case "pocket":
		return "pocket (the built-in demonstration model)"
	case "other":
		return "an OpenAI-compatible engine"
	}
	return name
}

// engineFlags are --engine and --engine-key.
type engineFlags struct{ which, keyFile *string }

func (f *flags) engine() engineFlags {
	return engineFlags{f.String("engine", "auto", ""), f.String("engine-key", "", "")}
}

// open opens what --engine names.
func (e engineFlags) open(ctx context.Context) (*engine.Engine, error) {
	which := *e.which
	if which != "auto" && which != "pocket" && !strings.HasPrefix(which, "http://") && !strings.HasPrefix(which, "https://") {
		return nil, badUsage("--engine %q: want auto, pocket, or a URL such as http://127.0.0.1:8080", clip(which))
	}
	key, err := secret(*e.keyFile)
	if err != nil {
		return nil, err
	}
	eng, err := devnet.OpenEngine(ctx, which, key)
	if err != nil {
		return nil, fmt.Errorf("--engine %s: %w", clip(which), err)
	}
	return eng, nil
}

// explain says what to do about an engine that does not list its models.
func (e engineFlags) explain(err error) error {
	hint := "start it, or check the URL"
	switch {
	case errors.Is(err, engine.ErrKey):
		hint = "give its key with --engine-key FILE"
	case errors.Is(err, engine.ErrBadAnswer):
		hint = "check that the URL is that of an OpenAI-compatible server"
	}
	return fmt.Errorf("--engine %s: %w: %s", clip(*e.which), err, hint)
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
