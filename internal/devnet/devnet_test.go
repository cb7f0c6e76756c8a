package devnet_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"token.place/client"
	"token.place/engine"
	"token.place/identity"
	"token.place/internal/devnet"
	"token.place/internal/memnet"
	"token.place/internal/telemetry"
	"token.place/node"
	"token.place/openai"
	"token.place/relay"
)

// start starts a network in memory and returns it with an HTTP client for its
// local server.
func start(t testing.TB, o devnet.Options) (*devnet.Net, *http.Client) {
	t.Helper()
	mem := memnet.New()
	o.Listen = func(_, addr string) (net.Listener, error) { return mem.Listen(addr) }
	o.Dial = mem.Dial
	o.Server, o.RelayAddr = "127.0.0.1:4117", "127.0.0.1:8443"
	n, err := devnet.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: mem.Dial}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		n.Close()
	})
	return n, &http.Client{Transport: tr}
}

// bubble runs f with a network in a synctest bubble, which fails if anything is
// left running after Close.
func bubble(t *testing.T, o devnet.Options, f func(t *testing.T, n *devnet.Net, c *http.Client)) {
	synctest.Test(t, func(t *testing.T) {
		n, c := start(t, o)
		f(t, n, c)
	})
}

func post(t testing.TB, ctx context.Context, c *http.Client, url, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestPocketAnswersThroughTheWholeNetwork(t *testing.T) {
	bubble(t, devnet.Options{Aliases: map[string]string{"gpt-5-chat-latest": "pocket"}}, func(t *testing.T, n *devnet.Net, c *http.Client) {
		if len(n.Nodes) != 2 {
			t.Errorf("%d nodes, want 2", len(n.Nodes))
		}
		for _, model := range []string{"pocket", "gpt-5-chat-latest"} {
			resp := post(t, t.Context(), c, n.BaseURL+"/chat/completions",
				`{"model":"`+model+`","stream":true,"messages":[{"role":"user","content":"What is a river?"}]}`)
			text, pieces, err := readStream(resp.Body)
			resp.Body.Close()
			if id := identity.ID(resp.Header.Get(client.NodeHeader)); id != n.Nodes[0].ID() && id != n.Nodes[1].ID() {
				t.Errorf("the answer is labelled with the node %q", id)
			}
			if text != "River: a large natural stream of water." || pieces < 3 || err != nil {
				t.Errorf("%s: %q in %d events, %v", model, text, pieces, err)
			}
		}
		resp, err := c.Get(n.BaseURL + "/models")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		models, err := openai.ReadModels(resp.Body)
		if err != nil || len(models) != 2 {
			t.Errorf("models: %v, %v", models, err)
		}
	})
}

// readStream returns the text of a streamed chat and in how many events it came;
// err is nil only if the stream ended with [DONE].
func readStream(r io.Reader) (text string, pieces int, err error) {
	for events := openai.NewEvents(r); ; {
		e, err := events.Next()
		if err != nil {
			return text, pieces, err
		}
		if e.Done() {
			return text, pieces, nil
		}
		if e, ok := openai.ReadError(bytes.NewReader(e.Data)); ok {
			return text, pieces, e
		}
		var chunk struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal(e.Data, &chunk); err != nil {
			return text, pieces, err
		}
		if len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "" {
			text, pieces = text+chunk.Choices[0].Delta.Content, pieces+1
		}
	}
}

// stub is an engine under a test's control.
type stub struct {
	running atomic.Int32
	handle  func(w http.ResponseWriter, r *http.Request)
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
		return
	}
	s.running.Add(1)
	defer s.running.Add(-1)
	s.handle(w, r)
}

func (s *stub) engine(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.New(engine.Config{Handler: s})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Closing the app's connection stops the engine, whatever it is doing.
func TestCancelReachesTheEngine(t *testing.T) {
	phases := map[string]struct {
		body   string
		before string // what the engine sends before it goes on thinking
	}{
		"in prefill":   {`{"model":"m","stream":true,"messages":[]}`, ""},
		"mid-stream":   {`{"model":"m","stream":true,"messages":[]}`, "data: {}\n\n"},
		"not streamed": {`{"model":"m","messages":[]}`, ""},
	}
	for name, phase := range phases {
		t.Run(name, func(t *testing.T) {
			began, ended := make(chan bool), make(chan time.Duration)
			s := &stub{handle: func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if phase.before != "" {
					w.Header().Set("Content-Type", "text/event-stream")
					io.WriteString(w, phase.before)
					w.(http.Flusher).Flush()
				}
				began <- true
				start := time.Now()
				<-r.Context().Done()
				ended <- time.Since(start)
			}}
			synctest.Test(t, func(t *testing.T) {
				began, ended = make(chan bool), make(chan time.Duration)
				n, c := start(t, devnet.Options{Engine: s.engine(t)})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan bool)
				go func() {
					defer close(done)
					req, _ := http.NewRequestWithContext(ctx, http.MethodPost, n.BaseURL+"/chat/completions", strings.NewReader(phase.body))
					resp, err := c.Do(req)
					if err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}()
				<-began
				synctest.Wait()
				cancel()
				// Fake time stands still while anything runs, so 0 means that
				// nobody waited for a timer on the way.
				if d := <-ended; d != 0 {
					t.Errorf("the engine noticed after %v", d)
				}
				<-done
			})
		})
	}
}

func TestManyInstantAnswersAreWhole(t *testing.T) {
	answer := `{"object":"chat.completion","choices":[{"message":{"content":"` + strings.Repeat("x", 3000) + `"}}]}`
	s := &stub{handle: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json") // and the body is left unread
		io.WriteString(w, answer)
	}}
	bubble(t, devnet.Options{Engine: s.engine(t), Capacity: 64}, func(t *testing.T, n *devnet.Net, c *http.Client) {
		body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("y", 20_000) + `"}]}`
		exchanges := 1000
		if testing.Short() {
			exchanges = 100
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range exchanges / 8 {
					resp := post(t, t.Context(), c, n.BaseURL+"/chat/completions", body)
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if resp.StatusCode != 200 || string(got) != answer || err != nil {
						t.Errorf("status %d, %d of %d bytes, %v", resp.StatusCode, len(got), len(answer), err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// An engine that stops in the middle must not look as if it had finished.
func TestHalfAnAnswerIsAnError(t *testing.T) {
	for name, handle := range map[string]func(http.ResponseWriter, *http.Request){
		"stream": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n\n")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"whole": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"choices":[`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stub{handle: handle}
			bubble(t, devnet.Options{Engine: s.engine(t)}, func(t *testing.T, n *devnet.Net, c *http.Client) {
				resp, err := c.Post(n.BaseURL+"/chat/completions", "application/json",
					strings.NewReader(`{"model":"m","stream":`+fmt.Sprint(name == "stream")+`,"messages":[]}`))
				if err != nil {
					return // broken off before the header reached the app: an error too
				}
				defer resp.Body.Close()
				if name == "stream" {
					text, _, err := readStream(resp.Body)
					var object openai.Error
					if text != "half" || !errors.As(err, &object) || object.Message == "" {
						t.Errorf("read %q, %v", text, err)
					}
				} else if body, err := io.ReadAll(resp.Body); err == nil && resp.StatusCode == 200 {
					t.Errorf("read %q as a whole answer", body)
				}
			})
		})
	}
}

// log collects lines; it is safe for several goroutines.
type log struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// The canaries of one exchange must be in nobody's log, at its most talkative,
// and in no answer of the relay. e2e searches the relay's memory as well.
func TestCanariesStayInside(t *testing.T) {
	canaries := []string{"CANARY-PROMPT", "CANARY-ANSWER", "CANARY-KEY", "CANARY-AGENT", "CANARY-COOKIE", "CANARY-FIELD"}
	var logs log
	talkative := func() *slog.Logger { return telemetry.New(telemetry.Development, &logs) }
	seen := make(chan string, 10)
	s := &stub{handle: func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var head bytes.Buffer
		r.Header.Write(&head)
		seen <- string(body) + head.String() + r.RemoteAddr
		w.Header().Set("Tokenplace-Node", "forged")
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[{"message":{"content":"CANARY-ANSWER"}}]}`)
	}}
	bubble(t, devnet.Options{Engine: s.engine(t), Log: talkative(), RelayLog: talkative()}, func(t *testing.T, n *devnet.Net, c *http.Client) {
		req, _ := http.NewRequest(http.MethodPost, n.BaseURL+"/chat/completions",
			strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"CANARY-PROMPT"}],"extra":"CANARY-FIELD"}`))
		req.Header.Set("Authorization", "Bearer CANARY-KEY")
		req.Header.Set("User-Agent", "CANARY-AGENT")
		req.Header.Set("Cookie", "id=CANARY-COOKIE")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get(client.NodeHeader); len(got) != 26 {
			t.Errorf("the engine chose the label %q", got)
		}
		if !strings.Contains(string(body), "CANARY-ANSWER") {
			t.Fatalf("no answer: %s", body)
		}
		arrived := <-seen
		for _, want := range []string{"CANARY-PROMPT", "CANARY-FIELD"} {
			if !strings.Contains(arrived, want) {
				t.Errorf("%s did not reach the engine: the test would find nothing", want)
			}
		}
		for _, leak := range []string{"CANARY-KEY", "CANARY-AGENT", "CANARY-COOKIE"} {
			if strings.Contains(arrived, leak) {
				t.Errorf("%s reached the engine", leak)
			}
		}
		n.Close()
		for _, canary := range canaries {
			if strings.Contains(logs.b.String(), canary) {
				t.Errorf("%s is in a log:\n%s", canary, logs.b.String())
			}
		}
		if !strings.Contains(logs.b.String(), "node starts") {
			t.Errorf("nothing was logged: the test would find nothing\n%s", logs.b.String())
		}
	})
}

func TestCloseFinishesAnswers(t *testing.T) {
	s := &stub{handle: func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Second)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[]}`)
	}}
	bubble(t, devnet.Options{Engine: s.engine(t)}, func(t *testing.T, n *devnet.Net, c *http.Client) {
		result := make(chan string)
		go func() {
			resp, err := c.Post(n.BaseURL+"/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[]}`))
			if err != nil {
				result <- err.Error()
				return
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			result <- fmt.Sprint(string(body), err)
		}()
		time.Sleep(time.Second)
		go n.Close()
		if got := <-result; got != `{"choices":[]}<nil>` {
			t.Errorf("answer during Close: %s", got)
		}
	})
}

func TestStartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memnet.New()
		taken, _ := mem.Listen("127.0.0.1:4117")
		defer taken.Close()
		_, err := devnet.Start(t.Context(), devnet.Options{
			Listen: func(_, addr string) (net.Listener, error) { return mem.Listen(addr) },
			Dial:   mem.Dial, Server: "127.0.0.1:4117", RelayAddr: "127.0.0.1:8443",
		})
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a taken address: %v", err)
		}
	})
}

// BenchmarkChain is one exchange from app to engine and back, over TLS and both
// hops, in memory: local server, relay, node, an engine that answers at once.
func BenchmarkChain(b *testing.B) {
	s := &stub{handle: func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[{"message":{"content":"`+strings.Repeat("x", 2000)+`"}}]}`)
	}}
	n, c := start(b, devnet.Options{Engine: s.engine(b)})
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("y", 3500) + `"}]}`
	b.ReportAllocs()
	for b.Loop() {
		resp := post(b, b.Context(), c, n.BaseURL+"/chat/completions", body)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// A node that a relay does not take is told why.
func TestARefusedNodeKnowsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memnet.New()
		cred, _ := identity.NewCredential()
		other, _ := identity.NewCredential()
		r, err := relay.New(relay.Config{Credential: cred, Nodes: []identity.ID{other.ID()}})
		if err != nil {
			t.Fatal(err)
		}
		ln, _ := mem.Listen("relay:443")
		address, _ := identity.ParseRelay("https://relay:443/#" + string(cred.ID()))
		var logs log
		s := &stub{}
		n, err := node.New(node.Config{Credential: must(identity.NewCredential()), Relays: []identity.Relay{address},
			Engine: s.engine(t), Dial: mem.Dial, Log: telemetry.New(telemetry.Production, &logs)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		parts.Go(func() { r.Serve(ctx, ln) })
		parts.Go(func() { n.Run(ctx) })
		time.Sleep(time.Minute)
		if r.Connected() != 0 {
			t.Error("it was let in")
		}
		stop()
		parts.Wait()
		if got := logs.b.String(); strings.Count(got, "ask its operator to add --allow") != 1 {
			t.Errorf("log of a minute:\n%s", got)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
