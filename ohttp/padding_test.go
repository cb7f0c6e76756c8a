package ohttp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"token.place/ohttp"
)

func TestRequestLadder(t *testing.T) {
	p := ohttp.DefaultPadding()
	if (ohttp.Padding{}).PadRequest(1) != p.PadRequest(1) {
		t.Error("the zero value pads otherwise than the default")
	}
	sizes := map[int64]bool{}
	for n := int64(1); n <= 64<<20; n += 1 + n/100 {
		size := p.PadRequest(n)
		if size < n || p.PadRequest(size) != size {
			t.Fatalf("%d octets are padded to %d", n, size)
		}
		if overhead := float64(size-n) / float64(n); n > 64<<10 && overhead > 0.25 {
			t.Errorf("%d octets are padded to %d: %.0f %%", n, size, 100*overhead)
		}
		sizes[size] = true
	}
	if len(sizes) != 45 {
		t.Errorf("%d sizes up to 64 MiB", len(sizes))
	}
	if got := p.PadRequest(64<<20 + 1); got != 128<<20 {
		t.Errorf("past the last step: %d", got)
	}
	if got := (ohttp.Padding{Request: []int{1}}).PadRequest(12345); got != 12345 {
		t.Errorf("no padding pads to %d", got)
	}
}

// chunkSizes parses a sealed message after a prefix of n octets and returns the
// plaintext sizes of its chunks, the final one last.
func chunkSizes(t testing.TB, b []byte, n int) (sizes []int) {
	t.Helper()
	for b = b[n:]; ; {
		length, width := int(b[0]&0x3f), 1<<(b[0]>>6)
		for _, c := range b[1:width] {
			length = length<<8 | int(c)
		}
		b = b[width:]
		if length == 0 {
			return append(sizes, len(b)-16)
		}
		sizes, b = append(sizes, length-16), b[length:]
	}
}

// tap keeps what goes over the wire.
type tap struct {
	base     http.RoundTripper
	request  bytes.Buffer
	response bytes.Buffer
}

func (p *tap) RoundTrip(r *http.Request) (*http.Response, error) {
	p.request.Reset()
	p.response.Reset()
	outer := r.Clone(r.Context())
	outer.Body = struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r.Body, &p.request), r.Body}
	resp, err := p.base.RoundTrip(outer)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, &p.response), resp.Body}
	}
	return resp, err
}

func TestRequestSizes(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	wire := &tap{base: n.base}
	tr := n.transport(t)
	tr.Base = wire
	padding := ohttp.DefaultPadding()
	for _, length := range []int{0, 1, 3000, 4096, 16_000, 16_384, 20_000, 32_500, 70_000, 81_800} {
		for _, streamed := range []bool{false, true} {
			body := strings.NewReader(strings.Repeat("x", length))
			req := newRequest(t, "POST", body)
			if streamed {
				req = newRequest(t, "POST", iotest.OneByteReader(body))
			}
			roundTrip(t, tr, req)
			sizes := chunkSizes(t, wire.request.Bytes(), 7+1120)
			total := 0
			for i, size := range sizes {
				if total += size; i < len(sizes)-1 && size < ohttp.MaxChunk-2 {
					t.Errorf("%d octets: chunk %d of %d has %d", length, i, len(sizes), size)
				}
			}
			if padding.PadRequest(int64(total)) != int64(total) {
				t.Errorf("%d octets: message of %d", length, total)
			}
		}
	}
}

func TestAnswerFrames(t *testing.T) {
	for _, frame := range []int{512, 1, 100, 8192, 1 << 20} {
		for name, next := range map[string]http.HandlerFunc{
			"nothing": func(w http.ResponseWriter, r *http.Request) {},
			"status":  func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) },
			"204":     func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) },
			"events": func(w http.ResponseWriter, r *http.Request) {
				for i := range 40 {
					fmt.Fprint(w, strings.Repeat("e", i*37))
					w.(http.Flusher).Flush()
				}
			},
			"large": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("l", 100_000)) },
			"large header": func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Large", strings.Repeat("h", 60_000))
				io.WriteString(w, "x")
			},
			"large trailer": func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, strings.Repeat("l", 16_000))
				w.Header().Set(http.TrailerPrefix+"X-Large", strings.Repeat("t", 3000))
			},
		} {
			t.Run(fmt.Sprintf("%d/%s", frame, name), func(t *testing.T) {
				var want string
				n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
					rec := &recorder{ResponseWriter: w}
					next(rec, r)
					want = rec.body.String()
				})
				n.handler.Padding.ResponseFrame = frame
				wire := &tap{base: n.base}
				tr := n.transport(t)
				tr.Base = wire
				resp, body := roundTrip(t, tr, newRequest(t, "GET", nil))
				if body != want {
					t.Errorf("body of %d octets, want %d", len(body), len(want))
				}
				if resp.Header.Get("Content-Encoding") != "" || resp.Header.Get("Content-Length") != "" {
					t.Errorf("header is %v", resp.Header)
				}
				if name == "large trailer" && len(resp.Trailer.Get("X-Large")) != 3000 {
					t.Error("trailer is missing")
				}
				for i, size := range chunkSizes(t, wire.response.Bytes(), 32) {
					if unit := min(frame, 8192); size%unit != 0 || size == 0 {
						t.Errorf("chunk %d has %d octets", i, size)
					}
				}
			})
		}
	}
}

// Where a head ends in its chunk must not show, not even without content to pad with.
func TestHeadSizes(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.Header.Get("X-Size"))
		w.Header().Set("X-Head", strings.Repeat("h", size))
		if r.URL.Path == "/204" {
			w.WriteHeader(204)
		}
		w.(http.Flusher).Flush()
		io.WriteString(w, "x")
		w.Header().Set(http.TrailerPrefix+"X-Tail", strings.Repeat("t", 500))
	})
	wire := &tap{base: n.base}
	tr := n.transport(t)
	tr.Base = wire
	for _, method := range []string{"GET", "HEAD"} {
		for _, path := range []string{"/200", "/204"} {
			for size := 15_800; size < 16_400; size += 7 {
				req := newRequest(t, method, nil)
				req.URL.Path = path
				req.Header.Set("X-Size", strconv.Itoa(size))
				resp, body := roundTrip(t, tr, req)
				if len(resp.Header.Get("X-Head")) != size || len(resp.Trailer.Get("X-Tail")) != 500 {
					t.Errorf("%s %s %d: header %d", method, path, size, len(resp.Header.Get("X-Head")))
				}
				if (body == "x") != (method == "GET" && path == "/200") {
					t.Errorf("%s %s %d: body %q", method, path, size, body)
				}
				for _, n := range chunkSizes(t, wire.response.Bytes(), 32) {
					if n%512 != 0 {
						t.Fatalf("%s %s %d: chunk of %d", method, path, size, n)
					}
				}
			}
		}
	}
}

// recorder is a ResponseWriter that keeps a copy of the body.
type recorder struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.body.Write(p)
	return r.ResponseWriter.Write(p)
}

func (r *recorder) Flush() { r.ResponseWriter.(http.Flusher).Flush() }

// A stream of tokens of different lengths looks the same as any other on the wire.
func TestTokenLengthsAreHidden(t *testing.T) {
	sizes := func(tokens ...string) string {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, token := range tokens {
				fmt.Fprintf(w, `data: {"choices":[{"delta":{"content":%q}}]}`+"\n\n", token)
				w.(http.Flusher).Flush()
			}
		})
		wire := &tap{base: n.base}
		tr := n.transport(t)
		tr.Base = wire
		roundTrip(t, tr, newRequest(t, "GET", nil))
		return fmt.Sprint(chunkSizes(t, wire.response.Bytes(), 32))
	}
	a, b := sizes("I", " cannot", "."), sizes(" Incontrovertibly", "!", " yes")
	if a != b || a != "[512 512 512 512]" {
		t.Errorf("%s and %s", a, b)
	}
}

func TestWholeAnswerIsPadded(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") })
	wire := &tap{base: n.base}
	tr := n.transport(t)
	tr.Base, tr.Whole = wire, true
	roundTrip(t, tr, newRequest(t, "GET", nil))
	if got := wire.response.Len() - 32 - 16; got != 4096 {
		t.Errorf("plaintext of %d octets", got)
	}
}

func TestEngineCodings(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Accept-Encoding"); got != "br, gzip;q=0.5" {
			t.Errorf("Accept-Encoding is %q", got)
		}
		w.Header().Set("Content-Encoding", "br")
		io.WriteString(w, "coded")
	})
	req := newRequest(t, "GET", nil)
	req.Header.Set("Accept-Encoding", "br, gzip;q=0.5")
	resp, body := roundTrip(t, n.transport(t), req)
	if resp.Header.Get("Content-Encoding") != "br" || body != "coded" {
		t.Errorf("%q, %v", body, resp.Header)
	}
}

func TestCodingNames(t *testing.T) {
	for _, tc := range []struct {
		accept string
		asked  bool
		rest   string
	}{
		{"", false, ""},
		{"padded", true, ""},
		{"gzip, PADDED ,br", true, "gzip, br"},
		{"padded;q=0", false, ""},
		{"gzip;q=0.5, padded2", false, "gzip;q=0.5, padded2"},
		{" , ,", false, ""},
	} {
		h := http.Header{"Accept-Encoding": {tc.accept}}
		if asked := ohttp.TakePadded(h); asked != tc.asked || h.Get("Accept-Encoding") != tc.rest {
			t.Errorf("%q: asked %v, rest %q", tc.accept, asked, h.Get("Accept-Encoding"))
		}
	}
	for _, tc := range []struct {
		coding []string
		was    bool
		rest   string
	}{
		{nil, false, ""},
		{[]string{"padded"}, true, ""},
		{[]string{"gzip, padded"}, true, "gzip"},
		{[]string{"gzip", "Padded"}, true, "gzip"},
		{[]string{"padded, gzip"}, false, "padded, gzip"},
	} {
		h := http.Header{}
		if tc.coding != nil {
			h["Content-Encoding"] = tc.coding
		}
		if was := ohttp.StripPadded(h); was != tc.was || h.Get("Content-Encoding") != tc.rest {
			t.Errorf("%q: was %v, rest %q", tc.coding, was, h.Get("Content-Encoding"))
		}
	}
}

type paddedVectors struct {
	Vectors []struct {
		Name    string   `json:"name"`
		Body    hexBytes `json:"body"`
		Content hexBytes `json:"content"`
	} `json:"vectors"`
	Invalid []struct {
		Name string   `json:"name"`
		Body hexBytes `json:"body"`
	} `json:"invalid"`
}

func TestPaddedVectors(t *testing.T) {
	var vs paddedVectors
	loadVectors(t, "ohttp-padded.json", &vs)
	for _, v := range vs.Vectors {
		for _, r := range []io.Reader{
			bytes.NewReader(v.Body), iotest.OneByteReader(bytes.NewReader(v.Body)), iotest.DataErrReader(bytes.NewReader(v.Body)),
		} {
			if got, err := io.ReadAll(ohttp.Unpad(r)); err != nil || !bytes.Equal(got, v.Content) {
				t.Errorf("%s: %x, %v", v.Name, got, err)
			}
		}
	}
	for _, v := range vs.Invalid {
		if got, err := io.ReadAll(ohttp.Unpad(bytes.NewReader(v.Body))); err == nil {
			t.Errorf("%s: %x", v.Name, got)
		}
	}
}

// The outer request has a length whenever the inner one has, and it is the one
// that its body turns out to have.
func TestOuterLength(t *testing.T) {
	keys := newKeys(t, ohttp.KeysConfig{})
	public, err := ohttp.ParsePublicKey(keys.Public(), ohttp.XWing)
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range []bool{false, true} {
		for _, n := range []int{-1, 0, 1, 3900, 4096, 16200, 16210, 16384, 16385, 32768, 40000, 100_000, 1 << 20} {
			body := strings.NewReader(strings.Repeat("x", max(n, 0)))
			req, _ := http.NewRequest(http.MethodPost, "https://node/v1/chat/completions", io.NopCloser(body))
			req.ContentLength = int64(n)
			if n == 0 {
				req.Body = http.NoBody
			}
			var said, had int64
			rt := ohttp.Transport{URL: "http://relay/", Key: public, Whole: whole, Base: roundTripFunc(func(r *http.Request) (*http.Response, error) {
				sealed, err := io.ReadAll(r.Body)
				said, had = r.ContentLength, int64(len(sealed))
				return nil, errors.Join(err, errors.New("enough"))
			})}
			rt.RoundTrip(req)
			if had == 0 || n >= 0 && said != had || n < 0 && said != -1 {
				t.Errorf("whole %v, content of %d: length %d, sealed octets %d", whole, n, said, had)
			}
		}
	}
}
