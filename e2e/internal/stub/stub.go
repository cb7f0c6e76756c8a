// Package stub is an OpenAI-compatible engine that a test plays: each request
// becomes a Call that says nothing until the test lets it.
package stub

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// An Engine is a running stub with one model, "stub".
type Engine struct {
	URL   string
	Calls chan *Call // the requests for an answer, unless Auto is set
	Auto  func(*Call)

	tb testing.TB
}

// New starts an engine on a free loopback port; it stops when the test ends.
// Auto, unless nil, plays every call, on a goroutine of its own.
func New(tb testing.TB, auto func(*Call)) *Engine {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return NewOn(tb, ln, auto)
}

// NewOn is New on a listener that the test has.
func NewOn(tb testing.TB, ln net.Listener, auto func(*Call)) *Engine {
	e := &Engine{URL: "http://" + ln.Addr().String(), Calls: make(chan *Call, 1024), Auto: auto, tb: tb}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[{"id":"stub","object":"model","created":1,"owned_by":"test"}]}`)
	})
	mux.HandleFunc("POST /v1/chat/completions", e.serveChat)
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	tb.Cleanup(func() { srv.Close() })
	return e
}

// Next waits for the next call.
func (e *Engine) Next() *Call {
	e.tb.Helper()
	select {
	case c := <-e.Calls:
		return c
	case <-time.After(30 * time.Second):
		e.tb.Fatal("no request reached the engine")
		return nil
	}
}

// Idle fails the test if a call is waiting.
func (e *Engine) Idle() {
	e.tb.Helper()
	select {
	case <-e.Calls:
		e.tb.Error("a request reached the engine that should not have")
	default:
	}
}

// A Call is one request for a chat completion.
type Call struct {
	Stream bool
	Prompt string          // the last message
	Header http.Header     // as the engine got it
	Gone   <-chan struct{} // closed when the caller went away or the call has ended

	ended chan struct{}

	mu    sync.Mutex // guards the fields below
	w     http.ResponseWriter
	over  bool // the handler has returned
	begun bool
	text  strings.Builder // of an answer that does not stream
}

func (e *Engine) serveChat(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Stream   bool
		Messages []struct{ Content any }
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Messages) == 0 {
		http.Error(w, `{"error":{"message":"no messages","type":"invalid_request_error"}}`, http.StatusBadRequest)
		return
	}
	io.Copy(io.Discard, r.Body) // net/http notices a caller that leaves once the body is read
	c := &Call{
		Stream: body.Stream,
		Prompt: fmt.Sprint(body.Messages[len(body.Messages)-1].Content),
		Header: r.Header,
		Gone:   r.Context().Done(),
		ended:  make(chan struct{}),
		w:      w,
	}
	if e.Auto != nil {
		go e.Auto(c)
	} else {
		e.Calls <- c
	}
	select {
	case <-c.ended:
	case <-c.Gone:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// Begin sends the head of a streamed answer.
func (c *Call) Begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begin()
}

func (c *Call) begin() {
	if c.begun || c.over || !c.Stream {
		return
	}
	c.begun = true
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.event(`{"id":"1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`)
}

func (c *Call) event(data string) {
	fmt.Fprintf(c.w, "data: %s\n\n", data)
	http.NewResponseController(c.w).Flush()
}

// Half sends the beginning of an answer that does not stream: 256 KiB, more
// than anyone on the way keeps back.
func (c *Call) Half() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.Stream {
		return
	}
	c.w.Header().Set("Content-Type", "application/json")
	io.WriteString(c.w, `{"id":"1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":{"role":"assistant","content":"`+strings.Repeat("half ", 256<<10/5))
	http.NewResponseController(c.w).Flush()
}

// Say adds text to the answer.
func (c *Call) Say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if !c.Stream {
		c.text.WriteString(text)
		return
	}
	c.begin()
	quoted, _ := json.Marshal(text)
	c.event(`{"id":"1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[{"index":0,"delta":{"content":` + string(quoted) + `},"finish_reason":null}]}`)
}

// End completes the answer.
func (c *Call) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.over = true
	defer close(c.ended)
	if c.Stream {
		c.begin()
		c.event(`{"id":"1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)
		c.event("[DONE]")
		return
	}
	quoted, _ := json.Marshal(c.text.String())
	c.w.Header().Set("Content-Type", "application/json")
	io.WriteString(c.w, `{"id":"1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":{"role":"assistant","content":`+string(quoted)+`},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
}

// Drip plays every call as an answer that goes on, a word each 5 ms, until the
// caller leaves, and tells when it did.
func Drip(gone chan<- time.Time) func(*Call) {
	return func(c *Call) {
		word := time.NewTicker(5 * time.Millisecond)
		defer word.Stop()
		for {
			c.Say("more ")
			select {
			case <-c.Gone:
				gone <- time.Now()
				return
			case <-word.C:
			}
		}
	}
}
