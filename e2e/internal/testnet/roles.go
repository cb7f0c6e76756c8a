package testnet

import (
	"net"
	"slices"
	"strings"
	"testing"
)

// A Relay is a process of "tokenplace relay run".
type Relay struct {
	*Process
	ID     string `json:"id"`
	URL    string `json:"relay"`
	Listen string `json:"listen"`
}

// A Node is a process of "tokenplace node run".
type Node struct {
	*Process
	ID     string   `json:"id"`
	Engine string   `json:"engine"`
	Models []string `json:"models"`
}

// A Server is a process of "tokenplace serve".
type Server struct {
	*Process
	BaseURL string   `json:"base_url"`
	Models  []string `json:"models"`
}

// A Dev is a process of "tokenplace dev".
type Dev struct {
	*Process
	BaseURL string `json:"base_url"`
	Relay   string `json:"relay"`
	Nodes   []struct {
		ID     string   `json:"id"`
		Models []string `json:"models"`
	} `json:"nodes"`
	Models []string `json:"models"`
}

// StartRelay starts a relay on a free port; args come after the defaults.
func StartRelay(tb testing.TB, c Command, args ...string) *Relay {
	tb.Helper()
	c.Name = or(c.Name, "relay")
	c.Args = append([]string{"relay", "run", "--listen", "127.0.0.1:0", "--identity", "relay.pem", "--json"}, args...)
	r := &Relay{Process: Start(tb, c)}
	r.Line(r)
	return r
}

// Again starts the relay as it was, at the same address, after it has ended.
func (r *Relay) Again() *Relay {
	r.tb.Helper()
	c := r.Command
	c.Args = append(slices.Clone(c.Args), "--listen", r.Listen)
	again := &Relay{Process: Start(r.tb, c)}
	again.Line(again)
	return again
}

// At is the relay's URL for those who reach it at host.
func (r *Relay) At(host string) string {
	_, port, err := net.SplitHostPort(r.Listen)
	if err != nil {
		r.tb.Fatalf("relay listens at %q: %v", r.Listen, err)
	}
	return "https://" + net.JoinHostPort(host, port) + "/#" + r.ID
}

// StartNode starts a node; engine is what --engine takes.
func StartNode(tb testing.TB, c Command, relay, engine string, args ...string) *Node {
	tb.Helper()
	c.Name = or(c.Name, "node")
	c.Args = append([]string{"node", "run", "--relay", relay, "--engine", engine, "--identity", "node.pem", "--json"}, args...)
	n := &Node{Process: Start(tb, c)}
	n.Line(n)
	return n
}

// Again starts the node as it was, after it has ended.
func (n *Node) Again() *Node {
	n.tb.Helper()
	again := &Node{Process: Start(n.tb, n.Command)}
	again.Line(again)
	return again
}

// StartServer starts the local server, which pins nodes.
func StartServer(tb testing.TB, c Command, relay string, nodes []*Node, args ...string) *Server {
	tb.Helper()
	c.Name = or(c.Name, "serve")
	c.Args = []string{"serve", "--relay", relay, "--listen", "127.0.0.1:0", "--json"}
	for _, n := range nodes {
		c.Args = append(c.Args, "--node", n.ID)
	}
	c.Args = append(c.Args, args...)
	s := &Server{Process: Start(tb, c)}
	s.Line(s)
	s.BaseURL = strings.TrimRight(s.BaseURL, "/")
	return s
}

// StartDev starts a whole network in one process.
func StartDev(tb testing.TB, c Command, args ...string) *Dev {
	tb.Helper()
	c.Name = or(c.Name, "dev")
	c.Args = append([]string{"dev", "--listen", "127.0.0.1:0", "--json"}, args...)
	d := &Dev{Process: Start(tb, c)}
	d.Line(d)
	d.BaseURL = strings.TrimRight(d.BaseURL, "/")
	return d
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
