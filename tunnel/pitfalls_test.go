package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"token.place/internal/memnet"
	"token.place/tunnel"
)

// Pitfall 1: clients that do not read must not stop their node. Each stalled
// stream may hold a window of bytes at the relay; together they must leave the
// connection's window open.
func TestStalledReaders(t *testing.T) {
	stalled := 300 // × 1 MB
	if raceEnabled || testing.Short() {
		stalled = 30
	}
	bubble(t, func(t *testing.T) {
		big := make([]byte, 2<<20)
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > 0 {
				io.Copy(w, r.Body)
				return
			}
			w.Write(big)
		}), tunnel.ServeConfig{Capacity: stalled + 1})
		for range stalled {
			send(t, l, post(nil))
		}
		synctest.Wait() // every handler is stuck in Write
		begin := time.Now()
		for range 10 {
			if got := read(t, send(t, l, post(strings.NewReader("hello")))); got != "hello" {
				t.Errorf("got %q", got)
			}
			synctest.Wait() // until its stream is free
		}
		if late := time.Since(begin); late > 0 {
			t.Errorf("the others waited %v", late)
		}
		if n := l.InFlight(); n != stalled {
			t.Errorf("%d exchanges in flight", n)
		}
	})
}

// Pitfall 1 at the node: a handler that does not read its request leaves the
// others room, if they are not many.
func TestStalledHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength == 4<<20 {
				<-r.Context().Done()
				return
			}
			io.Copy(w, r.Body)
		}), tunnel.ServeConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { l.RoundTrip(post(bytes.NewReader(make([]byte, 4<<20))).WithContext(ctx)) })
		}
		synctest.Wait()
		if got := len(read(t, send(t, l, post(bytes.NewReader(make([]byte, 2<<20)))))); got != 2<<20 {
			t.Errorf("got %d bytes", got)
		}
		cancel()
		wg.Wait()
	})
}

// Pitfall 2: over a 50 ms round trip 1 MB must not wait for small windows.
func TestRoundTripTime(t *testing.T) {
	const size = 1<<20 - 1<<10
	for name, h := range map[string]http.HandlerFunc{
		"up":   answer(1),
		"down": answer(size),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				relay, node := distance(t, 50*time.Millisecond, 0)
				l := dialOn(t, relay, node, h, tunnel.ServeConfig{}, tunnel.Config{})
				var up []byte
				if name == "up" {
					up = make([]byte, size)
				}
				begin := time.Now()
				exchange(t, l, up)
				if took := time.Since(begin); took > 60*time.Millisecond {
					t.Errorf("1 MB took %v", took)
				}
			})
		})
	}
}

// Pitfall 3: on an uplink of 10 Mbit/s, 13 ms a frame, a small answer passes four
// big ones. The socket's buffer is what TCP_NOTSENT_LOWAT leaves of it; with
// 512 KB of it a small answer takes 580 ms.
func TestSlowUplink(t *testing.T) {
	bubble(t, func(t *testing.T) {
		relay, node := distance(t, 50*time.Millisecond, 10_000_000/8)
		l := dialOn(t, relay, node, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Write(make([]byte, max(int(r.ContentLength)%1000*1000, 100)))
		}), tunnel.ServeConfig{}, tunnel.Config{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { exchange(t, l, make([]byte, 1999)) }) // answered with 1 MB
		}
		time.Sleep(500 * time.Millisecond)
		for range 5 {
			begin := time.Now()
			exchange(t, l, make([]byte, 1000)) // answered with 100 bytes
			if took := time.Since(begin); took > 200*time.Millisecond {
				t.Errorf("a small answer took %v", took)
			}
		}
		wg.Wait()
	})
}

// Pitfall 4: an engine that answers before it has read the request. No answer
// may be cut short.
func TestEarlyAnswer(t *testing.T) {
	exchanges := 10_000
	if raceEnabled || testing.Short() {
		exchanges = 1_000
	}
	const size = 3000
	b := bytes.Repeat([]byte("x"), size)
	l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(b) }), tunnel.ServeConfig{Capacity: 16})
	up := make([]byte, 40<<10)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range exchanges / 16 {
				// A stream is free a moment after its answer has ended.
				res, err := l.RoundTrip(post(bytes.NewReader(up)))
				for errors.Is(err, tunnel.ErrUnavailable) {
					runtime.Gosched()
					res, err = l.RoundTrip(post(bytes.NewReader(up)))
				}
				if err != nil {
					t.Error(err)
					return
				}
				n, err := io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if n != size || err != nil || res.StatusCode != 200 {
					t.Errorf("status %d, %d bytes, %v", res.StatusCode, n, err)
				}
			}
		})
	}
	wg.Wait()
}

// Pitfall 5: the node drains. The relay knows at once, running exchanges
// finish, the status stream does not keep the connection open.
func TestNodeDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release, draining := make(chan struct{}), make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("POST /exchange", hold(release))
		mux.HandleFunc("GET /status", hold(draining))
		l := dial(t, mux, tunnel.ServeConfig{OnDrain: func() { close(draining) }})
		status := send(t, l, get("/status"))
		res := send(t, l, post(nil))
		if n := l.InFlight(); n != 1 {
			t.Errorf("%d exchanges in flight", n)
		}
		l.stop()
		synctest.Wait()
		if l.Available() {
			t.Error("still available")
		}
		if _, err := l.RoundTrip(post(nil)); err != tunnel.ErrUnavailable {
			t.Errorf("a new exchange got %v", err)
		}
		if got := read(t, status); got != "az" {
			t.Errorf("status %q", got)
		}
		time.Sleep(10 * time.Second)
		close(release)
		if got := read(t, res); got != "az" {
			t.Errorf("got %q", got)
		}
		begin := time.Now()
		if err := <-l.served; err != nil {
			t.Errorf("Serve returned %v", err)
		}
		<-l.Done()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("Serve took %v after the last exchange", took)
		}
	})
}

// What still runs when the time to drain is over is ended.
func TestDrainEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, hold(nil), tunnel.ServeConfig{Drain: 5 * time.Second})
		res := send(t, l, post(nil))
		begin := time.Now()
		l.stop()
		if b, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("the client took %q for an answer", b)
		}
		if err := <-l.served; err != nil {
			t.Errorf("Serve returned %v", err)
		}
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("the drain took %v", took)
		}
	})
}

// The relay asks a node to drain, also one that is full.
func TestRelayDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release, draining := make(chan struct{}), make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("POST /exchange", hold(release))
		mux.HandleFunc("GET /status", hold(draining))
		l := dial(t, mux, tunnel.ServeConfig{Capacity: 1, OnDrain: func() { close(draining) }})
		send(t, l, get("/status"))
		res := send(t, l, post(nil))
		drained := make(chan error, 1)
		go func() { drained <- l.Drain(t.Context()) }()
		synctest.Wait()
		select {
		case <-draining:
		default:
			t.Error("the node was not told")
		}
		if l.Available() {
			t.Error("still available")
		}
		close(release)
		if got := read(t, res); got != "az" {
			t.Errorf("got %q", got)
		}
		if err := <-l.served; err != tunnel.ErrDrained {
			t.Errorf("Serve returned %v", err)
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
	})
}

// A relay that cannot wait any longer closes.
func TestRelayDrainEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := dial(t, hold(nil), tunnel.ServeConfig{})
		send(t, l, post(nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain returned %v", err)
		}
		<-l.Done()
		if err := <-l.served; err != tunnel.ErrDrained {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// Pitfall 6: past its capacity a node is unavailable at once, nothing queues.
// The status stream does not count.
func TestFull(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		l := dial(t, hold(release), tunnel.ServeConfig{Capacity: 2})
		send(t, l, get("/status"))
		first, second := send(t, l, post(nil)), send(t, l, post(nil))
		for range 3 {
			body := &closing{Reader: strings.NewReader("x")}
			if _, err := l.RoundTrip(post(body)); err != tunnel.ErrUnavailable {
				t.Errorf("a third exchange got %v", err)
			}
			if !body.closed {
				t.Error("its body was left open")
			}
		}
		if l.Available() || l.InFlight() != 2 {
			t.Errorf("available %v, in flight %d", l.Available(), l.InFlight())
		}
		close(release)
		read(t, first)
		read(t, second)
		synctest.Wait()
		if got := read(t, send(t, l, post(nil))); got != "az" {
			t.Errorf("got %q", got)
		}
	})
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// Pitfall 7: both ends find a peer that vanished, without a word of TCP.
func TestVanishedPeer(t *testing.T) {
	for name, c := range map[string]struct {
		ping, timeout, limit time.Duration
	}{
		"as configured": {time.Second, time.Second, 2500 * time.Millisecond},
		"by default":    {0, 0, 26 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				relay, node := distance(t, 10*time.Millisecond, 0)
				l := dialOn(t, relay, node, hold(nil),
					tunnel.ServeConfig{Ping: c.ping, PingTimeout: c.timeout},
					tunnel.Config{Ping: c.ping, PingTimeout: c.timeout})
				res := send(t, l, post(nil))
				time.Sleep(time.Minute) // a live one is kept
				begin := time.Now()
				relay.vanish()
				node.vanish()
				if b, err := io.ReadAll(res.Body); err == nil {
					t.Errorf("the client took %q for an answer", b)
				}
				<-l.Done()
				if took := time.Since(begin); took > c.limit {
					t.Errorf("the relay took %v", took)
				}
				if err := <-l.served; !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("Serve returned %v", err)
				}
				if took := time.Since(begin); took > c.limit {
					t.Errorf("the node took %v", took)
				}
			})
		})
	}
}

// Pitfall 7: heartbeats are few when nothing happens.
func TestHeartbeatCost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		relay, node := newCounted(a), newCounted(b)
		dialOn(t, relay, node, http.HandlerFunc(echo), tunnel.ServeConfig{}, tunnel.Config{})
		synctest.Wait()
		relay.writes.Store(0)
		node.writes.Store(0)
		time.Sleep(time.Hour)
		if r, n := relay.writes.Load(), node.writes.Load(); r > 240 || n > 240 {
			t.Errorf("%d and %d writes in an hour", r, n)
		}
	})
}

// Pitfall 8 is TestCancel and TestNodeDies.

// Pitfall 9: nodes come back spread out, and within 5 s.
func TestBackoff(t *testing.T) {
	const nodes = 10_000
	var last [8]int // attempts in each half second of the last wait
	for range nodes {
		var b tunnel.Backoff
		for attempt := range 20 {
			d := b.Next(0)
			if d < 0 || d >= 4*time.Second || attempt == 0 && d > 100*time.Millisecond {
				t.Fatalf("attempt %d waits %v", attempt, d)
			}
			if attempt == 19 {
				last[d/(500*time.Millisecond)]++
			}
		}
		if d := b.Next(time.Minute); d > 100*time.Millisecond {
			t.Fatalf("%v after a connection that stood", d)
		}
	}
	for i, n := range last {
		if n < nodes/8*8/10 || n > nodes/8*12/10 {
			t.Errorf("%d of %d nodes in half second %d", n, nodes, i)
		}
	}
}

// A connection that is refused over and over does not count as a success.
func TestBackoffShort(t *testing.T) {
	var b tunnel.Backoff
	var longest time.Duration
	for range 100 {
		longest = max(longest, b.Next(time.Second))
	}
	if longest < time.Second {
		t.Errorf("never waited more than %v", longest)
	}
}

// Pitfall 10, and what an exchange costs: about 85 allocations for both ends,
// all but a handful of them net/http's. The limit leaves room for pools that a
// collection empties.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := dial(t, answer(2<<10), tunnel.ServeConfig{})
	up := make([]byte, 4<<10)
	if n := testing.AllocsPerRun(1000, func() { exchange(t, l, up) }); n > 110 {
		t.Errorf("%v allocations for an exchange", n)
	}
}
