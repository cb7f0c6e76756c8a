package ohttp_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"token.place/ohttp"
)

// chunkSource is an answer without end, sealed as it is read. So what is measured of
// opening a chunk includes sealing it, less the work of an answer.
type chunkSource struct {
	next func(dst []byte) []byte
	buf  []byte
	rest []byte
}

func (s *chunkSource) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		s.buf = s.next(s.buf[:0])
		s.rest = s.buf
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

var frame = make([]byte, 512)

// newChunkReader returns a reader of an endless answer in chunks of 512 octets.
func newChunkReader() io.Reader {
	c := ohttp.FixedCipher()
	return ohttp.NewSealedReader(&chunkSource{next: func(dst []byte) []byte {
		return ohttp.AppendChunk(dst, c, frame, false)
	}}, ohttp.Chunked)
}

// discard is an http.ResponseWriter that forgets.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Flush()                      {}

func TestSealChunkAllocatesNothing(t *testing.T) {
	for _, padded := range []bool{false, true} {
		w := ohttp.NewAnswer(&discard{make(http.Header)}, padded)
		token := []byte(`data: {"choices":[{"delta":{"content":" river"}}]}` + "\n\n")
		seal := func() {
			w.Write(token)
			w.(http.Flusher).Flush()
		}
		seal()
		if n := testing.AllocsPerRun(1000, seal); n != 0 {
			t.Errorf("padded %v: %v allocations for each chunk sealed", padded, n)
		}
	}
}

func TestOpenChunkAllocatesNothing(t *testing.T) {
	r := newChunkReader()
	buf := make([]byte, len(frame))
	open := func() {
		if _, err := io.ReadFull(r, buf); err != nil {
			t.Fatal(err)
		}
	}
	open()
	if n := testing.AllocsPerRun(1000, open); n != 0 {
		t.Errorf("%v allocations for each chunk opened", n)
	}
}

func BenchmarkSealChunk(b *testing.B) {
	w := ohttp.NewAnswer(&discard{make(http.Header)}, true)
	token := []byte(strings.Repeat("x", 200))
	b.ReportAllocs()
	for b.Loop() {
		w.Write(token)
		w.(http.Flusher).Flush()
	}
}

func BenchmarkOpenChunk(b *testing.B) {
	r := newChunkReader()
	buf := make([]byte, len(frame))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(r, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// inMemory calls a handler in the same goroutine, so that a benchmark measures
// sealing and opening rather than a server.
type inMemory struct{ h http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &buffered{header: make(http.Header), status: 200}
	m.h.ServeHTTP(w, r)
	r.Body.Close()
	return &http.Response{StatusCode: w.status, Header: w.header, Body: io.NopCloser(&w.body)}, nil
}

type buffered struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (b *buffered) Header() http.Header         { return b.header }
func (b *buffered) Write(p []byte) (int, error) { return b.body.Write(p) }
func (b *buffered) WriteHeader(status int)      { b.status = status }
func (b *buffered) Flush()                      {}

func BenchmarkExchange(b *testing.B) {
	prompt := strings.Repeat("p", 2000)
	answer := []byte(strings.Repeat("a", 2000))
	for _, kem := range []struct {
		name string
		id   ohttp.KEM
	}{{"XWing", ohttp.XWing}, {"X25519", ohttp.X25519}} {
		b.Run(kem.name, func(b *testing.B) {
			keys := newKeys(b, ohttp.KeysConfig{Replays: 1 << 30})
			h := &ohttp.Handler{Keys: keys, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.Write(answer)
			})}
			tr := &ohttp.Transport{URL: "http://relay/", Key: publicKey(b, keys, kem.id), Base: inMemory{h}}
			b.ReportAllocs()
			for b.Loop() {
				req, err := http.NewRequest("POST", "https://node.example/v1/chat/completions", strings.NewReader(prompt))
				if err != nil {
					b.Fatal(err)
				}
				resp, err := tr.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); n != int64(len(answer)) || err != nil {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
		})
	}
}
