package relay_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/internal/memnet"
	"token.place/internal/telemetry"
	"token.place/relay"
	"token.place/tunnel"
)

const address = "relay:443"

// world is a relay on a network in memory.
type world struct {
	testing.TB
	net   *memnet.Net
	relay *relay.Relay
	at    identity.Relay
	log   *lockedBuffer
	read  atomic.Int64 // raw bytes that the relay read
	stop  context.CancelFunc
	end   chan error // what Serve returned
}

// shyListener and shyConn are as the kernel's would be: they know the address
// of the other end and put it into every error. A relay that makes it text
// fails the test.
type shyListener struct {
	net.Listener
	w *world
}

func (l *shyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &shyConn{c, l.w}, nil
}

type shyConn struct {
	net.Conn
	w *world
}

type shyAddr struct{ w *world }

func (shyAddr) Network() string { return "tcp" }

func (a shyAddr) String() string {
	a.w.Errorf("the client's address became text:\n%s", debug.Stack())
	return "198.51.100.7:4711"
}

func (c *shyConn) RemoteAddr() net.Addr { return shyAddr{c.w} }

func (c *shyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.read.Add(int64(n))
	return n, c.wrap("read", err)
}

func (c *shyConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.wrap("write", err)
}

func (c *shyConn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func credential(t testing.TB) *identity.Credential {
	t.Helper()
	c, err := identity.NewCredential()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// test runs f with a relay in a bubble of its own time, and then sees the relay
// stop with nothing left behind.
func test(t *testing.T, cfg relay.Config, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, cfg)
		f(w)
		w.close()
	})
}

func start(t testing.TB, cfg relay.Config) *world {
	t.Helper()
	w := &world{TB: t, net: memnet.New(), log: &lockedBuffer{}, end: make(chan error, 1)}
	if cfg.Credential == nil {
		cfg.Credential = credential(t)
	}
	if cfg.Log == nil {
		cfg.Log = telemetry.New(telemetry.Development, w.log)
	}
	r, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.relay = r
	if w.at, err = identity.ParseRelay("https://" + address + "/#" + string(cfg.Credential.ID())); err != nil {
		t.Fatal(err)
	}
	ln, err := w.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	go func() { w.end <- r.Serve(ctx, &shyListener{ln, w}) }()
	return w
}

func (w *world) close() {
	w.Helper()
	w.stop()
	if err := <-w.end; err != nil {
		w.Errorf("Serve: %v", err)
	}
}

// dial opens a TLS connection to the relay.
func (w *world) dial(c *identity.Credential, protos ...string) (*tls.Conn, error) {
	nc, err := w.net.Dial(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	cfg := w.at.TLS(protos...)
	if c != nil {
		cert, err := c.Certificate()
		if err != nil {
			w.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	t := tls.Client(nc, cfg)
	if err := t.Handshake(); err != nil {
		nc.Close()
		return nil, err
	}
	return t, nil
}

// raw opens an HTTP/1.1 connection for bytes of a test's choice.
func (w *world) raw() *tls.Conn {
	w.Helper()
	c, err := w.dial(nil, "http/1.1")
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// client is an HTTP client that speaks proto, "h2" or "http/1.1".
func (w *world) client(proto string) *http.Client {
	t := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := w.dial(nil, proto)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DisableCompression:  true,
		ForceAttemptHTTP2:   proto == "h2",
		MaxIdleConnsPerHost: 100,
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// node is a node that is a stub behind a real tunnel.
type node struct {
	*identity.Credential
	lines chan string // status lines to send
	ended chan error  // what tunnel.Serve returned
	stop  context.CancelFunc
	conn  *tls.Conn
}

func descriptor() identity.Descriptor {
	return identity.Descriptor{
		Capacity:  8,
		Keys:      []byte{0, 3, 1, 2, 3},
		Models:    []identity.Model{{ID: "pocket", ContextLength: 1024}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
}

// bundleLine is the first status line for d.
func bundleLine(t testing.TB, c *identity.Credential, d identity.Descriptor) string {
	t.Helper()
	b, err := c.Sign(d)
	if err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(map[string]any{"bundle": b})
	if err != nil {
		t.Fatal(err)
	}
	return string(line)
}

// join connects a node that serves exchanges with h and waits until it is in.
func (w *world) join(h http.HandlerFunc) *node {
	w.Helper()
	c := credential(w)
	n := w.connect(c, 8, h)
	n.lines <- bundleLine(w, c, descriptor())
	w.settle()
	return n
}

// joinFor is join outside of a bubble, with a capacity.
func (w *world) joinFor(t testing.TB, capacity int, h http.HandlerFunc) *node {
	t.Helper()
	c := credential(t)
	n := w.connect(c, capacity, h)
	d := descriptor()
	d.Capacity = capacity
	n.lines <- bundleLine(t, c, d)
	for len(w.listed("")) == 0 {
		runtime.Gosched()
	}
	return n
}

// settle waits until nothing goes on any more.
func (w *world) settle() {
	if _, ok := w.TB.(*testing.T); ok {
		synctest.Wait()
	}
}

// connect opens a node's tunnel and leaves it to the test what it says.
func (w *world) connect(c *identity.Credential, capacity int, h http.HandlerFunc) *node {
	w.Helper()
	conn, err := w.dial(c, tunnel.Proto)
	if err != nil {
		w.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n := &node{Credential: c, lines: make(chan string, 100), ended: make(chan error, 1), stop: stop, conn: conn}
	drained := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(rw http.ResponseWriter, r *http.Request) {
		rw.WriteHeader(http.StatusOK)
		for {
			select {
			case line := <-n.lines:
				io.WriteString(rw, line+"\n")
				http.NewResponseController(rw).Flush()
			case <-drained:
				return
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST /exchange", h)
	go func() {
		n.ended <- tunnel.Serve(ctx, conn, mux, tunnel.ServeConfig{Capacity: capacity, OnDrain: func() { close(drained) }})
	}()
	return n
}

// close ends a node as its operator would.
func (n *node) close() {
	n.stop()
	n.ended <- <-n.ended
}

// listed are the IDs in the directory.
func (w *world) listed(query string) []string {
	w.Helper()
	res, body := w.get("/v1/nodes" + query)
	var list struct {
		Nodes []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || res.StatusCode != http.StatusOK {
		w.Fatalf("GET /v1/nodes%s: %d, %v: %s", query, res.StatusCode, err, body)
	}
	ids := []string{}
	for _, n := range list.Nodes {
		ids = append(ids, n.ID)
	}
	return ids
}

func (w *world) get(path string) (*http.Response, string) {
	w.Helper()
	c := w.client("h2")
	defer c.CloseIdleConnections()
	return w.do(c, "GET", path, nil, nil)
}

// do sends a request and reads the answer whole.
func (w *world) do(c *http.Client, method, path string, header http.Header, body io.Reader) (*http.Response, string) {
	w.Helper()
	req, err := http.NewRequest(method, "https://"+address+path, body)
	if err != nil {
		w.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := c.Do(req)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatalf("%s %s: %v", method, path, err)
	}
	return res, string(b)
}

// sealed is the header of an exchange.
func sealed() http.Header { return http.Header{"Content-Type": {"message/ohttp-chunked-req"}} }

// exchange posts a sealed message to a node.
func (w *world) exchange(c *http.Client, id identity.ID, body io.Reader) (*http.Response, string) {
	w.Helper()
	return w.do(c, "POST", "/v1/exchange/"+string(id), sealed(), body)
}

// talk sends text on an HTTP/1.1 connection and reads one answer.
func (w *world) talk(text string) (*http.Response, string) {
	w.Helper()
	c := w.raw()
	defer c.Close()
	go io.WriteString(c, text)
	return w.answer(bufio.NewReader(c))
}

func (w *world) answer(br *bufio.Reader) (*http.Response, string) {
	w.Helper()
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		w.Fatalf("no answer: %v", err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatalf("answer: %v", err)
	}
	return res, string(b)
}

// problem checks that an answer is a problem of our own type.
func (w *world) problem(res *http.Response, body string, status int, slug string) {
	w.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		w.Errorf("status %d, not a problem: %v: %q", res.StatusCode, err, body)
		return
	}
	if res.StatusCode != status || p.Status != status || p.Type != "https://token.place/problems/"+slug || p.Title == "" || p.Detail == "" ||
		res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Cache-Control") != "no-store" {
		w.Errorf("got %d %v %s, want %d %s", res.StatusCode, res.Header, body, status, slug)
	}
}

// chunked answers an exchange with pieces, each flushed.
func chunked(pieces ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "message/ohttp-chunked-res")
		for _, p := range pieces {
			io.WriteString(w, p)
			http.NewResponseController(w).Flush()
		}
	}
}

var discard = slog.New(slog.DiscardHandler)

var both = []string{"http/1.1", "h2"}

func repeat(n int) io.Reader { return strings.NewReader(strings.Repeat("x", n)) }

type discardWriter struct {
	header http.Header
	status int
}

func (w *discardWriter) Header() http.Header         { return w.header }
func (w *discardWriter) WriteHeader(status int)      { w.status = status }
func (w *discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *discardWriter) FlushError() error           { return nil }
