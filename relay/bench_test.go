package relay_test

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"token.place/relay"
)

// The benchmarks run client, relay and node in one process with TLS on both
// legs: compare figures of one run with each other, not with a relay's own cost.

// An exchange of 4 KB up and 2 KB down, 64 at a time.
func BenchmarkExchange(b *testing.B) {
	for _, proto := range both {
		b.Run(proto, func(b *testing.B) {
			w := start(b, relay.Config{Log: discard})
			defer w.close()
			answer := bytes.Repeat([]byte("x"), 2<<10)
			n := w.joinFor(b, 1000, func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				rw.Header()["Content-Type"] = []string{"message/ohttp-chunked-res"}
				rw.Write(answer)
			})
			defer n.close()
			c := w.client(proto)
			up := bytes.Repeat([]byte("x"), 4<<10)
			b.ReportAllocs()
			b.SetParallelism((64 + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					res, _ := w.exchange(c, n.ID(), bytes.NewReader(up))
					if res.StatusCode != http.StatusOK {
						b.Error(res.Status)
					}
				}
			})
			b.StopTimer()
			c.CloseIdleConnections()
		})
	}
}

// Chunks of 100 bytes on 64 streams at once; an op is a chunk.
func BenchmarkChunk(b *testing.B) {
	const streams = 64
	for _, proto := range both {
		b.Run(proto, func(b *testing.B) {
			w := start(b, relay.Config{Log: discard})
			defer w.close()
			chunk := bytes.Repeat([]byte("x"), 100)
			each := b.N/streams + 1
			n := w.joinFor(b, 1000, func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				rw.Header()["Content-Type"] = []string{"message/ohttp-chunked-res"}
				rc := http.NewResponseController(rw)
				for range each {
					rw.Write(chunk)
					rc.Flush()
				}
			})
			defer n.close()
			c := w.client(proto)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range streams {
				wg.Go(func() {
					req, _ := http.NewRequest("POST", "https://"+address+"/v1/exchange/"+string(n.ID()), bytes.NewReader([]byte("hello")))
					req.Header = sealed()
					res, err := c.Do(req)
					if err != nil {
						b.Error(err)
						return
					}
					defer res.Body.Close()
					if got, err := io.Copy(io.Discard, res.Body); err != nil || got != int64(each*len(chunk)) {
						b.Errorf("%d bytes, %v", got, err)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			c.CloseIdleConnections()
		})
	}
}
