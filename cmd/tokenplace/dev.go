package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"token.place/identity"
	"token.place/internal/devnet"
	"token.place/internal/telemetry"
)

const devUsage = `Usage:

	tokenplace dev [--engine auto|pocket|URL] [--nodes N] [--listen ADDR]
	               [--alias NAME=MODEL]... [--aliases FILE] [--json]

Starts a whole network on this machine: a relay, nodes, and a local server for any
OpenAI client. All of it is the real thing, with TLS and seals, on loopback.

	--engine WHICH     what runs the model:
	                     auto    a local Ollama, LM Studio, vLLM or llama-server that
	                             has a model, else pocket (the default)
	                     pocket  the tiny demonstration model in this program
	                     URL     any OpenAI-compatible server: http://127.0.0.1:8080
	--engine-key FILE  a file with the engine's API key, if it wants one
	--nodes N          how many nodes; default 2
	--listen ADDR      where the local server listens; default 127.0.0.1:4117, or a
	                   free port if that one is taken
	--alias NAME=MODEL a name that apps ask for, and the model they get; again for
	                   more
	--aliases FILE     the same from a file, one "name = model" in each line
	--json             print one JSON line when ready:
	                   {"base_url":…,"relay":…,"nodes":[{"id":…,"models":[…]}],
	                   "models":[…]}

Ctrl-C stops everything; running answers have 30 s to finish.

Example:

	$ tokenplace dev
	$ tokenplace chat 'What is a river?'
	$ curl -N http://127.0.0.1:4117/v1/chat/completions -d '{"model":"pocket",
	    "stream":true,"messages":[{"role":"user","content":"What is a river?"}]}'
`

func runDev(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "dev", devUsage)
	source := f.engine()
	nodes := f.Int("nodes", 2, "")
	listen := f.String("listen", "", "")
	aliases := f.aliases()
	asJSON := f.Bool("json", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	if *nodes < 1 || *nodes > 100 {
		return badUsage("--nodes %d is not within 1 to 100", *nodes)
	}
	log, err := logger(s, telemetry.Warnings)
	if err != nil {
		return err
	}
	names, err := aliases.load()
	if err != nil {
		return err
	}
	eng, err := source.open(ctx)
	if err != nil {
		return err
	}
	models, err := eng.Models(ctx)
	if err != nil {
		return fmt.Errorf("%w, or use --engine pocket", source.explain(err))
	}
	if len(models) == 0 {
		return fmt.Errorf("--engine %s: it runs but has no models; load one, or use --engine pocket", *source.which)
	}
	fmt.Fprintf(s.err, "engine: %s\n", describe(eng.Name()))
	o := devnet.Options{Engine: eng, Nodes: *nodes, Server: *listen, Aliases: names, Log: log, RelayLog: log}
	if o.Server == "" {
		o.Server = defaultListen
	}
	tuneGC()
	n, err := devnet.Start(ctx, o)
	if *listen == "" && errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintf(s.err, "%s is taken; using a free port\n", defaultListen)
		o.Server = "127.0.0.1:0"
		n, err = devnet.Start(ctx, o)
	}
	var bind *net.OpError
	switch {
	case errors.As(err, &bind) && bind.Op == "listen":
		return listenError(o.Server, err)
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	if err := report(ctx, s, n, *asJSON); err != nil {
		n.Close()
		return err
	}
	err = n.Wait(ctx)
	sayStopping(s)
	n.Close()
	return err
}

// report says where the network is, in one JSON line or for a person.
func report(ctx context.Context, s streams, n *devnet.Net, asJSON bool) error {
	type nodeLine struct {
		ID     identity.ID `json:"id"`
		Models []string    `json:"models"`
	}
	line := struct {
		BaseURL string     `json:"base_url"`
		Relay   string     `json:"relay"`
		Nodes   []nodeLine `json:"nodes"`
		Models  []string   `json:"models"`
	}{BaseURL: n.BaseURL, Relay: n.Relay.String(), Models: []string{}}
	for _, one := range n.Nodes {
		l := nodeLine{ID: one.ID(), Models: []string{}}
		for _, m := range one.Models() {
			l.Models = append(l.Models, m.ID)
		}
		line.Nodes = append(line.Nodes, l)
	}
	models, err := n.Client.Models(ctx)
	if err != nil {
		return err
	}
	for _, m := range models {
		line.Models = append(line.Models, m.ID)
	}
	for _, m := range n.Client.Unmet(models) {
		fmt.Fprintf(s.err, "tokenplace: alias %s stands for %s, which is not there; there are: %s\n", m.ID, m.AliasOf, strings.Join(line.Models, ", "))
	}
	if asJSON {
		return json.NewEncoder(s.out).Encode(line)
	}
	fmt.Fprintf(s.out, "base URL  %s\nmodels    %s\nrelay     %s\n", line.BaseURL, strings.Join(line.Models, ", "), line.Relay)
	for _, one := range line.Nodes {
		fmt.Fprintf(s.out, "node      %s\n", one.ID)
	}
	fmt.Fprintf(s.err, "\nTry it: %s chat 'What is a river?'%s\nCtrl-C stops everything.\n", program(), urlHint(n.BaseURL))
	return nil
}

func sayStopping(s streams) {
	fmt.Fprintln(s.err, "stopping: running answers have 30 s to finish; Ctrl-C again ends them now")
}

// program is how this program was called, as a person would call it again.
func program() string {
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/tokenplace"
	}
	return "tokenplace"
}

func urlHint(base string) string {
	if base == "http://"+defaultListen+"/v1" {
		return ""
	}
	return " --url " + base
}
