package tunnel_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"token.place/internal/memnet"
	"token.place/tunnel"
)

// An exchange is one write each way when the end that writes is busy, as one
// processor is; without gathering it is 2.5 by the relay and 2 by the node.
func TestWritesGathered(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a, b := memnet.Pipe()
	relay, node := newCounted(a), newCounted(b)
	l := dialOn(t, relay, node, answer(2<<10), tunnel.ServeConfig{}, tunnel.Config{})
	up := make([]byte, 4<<10)
	relay.writes.Store(0)
	node.writes.Store(0)
	const n = 500
	for range n {
		exchange(t, l, up)
	}
	if r, w := relay.writes.Load(), node.writes.Load(); r > n*7/4 || w > n*7/4 {
		t.Errorf("%.2f and %.2f writes for an exchange", float64(r)/n, float64(w)/n)
	}
}

// Bytes do not wait for more bytes: the header of a request reaches the node
// while its body is still to come, and each chunk as it is flushed.
func TestNothingWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		started := make(chan struct{})
		l := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(started)
			http.NewResponseController(w).Flush()
			for b := make([]byte, 10); ; {
				n, err := r.Body.Read(b)
				if err != nil {
					return
				}
				w.Write(b[:n])
				http.NewResponseController(w).Flush()
			}
		}), tunnel.ServeConfig{})
		body, w := io.Pipe()
		defer w.Close()
		answered := make(chan *http.Response, 1)
		go func() {
			res, err := l.RoundTrip(post(body))
			if err != nil {
				t.Error(err)
			}
			answered <- res
		}()
		synctest.Wait()
		select {
		case <-started:
		default:
			t.Fatal("the header waits for the body")
		}
		res := <-answered
		defer res.Body.Close()
		for range 5 {
			io.WriteString(w, "chunk")
			b := make([]byte, 5)
			if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "chunk" {
				t.Fatalf("%q, %v", b, err)
			}
		}
	})
}

// What was accepted before Close leaves, in order, and an idle connection
// holds nothing.
func TestConnOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		c := tunnel.TestingOnlyNewConn(a)
		var want bytes.Buffer
		got := make(chan []byte)
		go func() {
			b, _ := io.ReadAll(b)
			got <- b
		}()
		for i := range 3000 {
			p := bytes.Repeat([]byte{byte(i)}, i*7%20_000)
			want.Write(p)
			if n, err := c.Write(p); n != len(p) || err != nil {
				t.Fatal(n, err)
			}
			if i == 1000 {
				synctest.Wait()
				if !c.TestingOnlyIdle() {
					t.Error("an idle connection holds a buffer")
				}
			}
		}
		c.Close()
		if !bytes.Equal(<-got, want.Bytes()) {
			t.Error("the bytes differ")
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("a write after Close succeeded")
		}
	})
}

// A peer that does not read stops the writer after two buffers, and Close does
// not wait for it.
func TestConnStalled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := net.Pipe() // holds nothing itself
		c := tunnel.TestingOnlyNewConn(a)
		var accepted int
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				n, err := c.Write(make([]byte, 1000))
				if err != nil {
					return
				}
				accepted += n
			}
		})
		synctest.Wait()
		if accepted > 34<<10 {
			t.Errorf("%d bytes queued", accepted)
		}
		c.Close()
		wg.Wait()
		b.Close()
	})
}

// A write that fails ends the tunnel, though nobody waits for the write.
func TestWriteFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := memnet.Pipe()
		relay := &failing{Conn: a}
		l := dialOn(t, relay, b, http.HandlerFunc(echo), tunnel.ServeConfig{}, tunnel.Config{})
		synctest.Wait()
		relay.fail()
		if _, err := l.RoundTrip(post(strings.NewReader("x")).WithContext(context.Background())); err == nil {
			t.Error("no error")
		}
		<-l.Done()
		<-l.served
	})
}

type failing struct {
	net.Conn
	mu     sync.Mutex // guards the field below
	failed bool
}

func (f *failing) fail() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = true
}

func (f *failing) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed {
		return 0, io.ErrShortWrite
	}
	return f.Conn.Write(p)
}
