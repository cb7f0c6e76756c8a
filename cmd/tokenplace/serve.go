package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"token.place/client"
	"token.place/identity"
	"token.place/internal/telemetry"
)

const serveUsage = `Usage:

	tokenplace serve --relay URL --node ID [--node ID]... [--listen ADDR]
	                 [--alias NAME=MODEL]... [--aliases FILE] [--api-key FILE]
	                 [--allow-host HOST]... [--allow-origin O]... [--json]

Serves the OpenAI API on this machine. Each request is sealed to a node before it
leaves, so whatever speaks to OpenAI can use it: set its base URL to the one that
this prints, and its API key to anything.

	--relay URL        a relay, as it prints itself: https://host:port/#ID; again for more
	--node ID          a node that you trust to read your prompts; again for more.
	                   tokenplace models --relay URL lists what there is. Only these
	                   nodes are ever used, and no relay can stand in for one
	--listen ADDR      where to listen; default 127.0.0.1:4117. Only this machine can
	                   reach 127.0.0.1, and that is wise: there is no encryption here
	--alias NAME=MODEL a name that apps ask for, and the model they get:
	                   gpt-5-chat-latest=pocket; again for more
	--aliases FILE     the same from a file, one "name = model" in each line
	--allow-host HOST  also answer when called by this name (gpu.lan); again for more.
	                   Without it only to localhost, 127.0.0.0/8 and [::1]
	--allow-origin O   also answer to web pages from there (https://chat.example)
	--api-key FILE     a file with a key that apps must send; default none
	--json             print one JSON line: {"base_url":…,"models":[…]}

Ctrl-C stops it; running answers have 30 s to finish.

Example:

	$ tokenplace serve --relay https://127.0.0.1:8443/#rvsxhs6y6rqn5uzpbdjq2lgr4e \
	    --node iq2lgr4erqn5uzpbdjvsxhs6y6 --alias gpt-5-chat-latest=pocket
	http://127.0.0.1:4117/v1
`

// defaultListen is where the local server is found unless told otherwise.
const defaultListen = "127.0.0.1:4117"

// aliasFlags are --alias and --aliases.
type aliasFlags struct {
	each *list[[2]string]
	file *string
}

func (f *flags) aliases() aliasFlags {
	l := &list[[2]string]{parse: func(s string) ([2]string, error) {
		alias, model, err := client.ParseAlias(s)
		return [2]string{alias, model}, err
	}}
	f.Var(l, "alias", "")
	return aliasFlags{l, f.String("aliases", "", "")}
}

func (a aliasFlags) load() (map[string]string, error) {
	all := map[string]string{}
	if *a.file != "" {
		var err error
		if all, err = client.LoadAliases(*a.file); err != nil {
			return nil, err
		}
	}
	for _, one := range a.each.values {
		all[one[0]] = one[1]
	}
	return all, nil
}

func runServe(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "serve", serveUsage)
	relays, nodes, aliases := f.relays(), f.ids("node"), f.aliases()
	listen := f.String("listen", defaultListen, "")
	hosts, origins := f.words("allow-host"), f.words("allow-origin")
	keyFile := f.String("api-key", "", "")
	asJSON := f.Bool("json", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	if _, err := logger(s, telemetry.New); err != nil { // nothing is logged here, but a typo is one
		return err
	}
	key, err := secret(*keyFile)
	if err != nil {
		return err
	}
	tuneGC()
	transport, err := openClient(relays.values, nodes.values, aliases)
	if err != nil {
		return err
	}
	defer transport.Close()
	srv, err := client.NewServer(client.ServerConfig{Transport: transport, Hosts: hosts.values, Origins: origins.values, Key: key})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return listenError(*listen, err)
	}
	base := "http://" + ln.Addr().String() + "/v1"
	models := announce(ctx, s, transport)
	if *asJSON {
		json.NewEncoder(s.out).Encode(struct {
			BaseURL string   `json:"base_url"`
			Models  []string `json:"models"`
		}{base, models})
	} else {
		fmt.Fprintln(s.out, base)
	}
	defer context.AfterFunc(ctx, func() { sayStopping(s) })()
	return srv.Serve(ctx, ln)
}

// openClient makes the client that flags describe.
func openClient(relays []identity.Relay, nodes []identity.ID, aliases aliasFlags) (*client.Transport, error) {
	if len(relays) == 0 {
		return nil, badUsage("name a relay with --relay URL; tokenplace relay run prints it")
	}
	if len(nodes) == 0 {
		return nil, badUsage("pin a node with --node ID, one whose operator you trust to read your prompts; tokenplace node run prints it")
	}
	names, err := aliases.load()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Relays: relays, Trust: identity.Trust{Nodes: nodes}, Aliases: names})
}

// needsRelay refuses flags that mean something only with --relay. A pin that is
// passed over without a word would send a prompt to another node.
func needsRelay(nodes *list[identity.ID], aliases aliasFlags) error {
	if len(nodes.values) > 0 || len(aliases.each.values) > 0 || *aliases.file != "" {
		return badUsage("--node, --alias and --aliases need --relay: without it, the local server has its own")
	}
	return nil
}

// announce asks once what there is, and says so if that is nothing: the server
// starts all the same, nodes may come later.
func announce(ctx context.Context, s streams, t *client.Transport) []string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	names := []string{}
	models, err := t.Models(ctx)
	for _, m := range models {
		names = append(names, m.ID)
	}
	var e *client.Error
	switch {
	case errors.As(err, &e):
		fmt.Fprintf(s.err, "tokenplace: not ready yet: %s\n", e.Message)
	case err == nil && len(names) == 0:
		fmt.Fprintln(s.err, "tokenplace: none of the pinned nodes is connected yet; tokenplace models shows what the relay lists")
	case err == nil:
		for _, m := range t.Unmet(models) {
			fmt.Fprintf(s.err, "tokenplace: alias %s stands for %s, which no pinned node offers now; there are: %s\n", m.ID, m.AliasOf, strings.Join(names, ", "))
		}
	}
	return names
}

const modelsUsage = `Usage:

	tokenplace models [--relay URL --node ID...] [--url URL] [--json]

Lists the models that can be asked for. With --relay it asks the relay itself and
also shows each node, why a node is refused, and so which IDs there are to pin.
Without, it asks the local server that tokenplace dev or serve started.

	--relay URL   a relay, as it prints itself; again for more
	--node ID     a node that you trust; again for more
	--url URL     base URL of the local server; default http://127.0.0.1:4117/v1
	--json        {"models":[…]} or, with --relay, {"models":[…],"nodes":[…]}

Example:

	$ tokenplace models
	pocket	1024 tokens
`

type modelLine struct {
	ID            string `json:"id"`
	AliasOf       string `json:"alias_of,omitempty"`
	ContextLength int    `json:"context_length,omitempty"`
}

type nodeLine struct {
	ID      identity.ID `json:"id"`
	Relay   string      `json:"relay"`
	Models  []string    `json:"models"`
	Refused string      `json:"refused,omitempty"`
}

func runModels(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "models", modelsUsage)
	relays, nodes, aliases := f.relays(), f.ids("node"), f.aliases()
	base := f.String("url", "http://"+defaultListen+"/v1", "")
	asJSON := f.Bool("json", false, "")
	if _, err := f.parse(args, false); err != nil {
		return err
	}
	var list struct {
		Models []modelLine `json:"models"`
		Nodes  []nodeLine  `json:"nodes,omitempty"`
	}
	var err error
	if len(relays.values) == 0 {
		if err := needsRelay(nodes, aliases); err != nil {
			return err
		}
		list.Models, err = localModels(ctx, *base)
	} else {
		list.Models, list.Nodes, err = relayModels(ctx, relays.values, nodes.values, aliases)
	}
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(list)
	}
	for _, m := range list.Models {
		io.WriteString(s.out, m.text())
	}
	for _, n := range list.Nodes {
		fmt.Fprintf(s.out, "node %s: %s", n.ID, strings.Join(n.Models, ", "))
		if n.Refused != "" {
			fmt.Fprintf(s.out, " (refused: %s)", n.Refused)
		}
		fmt.Fprintln(s.out)
	}
	if len(list.Models) == 0 {
		fmt.Fprintln(s.err, "tokenplace: no models: no pinned node is connected, or its engine has none")
	}
	return nil
}

func (m modelLine) text() string {
	text := m.ID
	if m.AliasOf != "" {
		text += "\tis " + m.AliasOf
	}
	if m.ContextLength > 0 {
		text += fmt.Sprintf("\t%d tokens", m.ContextLength)
	}
	return text + "\n"
}

func relayModels(ctx context.Context, relays []identity.Relay, nodes []identity.ID, aliases aliasFlags) ([]modelLine, []nodeLine, error) {
	names, err := aliases.load()
	if err != nil {
		return nil, nil, err
	}
	t, err := client.New(client.Config{Relays: relays, Trust: identity.Trust{Nodes: nodes}, Aliases: names})
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	all, err := t.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	lines := []nodeLine{}
	for _, n := range all {
		line := nodeLine{ID: n.ID, Relay: n.Relay, Models: []string{}, Refused: n.Refused}
		for _, m := range n.Models {
			line.Models = append(line.Models, m.ID)
		}
		lines = append(lines, line)
	}
	offered, err := t.Models(ctx)
	if err != nil {
		return nil, nil, err
	}
	models := []modelLine{}
	for _, m := range offered {
		models = append(models, modelLine{m.ID, m.AliasOf, m.ContextLength})
	}
	return models, lines, nil
}
