// Package engine is an OpenAI-API handler in front of whatever runs the model.
//
// It is the only thing that knows that llama-server, Ollama, LM Studio and vLLM
// differ. An exchange passes through whole, in both directions, but only to the
// paths of openai.Allowed, with the few headers that mean something to an
// engine, and a stream that the engine did not finish is aborted: a short answer
// never looks whole. See spec/api.md.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"token.place/openai"
)

// Config says which engine. Exactly one of URL and Handler is set.
type Config struct {
	// URL is where the engine serves its OpenAI API, with or without the /v1 at
	// its end: "http://127.0.0.1:11434", "http://127.0.0.1:8080/v1".
	URL string
	// Handler is an engine in this process.
	Handler http.Handler
	// Name is what Name returns; "" lets Models find out.
	Name string
	// Key is sent to the engine as a bearer token, unless it is "". It comes from
	// a file: nothing of a client's own Authorization goes to the engine.
	Key string
	// Timeout is how long the engine at URL may be silent, before its answer as
	// well as in the middle of it; 0 means ten minutes. An answer that does not
	// stream is silent until it is complete.
	Timeout time.Duration
	// Dial connects to the engine; nil means a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// The reasons for which an engine gives no list of models.
var (
	ErrUnavailable = errors.New("the engine does not answer")
	ErrKey         = errors.New("the engine refused the API key")
	ErrBadAnswer   = errors.New("the engine does not answer like an OpenAI API")
)

// Engine is an http.Handler with the OpenAI API of one engine. It can be used
// by many goroutines.
type Engine struct {
	cfg       Config
	base      *url.URL // without /v1
	transport *http.Transport
	name      atomic.Pointer[string]
}

// New returns a handler for the engine of cfg. It does not connect.
func New(cfg Config) (*Engine, error) {
	if (cfg.URL == "") == (cfg.Handler == nil) {
		return nil, errors.New("configure engine: exactly one of URL and Handler must be set")
	}
	if cfg.Timeout < 0 || strings.ContainsFunc(cfg.Key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("configure engine: the timeout is negative or the key is not one line of ASCII")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Minute
	}
	e := &Engine{cfg: cfg}
	if cfg.Handler != nil {
		return e, nil
	}
	base, err := url.Parse(cfg.URL)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Hostname() == "" {
		return nil, errors.New("configure engine: the URL must look like http://127.0.0.1:8080")
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("configure engine: the URL must have no user, query or fragment; an API key goes into a file")
	}
	base.Path = strings.TrimSuffix(strings.TrimRight(base.Path, "/"), "/v1")
	base.RawPath = ""
	e.base = base
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	e.transport = &http.Transport{
		DialContext:            cfg.Dial, // and no Proxy: an engine is near
		DisableCompression:     true,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: 64 << 10,
		TLSHandshakeTimeout:    10 * time.Second,
		// llama-server and vLLM drop idle connections after 5 s. To be first avoids
		// sending a request, which cannot be repeated, down one of these.
		IdleConnTimeout: 2 * time.Second,
	}
	return e, nil
}

// Name is what the engine calls itself: "llama-server", "Ollama", "LM Studio",
// "vLLM", "pocket" for a Handler, or "other". It is known after Models.
func (e *Engine) Name() string {
	if e.cfg.Name != "" {
		return e.cfg.Name
	}
	if e.cfg.Handler != nil {
		return "pocket"
	}
	if name := e.name.Load(); name != nil {
		return *name
	}
	return "other"
}

// Close drops idle connections to the engine. Requests may still be served.
func (e *Engine) Close() {
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	}
}

// ServeHTTP passes the request to the engine and its answer back. When the
// engine fails before its answer begins, the answer is an OpenAI error object;
// when it fails later, ServeHTTP panics with http.ErrAbortHandler, so that what
// was sent does not look whole.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	if !openai.Allowed(r.Method, path) {
		refuse(w, path)
		return
	}
	id, one := strings.CutPrefix(r.URL.Path, "/v1/models/")
	switch {
	case e.cfg.Handler != nil:
		e.cfg.Handler.ServeHTTP(w, r)
	case one:
		e.serveModel(w, r, id)
	default:
		e.forward(w, r)
	}
}

// serveModel answers from the list of models, since llama-server has no path for
// one of them. So no path that reaches an engine has anything of a client in it.
func (e *Engine) serveModel(w http.ResponseWriter, r *http.Request, id string) {
	models, err := e.Models(r.Context())
	switch {
	case errors.Is(err, ErrKey):
		e.fail(r.Context(), w, r, "engine_refused_key")
		return
	case errors.Is(err, ErrUnavailable):
		e.fail(r.Context(), w, r, "engine_unavailable")
		return
	case err != nil:
		e.fail(r.Context(), w, r, "engine_bad_answer")
		return
	}
	for _, m := range models {
		if body, err := json.Marshal(m); m.ID == id && err == nil {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			w.Write(body)
			return
		}
	}
	openai.WriteError(w, http.StatusNotFound, openai.Error{
		Message: "The node's engine does not have this model; GET /v1/models lists those that it has.", Param: "model", Code: "model_not_found"})
}

// refuse answers a request that is not allowed.
func refuse(w http.ResponseWriter, path string) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if openai.Allowed(method, path) {
			w.Header().Set("Allow", method)
			openai.WriteError(w, http.StatusMethodNotAllowed, openai.Error{
				Message: "This path takes only " + method + ".", Code: "method_not_allowed"})
			return
		}
	}
	openai.WriteError(w, http.StatusNotFound, openai.Error{
		Message: "There is no such path here. A node serves the paths of the OpenAI API that run a model, such as " +
			"/v1/chat/completions and /v1/models; check the base URL, which ends in /v1.",
		Code: "unknown_path"})
}
