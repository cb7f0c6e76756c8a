// Package client makes an ordinary OpenAI client private.
//
// [Transport] is an http.RoundTripper: it reads which model a request asks for,
// picks a node that it can verify and that offers the model, seals the whole
// request to that node and returns the opened answer while it streams. [Server]
// is the same for programs that only know a base URL: an OpenAI-compatible API
// on loopback.
//
// What a relay says is never believed on its word. A node is used only after
// identity.Verify, and only with an ML-KEM-768+X25519 key; answers that were not
// sealed can make a client try elsewhere or fail, never lower its demands. See
// spec/api.md, "The local server".
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"token.place/identity"
	"token.place/openai"
)

// maxBody bounds a request's body, in bytes. It is held in memory, so that the
// request can be sealed again to another node.
const maxBody = 32 << 20

// maxHeader bounds what of a request's header is sealed, in bytes.
const maxHeader = 8 << 10

// Config says which network a Transport uses.
type Config struct {
	// Relays to reach nodes through, at least one. A node is reached through any
	// of them that lists it.
	Relays []identity.Relay
	// Trust decides which nodes may be sealed to. An empty Trust is accepted and
	// lets nothing through: Nodes then tells what there would be to pin.
	Trust identity.Trust
	// Aliases maps a model name that apps ask for to the model that is asked for
	// in its place. An alias goes before a model of the same name. May be nil.
	Aliases map[string]string
	// Dial opens a connection to a relay, "host:port". Nil dials TCP, through the
	// proxy that HTTPS_PROXY names if there is one: such a proxy sees the relay's
	// name and TLS, and cannot stand in for a relay with an ID.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Transport seals each request to a node and returns the opened answer. It is
// safe for concurrent use.
type Transport struct {
	relays  []*relay
	trust   identity.Trust
	pinned  map[identity.ID]bool
	asked   []string // the same, ordered
	aliases map[string]string

	ctx  context.Context // ends at Close; for what no caller waits for
	stop context.CancelFunc
	work sync.WaitGroup // the fetches under way

	freed chan struct{} // an exchange ended; whoever waits for room takes it

	mu       sync.Mutex // guards what follows, and the relays' state
	changed  chan struct{}
	nodes    map[identity.ID]*member
	models   map[string][]*member
	affinity affinity
	failures uint64 // attempts that failed so far
}

// New returns a Transport. It connects to nothing yet.
func New(cfg Config) (*Transport, error) {
	if len(cfg.Relays) == 0 {
		return nil, errors.New("no relay is given: name one with --relay https://host:port/#ID")
	}
	t := &Transport{
		trust:   cfg.Trust,
		pinned:  make(map[identity.ID]bool, len(cfg.Trust.Nodes)),
		aliases: make(map[string]string, len(cfg.Aliases)),
		changed: make(chan struct{}),
		freed:   make(chan struct{}),
	}
	for _, id := range cfg.Trust.Nodes {
		if _, err := identity.ParseID(string(id)); err != nil {
			return nil, fmt.Errorf("pinned node: %w", err)
		}
		if !t.pinned[id] {
			t.asked = append(t.asked, string(id))
		}
		t.pinned[id] = true
	}
	slices.Sort(t.asked) // the order in which they were given is nobody's business
	for alias, model := range cfg.Aliases {
		if err := checkAlias(alias, model); err != nil {
			return nil, err
		}
		if err := checkChain(cfg.Aliases, alias, model); err != nil {
			return nil, err
		}
		t.aliases[alias] = model
	}
	seen := map[string]bool{}
	for _, r := range cfg.Relays {
		if r.URL == nil || r.URL.Scheme != "https" || r.URL.Host == "" {
			return nil, errors.New("a relay has no https URL")
		}
		if seen[r.Addr()] {
			return nil, fmt.Errorf("relay %s is given twice", r)
		}
		seen[r.Addr()] = true
		t.relays = append(t.relays, newRelay(r, cfg.Dial))
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t, nil
}

// Close ends what the Transport does on its own and closes idle connections.
// Exchanges that are under way go on until they end or their context does.
func (t *Transport) Close() error {
	t.stop()
	t.mu.Lock() // no fetch begins once stop is seen under mu
	t.mu.Unlock()
	t.work.Wait()
	for _, r := range t.relays {
		r.http.CloseIdleConnections()
	}
	return nil
}

// Error is why a request was not answered by a node. Message is for a person,
// says what to do and may be shown: it has nothing of the prompt, and of what a
// relay said without a seal only what we know the meaning of.
type Error struct {
	Status     int    // the HTTP status that a server in front should answer with
	Code       string // for a program: see spec/api.md
	Message    string
	RetryAfter time.Duration // when to try again, whole seconds; 0 is not known
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

func failf(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// RoundTrip performs an OpenAI API request. Of the URL only the path counts,
// with or without /v1 in front; of the header only what the engine needs leaves
// the machine. GET /v1/models is answered from the verified nodes. The body is
// read whole, up to 32 MiB.
//
// Until the first byte of an answer RoundTrip tries other nodes; after it, a
// break shows as an error from the body. Errors are *Error, or the context's.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := readBody(req)
	if err != nil {
		return nil, err
	}
	c, err := t.prepare(req, body)
	if err != nil {
		return nil, err
	}
	return t.do(c)
}

// do performs what prepare made of a request.
func (t *Transport) do(c *call) (*http.Response, error) {
	if c.req.Method == http.MethodGet {
		return t.serveModels(c)
	}
	return t.exchange(c)
}

// call is a request on its way.
type call struct {
	req    *http.Request // the app's
	path   string        // as sealed: /v1/…
	header http.Header   // as sealed
	body   []byte        // as sealed
	asked  string        // model as the app named it
	model  string        // model as the node names it
	stream bool
	key    string // of the conversation, or ""
}

// readBody reads the app's body whole and closes it.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	defer req.Body.Close()
	tooLarge := failf(http.StatusRequestEntityTooLarge, "request_too_large",
		"the request body is larger than %d MiB: send less at once, for example smaller images or fewer messages", maxBody>>20)
	if req.ContentLength > maxBody {
		return nil, tooLarge
	}
	var b bytes.Buffer
	if req.ContentLength > 0 {
		b.Grow(int(req.ContentLength) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(io.LimitReader(req.Body, maxBody+1)); err != nil {
		if ctx := req.Context().Err(); ctx != nil {
			return nil, ctx
		}
		return nil, failf(http.StatusBadRequest, "incomplete_request", "the request body ended early: send it again")
	}
	if b.Len() > maxBody {
		return nil, tooLarge
	}
	return b.Bytes(), nil
}

// sealedHeaders are the fields of an app's request that go to the node. What is
// not needed to answer could tell one app, or one person, from another.
var sealedHeaders = []string{"Content-Type", "Accept", "Openai-Beta", "Anthropic-Version", "Anthropic-Beta"}

// prepare looks at a request, and makes the one that is sealed.
func (t *Transport) prepare(req *http.Request, body []byte) (*call, error) {
	path := apiPath(req.URL.EscapedPath())
	if !openai.Allowed(req.Method, path) {
		return nil, errPath(req.Method, path)
	}
	c := &call{req: req, path: path, header: make(http.Header, len(sealedHeaders)), body: body}
	if req.Method == http.MethodGet {
		return c, nil
	}
	size := 0
	for _, name := range sealedHeaders {
		for _, v := range req.Header[name] {
			if size += len(v); size > maxHeader || strings.ContainsFunc(v, unicode.IsControl) {
				return nil, failf(http.StatusBadRequest, "invalid_header", "the header field %s is malformed, or too large with the others: correct it, or send less than %d bytes of such fields", name, maxHeader)
			}
			c.header[name] = append(c.header[name], v)
		}
	}
	peeked, err := openai.Peek(req.Header.Get("Content-Type"), body)
	if err != nil {
		return nil, failf(http.StatusBadRequest, "invalid_body", "%v", err)
	}
	c.asked, c.model, c.stream = peeked.Model, peeked.Model, peeked.Stream
	if c.asked == "" {
		return nil, failf(http.StatusBadRequest, "model_required",
			`the request names no model: set "model" to one that GET /v1/models lists`)
	}
	if model, ok := t.aliases[c.asked]; ok {
		c.model = model
		c.body = peeked.WithModel(body, model)
	}
	if conversation := peeked.Conversation(); conversation != "" {
		c.key = c.model + "\x00" + conversation
	}
	return c, nil
}

// apiPath puts /v1 in front of a path that lacks it: some SDKs are given a base
// URL with it and some without.
func apiPath(path string) string {
	if path == "/v1" || strings.HasPrefix(path, "/v1/") {
		return path
	}
	return "/v1" + path
}

// errPath says why a path is not served.
func errPath(method, path string) error {
	for _, other := range []string{http.MethodGet, http.MethodPost} {
		if openai.Allowed(other, path) {
			return failf(http.StatusMethodNotAllowed, "method_not_allowed", "%s wants the method %s", path, other)
		}
	}
	return failf(http.StatusNotFound, "unknown_path", "there is nothing at this path: use "+
		"/v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /v1/messages, "+
		"/v1/audio/{speech,transcriptions,translations} or /v1/images/{generations,edits,variations}")
}
