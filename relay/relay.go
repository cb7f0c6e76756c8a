// Package relay carries sealed exchanges between clients and nodes that neither
// can reach directly, and cannot read them.
//
// A node dials in and keeps a tunnel open; a client posts a sealed message to
// /v1/exchange/{node}; the relay copies it into that node's tunnel under a
// header of its own making, and copies the answer back as it comes. It lists
// the nodes that are connected with what they say of themselves, which clients
// verify. It keeps nothing, knows a client's address only in the kernel, and is
// built without any package that could open a message. See spec/relay.md.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"token.place/identity"
	"token.place/internal/telemetry"
	"token.place/tunnel"
)

// Config is how a relay works. Credential is needed; for everything else zero
// means the default. New refuses negative values.
type Config struct {
	// Credential proves to clients and nodes who the relay is: its key is that
	// of the TLS certificate.
	Credential *identity.Credential

	// Certificate, unless nil, is asked for a certificate of the web's
	// authorities first. Where it returns nil and no error the credential's is
	// used: clients and nodes that pin the relay's ID need that one.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// Nodes are the only nodes that may join, or empty for any node that proves
	// its key.
	Nodes []identity.ID

	// MaxNodes is how many nodes may be connected; default 20,000.
	MaxNodes int

	// MaxBody is the largest sealed request in bytes; default 64 MiB.
	MaxBody int64

	// MaxExchange is how long an exchange may take, answer included; default
	// one hour.
	MaxExchange time.Duration

	// MaxExchanges is how many exchanges may run at once; default 4,096. One
	// whose client takes nothing holds about 1 MiB until it is cut.
	MaxExchanges int

	// MaxStreams is how many exchanges may run at once on one HTTP/2 connection
	// of a client; default 250.
	MaxStreams int

	// MaxHandshakes is how many connections may be between being accepted and
	// having proved themselves; default 256. More wait in the kernel.
	MaxHandshakes int

	// HeaderTimeout is how long a TLS handshake, a request's header or a node's
	// first status line may take; default 10 s.
	HeaderTimeout time.Duration

	// StallTimeout is how long a client may take to send or to take 16 KiB of an
	// exchange; default 30 s. What the node takes does not count.
	StallTimeout time.Duration

	// IdleTimeout is how long a client's connection may be without a request;
	// default 2 min.
	IdleTimeout time.Duration

	// DrainTimeout is how long running exchanges may go on when Serve is told
	// to stop; default 30 s.
	DrainTimeout time.Duration

	// Log gets what the operator should know; nil discards it.
	Log *slog.Logger
}

// Relay is a relay. Its methods may be called concurrently.
type Relay struct {
	cfg       Config
	log       *slog.Logger
	tls       *tls.Config // for clients
	tunnelTLS *tls.Config // for nodes
	allowed   map[identity.ID]bool
	hub       tunnel.Hub
	directory directory
	models    modelCache
	exchanges atomic.Int64 // that run
	large     atomic.Int64 // large requests that are held, see upload.go
	phase     atomic.Int32
	epoch     time.Time // of the clock that exchanges go by, never zero on it

	mu       sync.Mutex // guards the fields below
	closed   bool       // no request is served any more
	requests sync.WaitGroup
}

// Phases of a relay's life.
const (
	starting int32 = iota
	serving
	draining
)

// New checks cfg and returns a relay that has no connections yet.
func New(cfg Config) (*Relay, error) {
	if cfg.Credential == nil {
		return nil, errors.New("new relay: it needs a credential")
	}
	bad := ""
	bad += fill("MaxNodes", &cfg.MaxNodes, 20_000)
	bad += fill("MaxBody", &cfg.MaxBody, 64<<20)
	bad += fill("MaxExchange", &cfg.MaxExchange, time.Hour)
	bad += fill("MaxExchanges", &cfg.MaxExchanges, 4096)
	bad += fill("MaxStreams", &cfg.MaxStreams, 250)
	bad += fill("MaxHandshakes", &cfg.MaxHandshakes, 256)
	bad += fill("HeaderTimeout", &cfg.HeaderTimeout, 10*time.Second)
	bad += fill("StallTimeout", &cfg.StallTimeout, 30*time.Second)
	bad += fill("IdleTimeout", &cfg.IdleTimeout, 2*time.Minute)
	bad += fill("DrainTimeout", &cfg.DrainTimeout, 30*time.Second)
	if bad != "" {
		return nil, fmt.Errorf("new relay: negative:%s", bad)
	}
	r := &Relay{cfg: cfg, log: cfg.Log, epoch: time.Now().Add(-time.Second)}
	r.directory.max, r.directory.hub = cfg.MaxNodes, &r.hub
	if r.log == nil {
		r.log = telemetry.Discard()
	}
	if len(cfg.Nodes) > 0 {
		r.allowed = map[identity.ID]bool{}
		for _, id := range cfg.Nodes {
			if _, err := identity.ParseID(string(id)); err != nil {
				return nil, fmt.Errorf("new relay: %w", err)
			}
			r.allowed[id] = true
		}
	}
	if err := r.configureTLS(); err != nil {
		return nil, fmt.Errorf("new relay: %w", err)
	}
	return r, nil
}

// fill replaces a zero and names a negative number.
func fill[T int | int64 | time.Duration](name string, p *T, value T) (bad string) {
	switch {
	case *p < 0:
		return " " + name
	case *p == 0:
		*p = value
	}
	return ""
}

// ServeHTTP is the relay's HTTP API. It answers what needs nodes only as long
// as Serve runs.
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !r.enter() {
		panic(http.ErrAbortHandler)
	}
	defer r.leave()
	// RawPath is set where escapes matter; none of our paths has any.
	path := req.URL.Path
	if req.URL.RawPath != "" {
		path = ""
	}
	if node, ok := strings.CutPrefix(path, "/v1/exchange/"); ok {
		if r.allow(w, req, http.MethodPost) {
			r.serveExchange(w, req, node)
		}
		return
	}
	if req.Method == refusedMethod {
		r.serveRefused(w, req)
		return
	}
	if plaintext(path) {
		endAfterAnswer(w, req)
		r.refuse(w, req, plaintextRefused)
		return
	}
	h := r.route(path)
	switch {
	case h == nil:
		r.refuse(w, req, notFound)
	case r.allow(w, req, http.MethodGet, http.MethodHead):
		if req.ContentLength != 0 {
			// net/http would wait for the body, for which there is no deadline.
			endAfterAnswer(w, req)
		}
		h(w, req)
	}
}

// route returns what serves GET of path, or nil.
func (r *Relay) route(path string) http.HandlerFunc {
	switch path {
	case "/v1/nodes":
		return r.serveNodes
	case "/v1/models":
		return r.serveModels
	case "/healthz":
		return r.serveHealth
	case "/readyz":
		return r.serveReady
	}
	if rest, ok := strings.CutPrefix(path, "/v1/nodes/"); ok {
		if node, ok := strings.CutSuffix(rest, "/ohttp-keys"); ok {
			return func(w http.ResponseWriter, req *http.Request) { r.serveKeys(w, req, node) }
		}
	}
	return nil
}

// plaintext tells the paths of the OpenAI API, with or without its version,
// that take prompts.
func plaintext(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, "/v1"), "/"), "/")
	switch first {
	case "chat", "completions", "responses", "embeddings", "messages", "audio", "images", "moderations":
		return true
	}
	return false
}

// allow answers 405 unless the request's method is one of methods.
func (r *Relay) allow(w http.ResponseWriter, req *http.Request, methods ...string) bool {
	for _, m := range methods {
		if req.Method == m {
			return true
		}
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	r.refuse(w, req, badMethod)
	return false
}

// serveRefused answers in the place of a request that strictConn refused.
func (r *Relay) serveRefused(w http.ResponseWriter, req *http.Request) {
	p := badRequest
	if i, err := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/")); err == nil && i >= 0 && i < len(refusals) {
		p.detail = refusals[i]
		if i == longHead {
			p.status = http.StatusRequestHeaderFieldsTooLarge
		}
	}
	w.Header()["Connection"] = []string{"close"}
	r.refuse(w, req, p)
}

// serveHealth says that the process lives.
func (r *Relay) serveHealth(w http.ResponseWriter, _ *http.Request) {
	r.answer(w, "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}

// serveReady says whether to send clients and nodes here: Serve runs and has
// not been told to stop. A relay without nodes is ready, or none could begin.
func (r *Relay) serveReady(w http.ResponseWriter, _ *http.Request) {
	r.answer(w, "text/plain; charset=utf-8")
	if r.phase.Load() != serving {
		w.WriteHeader(http.StatusServiceUnavailable)
		w.Write([]byte("draining\n"))
		return
	}
	w.Write([]byte("ready\n"))
}

// enter counts a request, so that Serve can wait for it.
func (r *Relay) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.requests.Add(1)
	return true
}

// leave is deferred: a panic of ours is reported without what it may carry.
func (r *Relay) leave() {
	r.requests.Done()
	if v := recover(); v != nil {
		if v != http.ErrAbortHandler {
			r.log.LogAttrs(context.Background(), slog.LevelError, "request failed", slog.Any("reason", telemetry.Reason("internal error: please report it")))
		}
		panic(http.ErrAbortHandler)
	}
}
