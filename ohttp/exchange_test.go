package ohttp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/internal/memnet"
	"token.place/ohttp"
)

// node is a Handler behind a real HTTP server on a network in memory.
type node struct {
	keys    *ohttp.Keys
	handler *ohttp.Handler
	base    *http.Transport
}

// startNode serves next over HTTP/2, or over HTTP/1.1.
func startNode(t testing.TB, http2 bool, next http.HandlerFunc) *node {
	t.Helper()
	n := &node{keys: newKeys(t, ohttp.KeysConfig{})}
	n.handler = &ohttp.Handler{Keys: n.keys, Next: next}
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	network := memnet.New()
	l, err := network.Listen("node:80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n.handler, Protocols: &protocols}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	n.base = &http.Transport{DialContext: network.Dial, Protocols: &protocols, DisableCompression: true}
	t.Cleanup(func() {
		n.base.CloseIdleConnections()
		server.Close()
		<-done
	})
	return n
}

func (n *node) transport(t testing.TB) *ohttp.Transport {
	return &ohttp.Transport{URL: "http://node:80/", Key: publicKey(t, n.keys, ohttp.XWing), Base: n.base}
}

// bothVersions runs a test over HTTP/2 and over HTTP/1.1.
func bothVersions(t *testing.T, test func(t *testing.T, http2 bool)) {
	t.Run("HTTP/2", func(t *testing.T) { test(t, true) })
	t.Run("HTTP/1.1", func(t *testing.T) { test(t, false) })
}

func newRequest(t testing.TB, method string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://node.example/v1/x?q=%20a", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func roundTrip(t testing.TB, rt http.RoundTripper, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// closeRecorder tells whether a request body was closed.
type closeRecorder struct {
	io.Reader
	closed chan struct{}
}

func (c *closeRecorder) Close() error {
	close(c.closed)
	return nil
}

func TestExchange(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		var got *http.Request
		var body []byte
		n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
			got = r
			var err error
			if body, err = io.ReadAll(r.Body); err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("Trailer", "X-Known")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, "answer")
			w.Header().Set("X-Known", "k")
			w.Header().Set(http.TrailerPrefix+"X-Late", "l")
		})
		big := strings.Repeat("0123456789", 20_000)
		for name, content := range map[string]struct {
			body   io.Reader
			length int64
			text   string
		}{
			"none":     {nil, 0, ""},
			"small":    {strings.NewReader("prompt"), 6, "prompt"},
			"big":      {strings.NewReader(big), int64(len(big)), big},
			"streamed": {io.MultiReader(strings.NewReader(big)), -1, big},
			"empty":    {io.MultiReader(), -1, ""},
		} {
			for _, whole := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v", name, whole), func(t *testing.T) {
					tr := n.transport(t)
					tr.Whole = whole
					if whole && content.body != nil {
						content.body = strings.NewReader(content.text)
						if content.length < 0 {
							content.body = io.MultiReader(content.body)
						}
					}
					req := newRequest(t, "POST", content.body)
					req.Header = http.Header{
						"Authorization": {"Bearer x"}, "X-Many": {"1", " 2 "}, "Cookie": {"a=1", "b=2"},
						"Connection": {"X-Conn"}, "X-Conn": {"1"}, "Te": {"trailers"}, "Expect": {"100-continue"},
						"Accept-Encoding": {"gzip"},
					}
					before := req.Header.Clone()
					resp, answer := roundTrip(t, tr, req)
					if fmt.Sprint(req.Header) != fmt.Sprint(before) {
						t.Error("the request was changed")
					}
					if string(body) != content.text || got.ContentLength != content.length {
						t.Errorf("body of %d octets, ContentLength %d", len(body), got.ContentLength)
					}
					date := got.Header.Get("Date")
					got.Header.Del("Date")
					want := http.Header{
						"Authorization": {"Bearer x"}, "X-Many": {"1", "2"}, "Cookie": {"a=1; b=2"}, "Accept-Encoding": {"gzip"},
					}
					if fmt.Sprint(got.Header) != fmt.Sprint(want) || date == "" {
						t.Errorf("header is %v, Date %q", got.Header, date)
					}
					if got.Method != "POST" || got.RequestURI != "/v1/x?q=%20a" || got.URL.String() != got.RequestURI ||
						got.Host != "node.example" || got.RemoteAddr != "" || got.TLS != nil {
						t.Errorf("request is %+v", got)
					}
					if resp.StatusCode != http.StatusTeapot || answer != "answer" {
						t.Errorf("%d %q", resp.StatusCode, answer)
					}
					wantHeader := http.Header{"Content-Type": {"text/event-stream"}}
					if fmt.Sprint(resp.Header) != fmt.Sprint(wantHeader) {
						t.Errorf("header of the answer is %v", resp.Header)
					}
					if resp.Trailer.Get("X-Known") != "k" || resp.Trailer.Get("X-Late") != "l" {
						t.Errorf("trailer is %v", resp.Trailer)
					}
				})
			}
		}
	})
}

func TestRequestTrailer(t *testing.T) {
	var trailer http.Header
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		trailer = r.Trailer
	})
	for _, known := range []bool{true, false} {
		req := newRequest(t, "POST", strings.NewReader("x"))
		if !known {
			req.ContentLength = -1
		}
		req.Trailer = http.Header{"X-Sum": {"1"}}
		roundTrip(t, n.transport(t), req)
		if trailer.Get("X-Sum") != "1" {
			t.Errorf("known %v: trailer is %v", known, trailer)
		}
	}
}

// What is outside the seal must not depend on what is inside it.
func TestOuterRequest(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") })
	var outer *http.Request
	var sealed []byte
	base := roundTripFunc(func(r *http.Request) (*http.Response, error) {
		outer = r
		sealed, _ = io.ReadAll(r.Body)
		r.Body.Close()
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(sealed))
		return n.base.RoundTrip(r)
	})
	tr := n.transport(t)
	tr.Base = base
	tr.Header = http.Header{"Authorization": {"PrivateToken token=x"}}
	var lengths []int
	for _, prompt := range []string{"", "short", strings.Repeat("long", 500)} {
		req := newRequest(t, "POST", strings.NewReader(prompt))
		req.Header.Set("User-Agent", "canary-agent")
		roundTrip(t, tr, req)
		want := http.Header{
			"Content-Type": {"message/ohttp-chunked-req"}, "Incremental": {"?1"},
			"Authorization": {"PrivateToken token=x"}, "User-Agent": nil,
		}
		if fmt.Sprint(outer.Header) != fmt.Sprint(want) || outer.URL.String() != "http://node:80/" || outer.GetBody != nil {
			t.Errorf("outer request is %v %v", outer.URL, outer.Header)
		}
		if bytes.Contains(sealed, []byte("canary")) {
			t.Error("the request is readable")
		}
		lengths = append(lengths, len(sealed))
	}
	if lengths[0] != lengths[1] || lengths[1] != lengths[2] {
		t.Errorf("sealed requests have %v octets", lengths)
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Each Flush arrives by itself, before anything else is written.
func TestStreaming(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		step := make(chan string)
		n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			for s := range step {
				io.WriteString(w, s)
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
			}
		})
		resp, err := n.transport(t).RoundTrip(newRequest(t, "POST", strings.NewReader("x")))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100_000)
		for _, s := range []string{"a", "bc", strings.Repeat("d", 50_000)} {
			step <- s
			if _, err := io.ReadFull(resp.Body, buf[:len(s)]); err != nil || string(buf[:len(s)]) != s {
				t.Fatalf("got %.10q, %v", buf[:len(s)], err)
			}
		}
		close(step)
		if n, err := resp.Body.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("at the end %d, %v", n, err)
		}
		resp.Body.Close()
	})
}

func TestNoContent(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Case") {
		case "204":
			w.WriteHeader(http.StatusNoContent)
			if _, err := w.Write([]byte("x")); err != http.ErrBodyNotAllowed {
				t.Errorf("writing a body to 204: %v", err)
			}
		case "304":
			w.Header().Set("Content-Length", "9")
			w.WriteHeader(http.StatusNotModified)
		case "HEAD":
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "123456789")
		}
	})
	for _, c := range []string{"nothing", "204", "304", "HEAD"} {
		method := "GET"
		if c == "HEAD" {
			method = c
		}
		req := newRequest(t, method, nil)
		req.Header.Set("X-Case", c)
		resp, body := roundTrip(t, n.transport(t), req)
		status := map[string]int{"204": 204, "304": 304}[c]
		if body != "" || status != 0 && resp.StatusCode != status {
			t.Errorf("%s: %d %q", c, resp.StatusCode, body)
		}
		if c == "HEAD" && resp.ContentLength != 9 {
			t.Errorf("HEAD: ContentLength %d", resp.ContentLength)
		}
	}
}

// A body that trickles in costs its own exchange time, and nobody else's.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				http.Error(w, "broken", 400)
			}
		})
		n.handler.BodyTimeout = time.Minute
		pr, pw := io.Pipe()
		slow := newRequest(t, "POST", pr)
		result := make(chan error)
		start := time.Now()
		go func() {
			resp, err := n.transport(t).RoundTrip(slow)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil && resp.StatusCode != 200 {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
			}
			result <- err
		}()
		io.WriteString(pw, strings.Repeat("x", 20_000))
		if _, body := roundTrip(t, n.transport(t), newRequest(t, "POST", strings.NewReader("quick"))); body != "" {
			t.Errorf("answer is %q", body)
		}
		if err := <-result; err == nil {
			t.Error("the slow one succeeded")
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("the slow one ended after %v", d)
		}
		pw.Close()
		n.base.CloseIdleConnections()
	})
}

// The deadline for the request must not strike a long answer.
func TestLongAnswer(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.(http.Flusher).Flush()
				time.Sleep(time.Hour)
				if err := r.Context().Err(); err != nil {
					t.Errorf("HTTP/2 %v: %v", http2, err)
				}
				io.WriteString(w, "done")
			})
			if _, body := roundTrip(t, n.transport(t), newRequest(t, "POST", strings.NewReader("x"))); body != "done" {
				t.Errorf("HTTP/2 %v: answer is %q", http2, body)
			}
			n.base.CloseIdleConnections()
		})
	}
}

func TestConcurrent(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	tr := n.transport(t)
	done := make(chan error)
	for i := range 50 {
		go func() {
			want := strings.Repeat(fmt.Sprint(i, " "), 5000)
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://n.example/", strings.NewReader(want))
			resp, err := tr.RoundTrip(req)
			if err == nil {
				var b []byte
				b, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil && string(b) != want {
					err = errors.New("answers mixed up")
				}
			}
			done <- err
		}()
	}
	for range 50 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
