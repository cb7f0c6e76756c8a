package client

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"token.place/openai"
)

// ServerConfig says what a Server serves, and to whom.
type ServerConfig struct {
	// Transport performs the requests. Required; the caller closes it.
	Transport *Transport
	// Key, if set, is what apps must send as API key. Without it any key is taken
	// and dropped: loopback is open to the programs of its machine.
	Key string
	// Hosts are names besides loopback's that the Host field may have, such as
	// "gpu.lan" or "gpu.lan:8080".
	Hosts []string
	// Origins are web pages besides loopback's that may call, such as
	// "https://chat.example" or "app://obsidian.md".
	Origins []string
	// KeepAlive is how long a stream may be silent before a comment keeps it
	// alive. 0 is 10 s; less than 0 is never.
	KeepAlive time.Duration
}

// Server is an OpenAI-compatible API on loopback whose requests are sealed to
// nodes. It is an http.Handler.
type Server struct {
	transport *Transport
	key       [sha256.Size]byte
	keyed     bool
	guard     guard
	keepAlive time.Duration
}

// NewServer returns a Server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Transport == nil {
		return nil, errors.New("a server needs a transport")
	}
	g, err := newGuard(cfg.Hosts, cfg.Origins)
	if err != nil {
		return nil, err
	}
	s := &Server{transport: cfg.Transport, guard: g, keyed: cfg.Key != "", key: sha256.Sum256([]byte(cfg.Key)), keepAlive: cfg.KeepAlive}
	if s.keepAlive == 0 {
		s.keepAlive = 10 * time.Second
	}
	return s, nil
}

// ServeHTTP answers one request of an app.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Whatever a node sends must not become a page of this origin.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	if r.ContentLength != 0 {
		// What is answered without its body does not wait for that. receive lifts it.
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(lastBytes))
	}
	if err := s.guard.check(w.Header(), r); err != nil {
		writeError(w, r, err)
		return
	}
	switch {
	case r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "":
		preflight(w, r)
	case r.URL.Path == "/" || r.URL.Path == "/v1" || r.URL.Path == "/v1/":
		s.serveHelp(w, r)
	case r.URL.Path == "/healthz":
		serveText(w, r, "ok\n")
	case !s.authorized(r):
		w.Header().Set("WWW-Authenticate", `Bearer realm="token.place"`)
		writeError(w, r, failf(http.StatusUnauthorized, "invalid_api_key", "the API key is not the one that this server was started with: set it in your client"))
	case !r.ProtoAtLeast(1, 1):
		// There an answer ends with its connection, whole or not.
		writeError(w, r, failf(http.StatusHTTPVersionNotSupported, "old_http", "use HTTP/1.1; for nginx in front, set proxy_http_version 1.1"))
	default:
		s.serveAPI(w, r)
	}
}

// authorized checks the key where OpenAI's and Anthropic's SDKs put it. Hashes
// are compared, so that time tells nothing, not even the length.
func (s *Server) authorized(r *http.Request) bool {
	if !s.keyed {
		return true
	}
	key := r.Header.Get("X-Api-Key")
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		key = strings.TrimSpace(token)
	}
	sum := sha256.Sum256([]byte(key))
	return subtle.ConstantTimeCompare(sum[:], s.key[:]) == 1
}

const help = `This is a token.place client: an OpenAI-compatible API whose requests are sealed to
a node. The node's operator can read them; the relay in between cannot.

Point any OpenAI client at

    http://%s/v1

with any API key%s. The models are at http://%[1]s/v1/models
`

func (s *Server) serveHelp(w http.ResponseWriter, r *http.Request) {
	which := ""
	if s.keyed {
		which = " replaced by the one that this server was started with"
	}
	serveText(w, r, fmt.Sprintf(help, r.Host, which))
}

func serveText(w http.ResponseWriter, r *http.Request, text string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, r, failf(http.StatusMethodNotAllowed, "method_not_allowed", "%s wants the method GET", r.URL.Path))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, text)
}

// serveAPI performs a request and passes its answer on while it streams.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	body, err := receive(w, r)
	if err != nil {
		writeError(w, r, err)
		return
	}
	c, err := s.transport.prepare(r, body)
	if err != nil {
		writeError(w, r, err)
		return
	}
	out := newStream(w, c.stream, s.keepAlive)
	defer out.stop()
	resp, err := s.transport.do(c)
	if err != nil {
		if isCut(r) {
			err = errStopping
		}
		out.fail(r, err)
		return
	}
	defer resp.Body.Close()
	out.copy(r, resp)
}

// writeError answers with an OpenAI error object.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	if e.Status == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" {
		allow := http.MethodPost
		if openai.Allowed(http.MethodGet, apiPath(r.URL.EscapedPath())) {
			allow = http.MethodGet
		}
		w.Header().Set("Allow", allow)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter/time.Second)))
	}
	openai.WriteError(w, e.Status, openai.Error{Message: e.Message, Code: e.Code})
}

// asError makes an *Error of any error that a Transport returns.
func asError(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return failf(http.StatusGatewayTimeout, "timeout", "no answer came in the time that the request had: allow it more")
	case errors.Is(err, context.Canceled):
		return failf(499, "canceled", "the request was given up")
	}
	return failf(http.StatusBadGateway, "broken_answer", "the answer broke off: what came of it is not whole. Send the request again")
}
