package tunnel_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/internal/memnet"
	"token.place/tunnel"
)

// Every test runs in a synctest bubble where it can: time is free, and a
// goroutine that outlives its tunnel fails the test.

// link is a tunnel: a node that is being served, and the relay's end of it.
type link struct {
	*tunnel.Conn
	relay, node net.Conn           // the raw ends
	stop        context.CancelFunc // ends the node's context
	served      chan error         // what Serve returned
}

// dial makes a tunnel in memory.
func dial(t testing.TB, h http.Handler, cfg tunnel.ServeConfig) *link {
	t.Helper()
	relay, node := memnet.Pipe()
	return dialOn(t, relay, node, h, cfg, tunnel.Config{})
}

func dialOn(t testing.TB, relay, node net.Conn, h http.Handler, cfg tunnel.ServeConfig, relayConfig tunnel.Config) *link {
	t.Helper()
	if cfg.Capacity == 0 {
		cfg.Capacity = 10
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &link{relay: relay, node: node, stop: stop, served: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.served <- tunnel.Serve(ctx, node, h, cfg)
	}()
	c, err := tunnel.Open(context.Background(), relay, relayConfig)
	if err != nil {
		t.Fatal(err)
	}
	l.Conn = c
	t.Cleanup(func() {
		c.Close()
		stop()
		<-ended
	})
	return l
}

func get(path string) *http.Request {
	req, err := http.NewRequest("GET", "http://node"+path, nil)
	if err != nil {
		panic(err)
	}
	return req
}

func post(body io.Reader) *http.Request {
	req, err := http.NewRequest("POST", "http://node/exchange", body)
	if err != nil {
		panic(err)
	}
	return req
}

// send starts an exchange whose response has begun.
func send(t testing.TB, rt http.RoundTripper, req *http.Request) *http.Response {
	t.Helper()
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func read(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func echo(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }

// hold sends a first byte and then waits: for release, which ends the response
// with another, or for the end of the request.
func hold(release <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a")
		http.NewResponseController(w).Flush()
		select {
		case <-release:
			io.WriteString(w, "z")
		case <-r.Context().Done():
		}
	}
}

// bubble is synctest.Test with a name for what every test here needs.
func bubble(t *testing.T, f func(*testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestExchange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, http.HandlerFunc(echo), tunnel.ServeConfig{Capacity: 3})
		res := send(t, l, post(strings.NewReader("hello")))
		if got := read(t, res); got != "hello" || res.StatusCode != 200 {
			t.Errorf("got %q, status %d", got, res.StatusCode)
		}
		if res.Header.Get("Date") != "" {
			t.Error("the node told the time")
		}
		if l.Capacity() != 3 || !l.Available() {
			t.Errorf("capacity %d, available %v", l.Capacity(), l.Available())
		}
	})
}

// What each end announces, byte for byte as spec/tunnel.md has it.
func TestSettings(t *testing.T) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	const maxConcurrentStreams, enablePush, initialWindowSize, maxFrameSize = 3, 2, 4, 5
	bubble(t, func(t *testing.T) {
		relay, node := memnet.Pipe()
		go tunnel.Serve(t.Context(), node, nil, tunnel.ServeConfig{Capacity: 7})
		io.WriteString(relay, preface)
		got, window := opening(t, relay)
		relay.Close()
		want := map[uint16]uint32{maxConcurrentStreams: 9, initialWindowSize: 1 << 20, maxFrameSize: 16 << 10}
		for id, v := range want {
			if got[id] != v {
				t.Errorf("the node's setting %d is %d, not %d", id, got[id], v)
			}
		}
		if window != 4<<20-1 {
			t.Errorf("the node's window is %d", window)
		}
	})
	bubble(t, func(t *testing.T) {
		relay, node := memnet.Pipe()
		go tunnel.Open(t.Context(), relay, tunnel.Config{})
		b := make([]byte, len(preface))
		if _, err := io.ReadFull(node, b); err != nil || string(b) != preface {
			t.Fatalf("%q, %v", b, err)
		}
		got, window := opening(t, node)
		node.Close()
		if got[initialWindowSize] != 1<<20 || got[maxFrameSize] != 16<<10 || got[enablePush] != 0 {
			t.Errorf("the relay's settings: %v", got)
		}
		if window != 1<<30+1<<16-1 {
			t.Errorf("the relay's window is %d", window)
		}
	})
}

// opening reads a SETTINGS frame and a WINDOW_UPDATE for the connection (RFC
// 9113 §6.5, §6.9).
func opening(t *testing.T, c net.Conn) (settings map[uint16]uint32, window uint32) {
	t.Helper()
	frame := func(kind byte) []byte {
		h := make([]byte, 9)
		if _, err := io.ReadFull(c, h); err != nil || h[3] != kind {
			t.Fatalf("frame %x, %v", h, err)
		}
		b := make([]byte, int(h[0])<<16|int(h[1])<<8|int(h[2]))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	settings = map[uint16]uint32{}
	for b := frame(4); len(b) > 0; b = b[6:] {
		settings[binary.BigEndian.Uint16(b)] = binary.BigEndian.Uint32(b[2:])
	}
	return settings, 1<<16 - 1 + binary.BigEndian.Uint32(frame(8))
}

func TestServeRefusesCapacity(t *testing.T) {
	for _, n := range []int{-1, 0, 1001} {
		_, node := memnet.Pipe()
		if tunnel.Serve(t.Context(), node, nil, tunnel.ServeConfig{Capacity: n}) == nil {
			t.Errorf("capacity %d was taken", n)
		}
	}
}

// A cancel reaches the node's handler in every phase of an exchange.
func TestCancel(t *testing.T) {
	phases := map[string]struct {
		body  func(context.Context) io.Reader
		reply bool // the handler answers before it waits
	}{
		"before the body":        {body: blocked},
		"before the answer":      {body: prompt},
		"in the answer":          {body: prompt, reply: true},
		"in the body and answer": {body: blocked, reply: true},
	}
	for name, phase := range phases {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				started, ended := make(chan struct{}), make(chan struct{})
				l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					close(started)
					if phase.reply {
						http.NewResponseController(w).Flush()
					}
					<-r.Context().Done()
				}), tunnel.ServeConfig{})
				ctx, cancel := context.WithCancel(t.Context())
				failed := make(chan error, 1)
				go func() {
					res, err := l.RoundTrip(post(phase.body(ctx)).WithContext(ctx))
					if err == nil {
						_, err = io.ReadAll(res.Body)
						res.Body.Close()
					}
					failed <- err
				}()
				<-started
				synctest.Wait()
				begin := time.Now()
				cancel()
				if err := <-failed; !errors.Is(err, context.Canceled) {
					t.Errorf("the relay got %v", err)
				}
				<-ended
				if late := time.Since(begin); late > 0 {
					t.Errorf("the cancel took %v", late)
				}
				synctest.Wait()
				if l.InFlight() != 0 {
					t.Errorf("%d exchanges in flight", l.InFlight())
				}
			})
		})
	}
}

func prompt(context.Context) io.Reader { return strings.NewReader("prompt") }

// blocked is a body of which nothing arrives until it is closed or, as in a
// server, its request has ended.
func blocked(ctx context.Context) io.Reader {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	return r
}

// An exchange that was cancelled before it began costs nothing.
func TestCancelBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, http.HandlerFunc(echo), tunnel.ServeConfig{Capacity: 1})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 10 {
			if _, err := l.RoundTrip(post(strings.NewReader("x")).WithContext(ctx)); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			synctest.Wait()
		}
		send(t, l, post(strings.NewReader("x")))
	})
}

// When the node dies nobody mistakes what came for the whole answer.
func TestNodeDies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, hold(nil), tunnel.ServeConfig{})
		res := send(t, l, post(nil))
		waiting := make(chan error, 1)
		go func() {
			_, err := l.RoundTrip(post(blocked(t.Context())))
			waiting <- err
		}()
		synctest.Wait()
		l.node.Close()
		if b, err := io.ReadAll(res.Body); string(b) != "a" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the client got %q, %v", b, err)
		}
		<-waiting
		<-l.Done()
		if l.Available() {
			t.Error("still available")
		}
		if err := <-l.served; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Serve returned %v", err)
		}
		if _, err := l.RoundTrip(post(nil)); err != tunnel.ErrUnavailable {
			t.Errorf("the next exchange got %v", err)
		}
	})
}

// When the relay dies the node's handlers stop, and Serve waits for them.
func TestRelayDies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var ended bool
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
			time.Sleep(time.Second)
			ended = true
		}), tunnel.ServeConfig{})
		send(t, l, post(nil))
		l.relay.Close()
		if err := <-l.served; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Serve returned %v", err)
		}
		if !ended {
			t.Error("Serve left a handler behind")
		}
	})
}

// A panic ends one exchange.
func TestPanic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > 0 {
				panic("engine")
			}
		}), tunnel.ServeConfig{})
		if _, err := l.RoundTrip(post(strings.NewReader("x"))); err == nil {
			t.Error("no error")
		}
		send(t, l, post(nil))
	})
}

// What the other end says before HTTP/2 runs is bounded in time.
func TestSilence(t *testing.T) {
	t.Run("relay", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, node := memnet.Pipe()
			begin := time.Now()
			err := tunnel.Serve(t.Context(), node, nil, tunnel.ServeConfig{Capacity: 1})
			if took := time.Since(begin); err == nil || took > 15*time.Second {
				t.Errorf("Serve returned %v after %v", err, took)
			}
		})
	})
	t.Run("node", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			relay, _ := memnet.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := tunnel.Open(ctx, relay, tunnel.Config{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Open returned %v", err)
			}
		})
	})
	t.Run("node hangs up", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			relay, node := memnet.Pipe()
			node.Close()
			if _, err := tunnel.Open(t.Context(), relay, tunnel.Config{}); err == nil {
				t.Error("Open succeeded")
			}
		})
	})
	t.Run("node speaks something else", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			relay, node := memnet.Pipe()
			defer node.Close()
			io.WriteString(node, "HTTP/1.1 400 Bad Request\r\n\r\n")
			if _, err := tunnel.Open(t.Context(), relay, tunnel.Config{}); err == nil {
				t.Error("Open succeeded")
			}
		})
	})
	t.Run("stopped before it began", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, node := memnet.Pipe()
			begin := time.Now()
			if err := tunnel.Serve(ctx, node, nil, tunnel.ServeConfig{Capacity: 1}); err != nil {
				t.Errorf("Serve returned %v", err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("after %v", took)
			}
		})
	})
}
