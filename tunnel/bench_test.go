package tunnel_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"token.place/internal/memnet"
	"token.place/tunnel"
)

// networks are what the benchmarks run over: pairs of (relay, node) ends.
var networks = []struct {
	name string
	pair func(testing.TB) (relay, node net.Conn)
}{
	{"memory", func(testing.TB) (relay, node net.Conn) { return memnet.Pipe() }},
	{"tls", tlsPair},
}

// tlsPair is a TLS 1.3 connection over loopback, for benchmarks only: tests
// open no ports.
func tlsPair(t testing.TB) (relay, node net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server, client := tlsConfigs()
	r, n := tls.Server(accepted, server), tls.Client(dialled, client)
	done := make(chan error, 1)
	go func() { done <- n.Handshake() }()
	if err := r.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return r, n
}

// tlsConfigs are as the relay's and the node's are: TLS 1.3, mutual,
// self-signed.
var tlsConfigs = sync.OnceValues(func() (server, client *tls.Config) {
	certificate := func() tls.Certificate {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
		if err != nil {
			panic(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	base := tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.Proto},
		DynamicRecordSizingDisabled: true, SessionTicketsDisabled: true,
	}
	server = base.Clone()
	server.Certificates, server.ClientAuth = []tls.Certificate{certificate()}, tls.RequireAnyClientCert
	client = base.Clone()
	client.Certificates, client.InsecureSkipVerify = []tls.Certificate{certificate()}, true
	return server, client
})

// counted counts the writes below the tunnel.
type counted struct {
	net.Conn
	writes *atomic.Int64
}

func newCounted(c net.Conn) counted { return counted{c, new(atomic.Int64)} }

func (c counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func (c counted) NetConn() net.Conn {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c.Conn
}

// exchange sends up bytes, reads the answer and returns its length.
func exchange(t testing.TB, rt http.RoundTripper, up []byte) int64 {
	res, err := rt.RoundTrip(post(bytes.NewReader(up)))
	if err != nil {
		t.Error(err)
		return 0
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		t.Error(err)
	}
	return n
}

// answer reads the request and answers with n bytes.
func answer(n int) http.HandlerFunc {
	b := bytes.Repeat([]byte("x"), n)
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "message/ohttp-chunked-res")
		w.Write(b)
	}
}

// 4 KB up, 2 KB down, 64 at a time.
func BenchmarkExchange(b *testing.B) {
	for _, network := range networks {
		b.Run(network.name, func(b *testing.B) {
			r, n := network.pair(b)
			relay, node := newCounted(r), newCounted(n)
			l := dialOn(b, relay, node, answer(2<<10), tunnel.ServeConfig{Capacity: 64}, tunnel.Config{})
			up := bytes.Repeat([]byte("x"), 4<<10)
			b.ReportAllocs()
			b.SetParallelism((64 + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			relay.writes.Store(0)
			node.writes.Store(0)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					exchange(b, l, up)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			b.ReportMetric(float64(relay.writes.Load())/float64(b.N), "relay-writes/op")
			b.ReportMetric(float64(node.writes.Load())/float64(b.N), "node-writes/op")
		})
	}
}

// One exchange at a time: latency.
func BenchmarkLatency(b *testing.B) {
	for _, network := range networks {
		b.Run(network.name, func(b *testing.B) {
			r, n := network.pair(b)
			relay, node := newCounted(r), newCounted(n)
			l := dialOn(b, relay, node, answer(2<<10), tunnel.ServeConfig{Capacity: 64}, tunnel.Config{})
			up := bytes.Repeat([]byte("x"), 4<<10)
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				exchange(b, l, up)
			}
			b.ReportMetric(float64(relay.writes.Load())/float64(b.N), "relay-writes/op")
			b.ReportMetric(float64(node.writes.Load())/float64(b.N), "node-writes/op")
		})
	}
}

// Streamed chunks of 100 bytes on 256 streams at once; an op is a chunk.
func BenchmarkChunk(b *testing.B) {
	const streams = 256
	for _, network := range networks {
		b.Run(network.name, func(b *testing.B) {
			chunk := bytes.Repeat([]byte("x"), 100)
			each := b.N/streams + 1
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				rc := http.NewResponseController(w)
				for range each {
					w.Write(chunk)
					rc.Flush()
				}
			})
			relay, node := network.pair(b)
			l := dialOn(b, relay, node, h, tunnel.ServeConfig{Capacity: streams}, tunnel.Config{})
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range streams {
				wg.Go(func() {
					if n := exchange(b, l, nil); n != int64(each*len(chunk)) {
						b.Errorf("got %d bytes", n)
					}
				})
			}
			wg.Wait()
		})
	}
}

// 1 MB each way.
func BenchmarkBulk(b *testing.B) {
	for _, network := range networks {
		b.Run(network.name, func(b *testing.B) {
			relay, node := network.pair(b)
			l := dialOn(b, relay, node, http.HandlerFunc(echo), tunnel.ServeConfig{}, tunnel.Config{})
			up := make([]byte, 1<<20)
			b.SetBytes(2 << 20)
			for b.Loop() {
				exchange(b, l, up)
			}
		})
	}
}

// What a connected node without work costs the relay: its end of the
// connection with the status stream open. Over TLS the nodes are another
// process; in memory both ends and the pipe are counted.
//
//	TUNNEL_NODES=10000 go test -run '^$' -bench IdleNode -benchtime 1x ./tunnel
func BenchmarkIdleNode(b *testing.B) {
	nodes, _ := strconv.Atoi(os.Getenv("TUNNEL_NODES"))
	nodes = max(nodes, 500)
	b.Run("tls", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		child := exec.Command(os.Args[0], "-test.run=^TestNodesElsewhere$")
		child.Env = append(os.Environ(), "TUNNEL_DIAL="+ln.Addr().String(), fmt.Sprintf("TUNNEL_NODES=%d", nodes))
		if err := child.Start(); err != nil {
			b.Fatal(err)
		}
		defer child.Wait()
		defer child.Process.Kill()
		server, _ := tlsConfigs()
		idle(b, nodes, func() net.Conn {
			c, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			t := tls.Server(c, server)
			if err := t.Handshake(); err != nil {
				b.Fatal(err)
			}
			return t
		})
	})
	b.Run("memory", func(b *testing.B) {
		idle(b, nodes, func() net.Conn {
			relay, node := memnet.Pipe()
			go tunnel.Serve(b.Context(), node, http.HandlerFunc(status), tunnel.ServeConfig{Capacity: 4})
			return relay
		})
	})
}

// status sends a line as long as a bundle and stays.
func status(w http.ResponseWriter, r *http.Request) {
	w.Write(bytes.Repeat([]byte("x"), 2<<10))
	http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// TestNodesElsewhere is the other process of BenchmarkIdleNode.
func TestNodesElsewhere(t *testing.T) {
	addr := os.Getenv("TUNNEL_DIAL")
	if addr == "" {
		t.Skip("only run by BenchmarkIdleNode")
	}
	nodes, _ := strconv.Atoi(os.Getenv("TUNNEL_NODES"))
	_, client := tlsConfigs()
	for range nodes {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		go tunnel.Serve(t.Context(), tls.Client(c, client), http.HandlerFunc(status), tunnel.ServeConfig{Capacity: 4})
	}
	select {}
}

// idle opens tunnels on what accept returns and reports what each one holds,
// once whatever b.N is: live memory, and all that the process took for it.
func idle(b *testing.B, nodes int, accept func() net.Conn) {
	memory := func() (heap, stack, process float64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc), float64(m.StackInuse), float64(m.Sys - m.HeapReleased)
	}
	heap0, stack0, process0 := memory()
	var hub tunnel.Hub
	for i := range nodes {
		c, err := tunnel.Open(b.Context(), accept(), tunnel.Config{})
		if err != nil {
			b.Fatal(err)
		}
		res, err := c.RoundTrip(get("/status"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 2<<10)); err != nil {
			b.Fatal(err)
		}
		hub.Attach(strconv.Itoa(i), c)
	}
	heap, stack, process := memory()
	n := float64(nodes)
	b.ReportMetric((heap-heap0)/n, "heap-B/node")
	b.ReportMetric((stack-stack0)/n, "stack-B/node")
	b.ReportMetric((process-process0)/n, "process-B/node")
	hub.Close()
}
