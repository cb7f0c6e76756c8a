package client_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"token.place/client"
	"token.place/identity"
	"token.place/internal/memnet"
	"token.place/ohttp"
)

// stubNode is a real gateway in front of an engine that a test writes.
type stubNode struct {
	cred     *identity.Credential
	id       identity.ID
	keys     *ohttp.Keys
	handler  *ohttp.Handler
	models   []identity.Model
	capacity int
	inFlight int // what its relays say
}

func newNode(t testing.TB, engine http.HandlerFunc, models ...string) *stubNode {
	t.Helper()
	cred, err := identity.NewCredential()
	if err != nil {
		t.Fatal(err)
	}
	n := &stubNode{cred: cred, id: cred.ID(), capacity: 8}
	n.rekey(t, engine)
	for _, m := range models {
		n.models = append(n.models, identity.Model{ID: m, ContextLength: 4096})
	}
	return n
}

// rekey gives the node new keys, as a restart does.
func (n *stubNode) rekey(t testing.TB, engine http.HandlerFunc) {
	keys, err := ohttp.NewKeys(ohttp.KeysConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	n.keys, n.handler = keys, &ohttp.Handler{Keys: keys, Next: engine}
}

func (n *stubNode) bundle() identity.Bundle {
	now := time.Now()
	return n.sign(identity.Descriptor{NotBefore: now, NotAfter: now.Add(time.Hour), Keys: n.keys.Public(), Models: n.models, Capacity: n.capacity})
}

func (n *stubNode) sign(d identity.Descriptor) identity.Bundle {
	b, err := n.cred.Sign(d)
	if err != nil {
		panic(err)
	}
	return b
}

// entry is a node as a directory has it.
func (n *stubNode) entry(b identity.Bundle) map[string]any {
	return map[string]any{"id": n.id, "bundle": b, "load": map[string]int{"in_flight": n.inFlight, "capacity": n.capacity}}
}

// stubRelay is a relay's HTTP side, in front of nodes in the same process.
type stubRelay struct {
	relay identity.Relay
	cred  *identity.Credential
	srv   *http.Server
	done  chan struct{} // closed when srv has stopped
	http1 bool          // no HTTP/2

	mu        sync.Mutex // guards what follows
	nodes     []*stubNode
	bundles   map[identity.ID]identity.Bundle // signed once, as nodes do
	directory http.HandlerFunc                // in place of the relay's own, if set
	exchange  func(w http.ResponseWriter, r *http.Request, n *stubNode) (done bool)
	fetches   int
	queries   []string
	headers   []http.Header
	exchanges []identity.ID
}

// network is a place for relays.
type network struct {
	t   testing.TB
	net *memnet.Net
}

func newNetwork(t testing.TB) *network { return &network{t, memnet.New()} }

func (n *network) relay(host string, nodes ...*stubNode) *stubRelay {
	n.t.Helper()
	cred, err := identity.NewCredential()
	if err != nil {
		n.t.Fatal(err)
	}
	r := &stubRelay{cred: cred, nodes: nodes, bundles: map[identity.ID]identity.Bundle{}}
	r.relay, err = identity.ParseRelay("https://" + host + "/#" + string(cred.ID()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.serve(r)
	return r
}

// serve makes r listen, also again after its server was closed.
func (n *network) serve(r *stubRelay) {
	n.t.Helper()
	cert, err := r.cred.Certificate()
	if err != nil {
		n.t.Fatal(err)
	}
	ln, err := n.net.Listen(r.relay.Addr())
	if err != nil {
		n.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) { n.t.Errorf("the relay got %s %s", req.Method, req.URL) })
	mux.HandleFunc("GET /v1/nodes", r.serveNodes)
	mux.HandleFunc("POST /v1/exchange/{node}", r.serveExchange)
	r.srv = &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, ErrorLog: log.New(io.Discard, "", 0)}
	srv, done := r.srv, make(chan struct{})
	r.done = done
	if r.http1 {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	go func() { defer close(done); srv.ServeTLS(ln, "", "") }()
	n.t.Cleanup(func() { srv.Close(); <-done })
}

func (r *stubRelay) serveNodes(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fetches++
	r.queries = append(r.queries, req.URL.RawQuery)
	r.headers = append(r.headers, req.Header.Clone())
	if r.directory != nil {
		directory := r.directory
		r.mu.Unlock()
		defer r.mu.Lock()
		directory(w, req)
		return
	}
	var entries []any
	for _, n := range r.nodes {
		if asked := req.URL.Query()["id"]; len(asked) > 0 && !slices.Contains(asked, string(n.id)) {
			continue
		}
		entries = append(entries, n.entry(r.bundle(n)))
	}
	writeNodes(w, entries...)
}

// bundle signs for a node once an hour and once a key; r.mu is held.
func (r *stubRelay) bundle(n *stubNode) identity.Bundle {
	b, ok := r.bundles[n.id]
	if _, d, err := b.Open(time.Now()); !ok || err != nil || string(d.Keys) != string(n.keys.Public()) {
		b = n.bundle()
		r.bundles[n.id] = b
	}
	return b
}

func writeNodes(w http.ResponseWriter, entries ...any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"nodes": append([]any{}, entries...)})
}

func (r *stubRelay) serveExchange(w http.ResponseWriter, req *http.Request) {
	id := identity.ID(req.PathValue("node"))
	if req.ProtoMajor != 2 && !r.http1 {
		panic("an exchange came over " + req.Proto)
	}
	r.mu.Lock()
	r.exchanges = append(r.exchanges, id)
	r.headers = append(r.headers, req.Header.Clone())
	hook := r.exchange
	var node *stubNode
	for _, n := range r.nodes {
		if n.id == id {
			node = n
		}
	}
	r.mu.Unlock()
	if hook != nil && hook(w, req, node) {
		return
	}
	if node == nil {
		problem(w, 503, "https://token.place/problems/node-unavailable")
		return
	}
	node.handler.ServeHTTP(w, req)
}

func problem(w http.ResponseWriter, status int, kind string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":%q,"title":"LIES FROM THE RELAY"}`, kind)
}

// with changes a relay while it serves.
func (r *stubRelay) with(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *stubRelay) counts() (fetches, exchanges int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetches, len(r.exchanges)
}

func pins(nodes ...*stubNode) identity.Trust {
	var trust identity.Trust
	for _, n := range nodes {
		trust.Nodes = append(trust.Nodes, n.id)
	}
	return trust
}

// client returns a Transport of the network.
func (n *network) client(cfg client.Config, relays ...*stubRelay) *client.Transport {
	n.t.Helper()
	for _, r := range relays {
		cfg.Relays = append(cfg.Relays, r.relay)
	}
	cfg.Dial = n.net.Dial
	tr, err := client.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { tr.Close() })
	return tr
}

const chat = `{"model":"m","messages":[{"role":"user","content":"SECRET-PROMPT"}]}`

func post(ctx context.Context, rt http.RoundTripper, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", "https://api.openai.com/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return rt.RoundTrip(req)
}

// ask performs a chat and returns its status and answer, or fails the test.
func ask(t testing.TB, rt http.RoundTripper, body string) (int, string) {
	t.Helper()
	resp, err := post(t.Context(), rt, body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(got)
}

// refused performs a chat that must fail, and returns the error.
func refused(t testing.TB, rt http.RoundTripper, body string) *client.Error {
	t.Helper()
	resp, err := post(t.Context(), rt, body)
	if err == nil {
		resp.Body.Close()
		t.Fatalf("answered with status %d", resp.StatusCode)
	}
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T: %v", err, err)
	}
	if strings.Contains(e.Message, "SECRET") || strings.Contains(e.Message, "LIES") {
		t.Errorf("the error has in it what it must not: %s", e.Message)
	}
	return e
}

// says is an engine with one answer.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, text)
	}
}

func fails(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, text)
	}
}

// stallingDialer makes connections that can fall silent without an end, as when
// a cable is pulled.
type stallingDialer struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu    sync.Mutex // guards what follows
	still chan struct{}
}

type stallingConn struct {
	net.Conn
	d *stallingDialer
}

func (d *stallingDialer) stall() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.still = make(chan struct{})
}

// free lets what is stuck go on.
func (d *stallingDialer) free() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.still)
}

func (d *stallingDialer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	still := d.still
	d.mu.Unlock()
	if still != nil {
		select {
		case <-still:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c, err := d.dial(ctx, network, addr)
	return stallingConn{c, d}, err
}

// Write drops what is sent while the connection is silent.
func (c stallingConn) Write(p []byte) (int, error) {
	c.d.mu.Lock()
	still := c.d.still
	c.d.mu.Unlock()
	if still != nil {
		return len(p), nil
	}
	return c.Conn.Write(p)
}
