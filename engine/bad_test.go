package engine_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"token.place/engine"
	"token.place/internal/memnet"
)

func TestNoEngine(t *testing.T) {
	s := start(t, engine.Config{URL: "http://nowhere/v1"}, http.NotFoundHandler())
	checkError(t, s.post(t, chat, "{}"), 503, "engine_unavailable")
	if _, err := s.engine.Models(t.Context()); !errors.Is(err, engine.ErrUnavailable) || strings.Contains(err.Error(), "nowhere") {
		t.Errorf("models: %v", err)
	}
}

// TestAnswersThatAreReplaced has whole answers that no client could use.
func TestAnswersThatAreReplaced(t *testing.T) {
	const html = "<html><body>502 Bad Gateway engine:80</body></html>"
	for _, test := range []struct {
		name, path  string
		status      int
		contentType string
		body        string
		header      string
		wantStatus  int
		want        string // code, or "" when the answer passes
	}{
		{"HTML", chat, 200, "text/html", html, "", 502, "engine_bad_answer"},
		{"HTML for speech", "/v1/audio/speech", 200, "text/html", html, "", 502, "engine_bad_answer"},
		{"text", chat, 200, "text/plain", "ok", "", 502, "engine_bad_answer"},
		{"no type", chat, 200, "", "{}", "", 502, "engine_bad_answer"},
		{"bad type", chat, 200, "application json", "{}", "", 502, "engine_bad_answer"},
		{"HTML that says it is JSON", chat, 200, "application/json", html, "", 502, "engine_bad_answer"},
		{"empty JSON", chat, 200, "application/json", "", "", 502, "engine_bad_answer"},
		{"no content", chat, 204, "application/json", "", "", 502, "engine_bad_answer"},
		{"compressed", chat, 200, "application/json", "{}", "Content-Encoding: gzip", 502, "engine_bad_answer"},
		{"speech", "/v1/audio/speech", 200, "audio/mpeg", "\xff\xf3", "", 200, ""},
		{"transcription", "/v1/audio/transcriptions", 200, "text/plain; charset=utf-8", "a river", "", 200, ""},
		{"image", "/v1/images/generations", 200, "image/png", "\x89PNG", "", 200, ""},
		{"blank before JSON", chat, 200, "application/json", "\n {}", "", 200, ""},
		{"redirect", chat, 302, "application/json", "{}", "Location: http://engine:80/elsewhere", 502, "engine_bad_answer"},
		{"permanent redirect", chat, 308, "text/html", html, "Location: /v1/", 502, "engine_bad_answer"},
		{"not modified", chat, 304, "", "", "", 502, "engine_bad_answer"},
		{"key", chat, 401, "application/json", `{"error":{"message":"Invalid API Key secret"}}`, "", 502, "engine_refused_key"},
		{"forbidden", chat, 403, "", "", "", 502, "engine_bad_answer"},
		{"unknown model", chat, 404, "application/json", `{"error":{"message":"model \"x\" not found","type":"api_error","param":null,"code":null}}`, "", 404, ""},
		{"context", chat, 400, "application/json", `{"error":{"code":400,"message":"request (17022 tokens) exceeds the available context size (512 tokens)"}}`, "", 400, ""},
		{"validation", chat, 422, "application/json", `{"detail":[{"loc":["body"]}]}`, "", 422, ""},
		{"problem", chat, 400, "application/problem+json", `{}`, "", 400, ""},
		{"embeddings not enabled", "/v1/embeddings", 501, "application/json", `{"error":{"message":"not enabled"}}`, "", 501, ""},
		{"no endpoint", "/v1/responses", 404, "text/plain", "404 page not found", "", 404, "engine_lacks_endpoint"},
		{"no method", "/v1/responses", 405, "text/plain", "", "", 404, "engine_lacks_endpoint"},
		{"not implemented", "/v1/images/edits", 501, "", "", "", 404, "engine_lacks_endpoint"},
		{"loading", chat, 503, "application/json", `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`, "", 503, ""},
		{"busy", chat, 429, "text/plain", "slow down", "Retry-After: 3", 503, "engine_busy"},
		{"overloaded", chat, 503, "text/html", html, "", 503, "engine_busy"},
		{"too large", chat, 413, "text/html", html, "", 413, "request_too_large"},
		{"crash", chat, 500, "text/html", html, "", 502, "engine_bad_answer"},
		{"crash in JSON", chat, 500, "application/json", `{"error":{"message":"crashed"}}`, "", 500, ""},
		{"odd status", chat, 418, "text/plain", "teapot", "", 502, "engine_bad_answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) {
				if r.URL.Path != test.path {
					t.Errorf("the engine was asked for %s", r.URL.Path)
				}
				head := fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Type: %s\r\n", test.status, test.contentType)
				if test.contentType == "" {
					head = fmt.Sprintf("HTTP/1.1 %d x\r\n", test.status)
				}
				if test.header != "" {
					head += test.header + "\r\n"
				}
				fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", head, len(test.body), test.body)
			})
			res := s.post(t, test.path, "{}")
			if test.want != "" {
				checkError(t, res, test.wantStatus, test.want)
			} else if body, err := io.ReadAll(res.Body); string(body) != test.body || err != nil || res.StatusCode != test.wantStatus {
				t.Errorf("got %d, %q, %v", res.StatusCode, body, err)
			}
			if want, is := strings.CutPrefix(test.header, "Retry-After: "); is && res.Header.Get("Retry-After") != want {
				t.Errorf("Retry-After is %q", res.Header.Get("Retry-After"))
			}
		})
	}
}

// TestNoAnswer has what is not even HTTP.
func TestNoAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		status int
		code   string
	}{
		"nothing":       {"", 503, "engine_unavailable"},
		"half a header": {"HTTP/1.1 200 OK\r\nContent-Type: x\r\n", 503, "engine_unavailable"},
		"garbage":       {"\x00\x01\x02 SSH-2.0\r\n\r\n", 502, "engine_bad_answer"},
		"endless header": {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 200<<10), 502,
			"engine_bad_answer"},
		"no body": {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n", 502, "engine_bad_answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) { io.WriteString(c, test.answer) })
			checkError(t, s.post(t, chat, "{}"), test.status, test.code)
		})
	}
}

// TestCutOff has answers that the framing alone would let pass as whole, and
// some that it would not.
func TestCutOff(t *testing.T) {
	const (
		closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: "
		chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: "
		delta   = "data: {\"choices\":[{\"delta\":{\"content\":\"[DONE] \\\"response.completed\\\"\"}}]}\n\n"
	)
	chunks := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(s), s) }
	for _, test := range []struct {
		name, path, answer string
		whole              bool
	}{
		{"chat", chat, chunked + "text/event-stream\r\n\r\n" + chunks(delta+"data: [DONE]\n\n"), true},
		{"chat in CRLF", chat, chunked + "text/event-stream; charset=utf-8\r\n\r\n" + chunks("data: {}\r\n\r\ndata:[DONE]\r\n\r\n"), true},
		{"chat, no blank line", chat, closing + "text/event-stream\r\n\r\n" + delta + "data: [DONE]", true},
		{"chat without end", chat, chunked + "text/event-stream\r\n\r\n" + chunks(delta), false},
		{"chat with half an end", chat, chunked + "text/event-stream\r\n\r\n" + chunks(delta+"data: [DON"), false},
		{"chat, closed", chat, closing + "text/event-stream\r\n\r\n" + delta, false},
		{"chat, no last chunk", chat, chunked + "text/event-stream\r\n\r\n5\r\ndata:\r\n", false},
		{"chat, half a chunk", chat, chunked + "text/event-stream\r\n\r\n50\r\ndata:", false},
		{"chat, error", chat, chunked + "text/event-stream\r\n\r\n" + chunks(delta+"data: {\"error\":{\"message\":\"no memory\"}}\n\n"), true},
		{"chat, nothing", chat, chunked + "text/event-stream\r\n\r\n0\r\n\r\n", false},
		{"completions", "/v1/completions", closing + "text/event-stream\r\n\r\ndata: {}\n\n", false},
		{"responses", "/v1/responses", closing + "text/event-stream\r\n\r\nevent: response.completed\ndata: {\"response\":{}}\n\n", true},
		{"responses without names", "/v1/responses", closing + "text/event-stream\r\n\r\ndata: {\"type\": \"response.incomplete\",\"response\":{}}\n\n", true},
		{"responses without end", "/v1/responses", closing + "text/event-stream\r\n\r\nevent: response.output_text.delta\n" + delta, false},
		{"responses, half the last event", "/v1/responses", closing + "text/event-stream\r\n\r\nevent: response.completed\ndata: {\"response\":{\n", false},
		{"messages", "/v1/messages", closing + "text/event-stream\r\n\r\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true},
		{"messages, error", "/v1/messages", closing + "text/event-stream\r\n\r\nevent: error\ndata: {\"type\":\"error\"}\n\n", true},
		{"messages without end", "/v1/messages", closing + "text/event-stream\r\n\r\nevent: content_block_stop\ndata: {}\n\ndata: [DONE]\n\n", false},
		{"speech events", "/v1/audio/speech", closing + "text/event-stream\r\n\r\ndata: {}\n\n", true},
		{"an error's events", chat, "HTTP/1.1 400 x\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n{\"error\":{}}", true},
		{"JSON, closed", chat, closing + "application/json\r\n\r\n{\"a\":[\"}\\\"]\",{}]}", true},
		{"JSON, cut off", chat, closing + "application/json\r\n\r\n{\"a\":[{\"b\":\"}]}\"}", false},
		{"JSON, cut off in a string", chat, closing + "application/json\r\n\r\n{\"a\":\"}", false},
		{"JSON, half the length", chat, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\nContent-Type: application/json\r\n\r\n{\"a\":1}", false},
		{"JSON, half the chunks", chat, chunked + "application/json\r\n\r\n7\r\n{\"a\":1}\r\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) { io.WriteString(c, test.answer) })
			res, err := s.client.Post("http://node"+test.path, "application/json", strings.NewReader("{}"))
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			if (err == nil) != test.whole {
				t.Errorf("reading the answer gave %v", err)
			}
		})
	}
}

// TestAbortsWithoutServer checks that an abort does not need a net/http server
// in the context: on a node there is an opened seal around the engine.
func TestAbortsWithoutServer(t *testing.T) {
	s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
	})
	defer func() {
		if got := recover(); got != http.ErrAbortHandler {
			t.Errorf("recovered %v", got)
		}
	}()
	s.engine.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", chat, strings.NewReader("{}")))
	t.Error("the broken answer looks whole")
}

func TestSilentEngine(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
	for name, test := range map[string]struct {
		answer string
		drip   string // sent again and again, a minute apart
		times  int
		whole  bool
		code   string
	}{
		"from the start":    {"", "", 0, false, "engine_timeout"},
		"after the header":  {head, "", 0, false, ""},
		"JSON, no body":     {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n", "", 0, false, "engine_timeout"},
		"in the middle":     {head + "data: {}\n\n", "", 0, false, ""},
		"slow but not dead": {head, "data: {}\n\n", 60, true, ""},
		"slow header":       {"HTTP/1.1 200 OK\r\n", "X: y\r\n", 60, false, "engine_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone := make(chan struct{})
				s := startRaw(t, engine.Config{Timeout: 5 * time.Minute}, func(c net.Conn, r *http.Request) {
					defer close(gone)
					io.WriteString(c, test.answer)
					for range test.times {
						time.Sleep(time.Minute)
						if _, err := io.WriteString(c, test.drip); err != nil {
							return
						}
					}
					if test.whole {
						io.WriteString(c, "data: [DONE]\n\n")
						return
					}
					io.Copy(io.Discard, c) // until the other side gives up
				})
				begin := time.Now()
				res := s.post(t, chat, "{}")
				if test.code != "" {
					checkError(t, res, 504, test.code)
				} else if _, err := io.ReadAll(res.Body); (err == nil) != test.whole {
					t.Errorf("reading the answer gave %v", err)
				}
				<-gone
				if took := time.Since(begin); !test.whole && (took < 5*time.Minute || took > 6*time.Minute) {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestCancel checks that a client that leaves stops the engine at once.
func TestCancel(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		pieces bool // it has begun when the client leaves
	}{
		"prefill":                {"", false},
		"prefill after headers":  {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", false},
		"JSON, after headers":    {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", false},
		"mid-stream":             {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\n", true},
		"in the middle of JSON":  {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{", true},
		"in the middle of sound": {"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\nxxx", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stopped := make(chan time.Time, 1)
				s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) {
					io.WriteString(c, test.answer)
					io.Copy(io.Discard, c)
					stopped <- time.Now()
				})
				ctx, cancel := context.WithCancel(t.Context())
				path := chat
				if strings.Contains(test.answer, "audio") {
					path = "/v1/audio/speech"
				}
				r, _ := http.NewRequestWithContext(ctx, "POST", "http://node"+path, strings.NewReader("{}"))
				done := make(chan struct{})
				go func() {
					defer close(done)
					if res, err := s.client.Do(r); err == nil {
						if n, err := io.Copy(io.Discard, res.Body); err == nil {
							t.Errorf("the answer looks whole, %d bytes", n)
						}
						res.Body.Close()
					}
				}()
				time.Sleep(time.Second) // everything is at rest before that
				left := time.Now()
				cancel()
				<-done
				if at := <-stopped; at.Sub(left) != 0 {
					t.Errorf("the engine was stopped after %v", at.Sub(left))
				}
			})
		})
	}
}

// TestEndlessAnswer checks that an answer is passed on as it comes, not kept.
func TestEndlessAnswer(t *testing.T) {
	stopped := make(chan int, 1)
	s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n{")
		piece, n := make([]byte, 1<<20), 0
		for {
			m, err := c.Write(piece)
			if n += m; err != nil {
				break
			}
		}
		stopped <- n
	})
	res := s.post(t, chat, "{}")
	const taken = 8 << 20
	if _, err := io.CopyN(io.Discard, res.Body, taken); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if n := <-stopped; n < taken || n > taken+4<<20 {
		t.Errorf("the engine sent %d bytes, the client took %d", n, taken)
	}
}

func TestBrokenRequest(t *testing.T) {
	s := start(t, engine.Config{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			t.Error("the engine got a whole request")
		}
	}))
	big := strings.Repeat("x", 2<<20)
	for name, test := range map[string]struct {
		body   io.Reader
		length int64
		status int
		code   string
	}{
		"cut off":               {io.MultiReader(strings.NewReader(big), iotest.ErrReader(io.ErrUnexpectedEOF)), 4 << 20, 400, "incomplete_request"},
		"cut off at once":       {iotest.ErrReader(io.ErrUnexpectedEOF), 5, 400, "incomplete_request"},
		"cut off, no length":    {io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, 400, "incomplete_request"},
		"too large":             {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(big)), 1<<20), 2 << 20, 413, "request_too_large"},
		"too large, no length":  {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(big)), 1<<10), -1, 413, "request_too_large"},
		"too large, much later": {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(big)), 3<<19), -1, 413, "request_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", chat, test.body)
			r.ContentLength = test.length
			w := httptest.NewRecorder()
			s.engine.ServeHTTP(w, r)
			checkError(t, w.Result(), test.status, test.code)
		})
	}
}

// TestIdleConnectionClosed has an engine that closes a connection at the moment
// its second request arrives.
func TestIdleConnectionClosed(t *testing.T) {
	s := &stub{net: memnet.New()}
	l, err := s.net.Listen("engine:80")
	if err != nil {
		t.Fatal(err)
	}
	bodies := make(chan string, 10)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			for range 2 {
				r, err := http.ReadRequest(in)
				if err != nil {
					break
				}
				body, _ := io.ReadAll(r.Body)
				if len(bodies)%2 == 1 {
					bodies <- "closed"
					break
				}
				bodies <- string(body) + r.Header.Get("Idempotency-Key")
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
			}
			c.Close()
		}
	})
	s.front(t, engine.Config{})
	for _, body := range []string{`{"a":1}`, `{"a":2}`} {
		res := s.post(t, chat, body)
		if got, err := io.ReadAll(res.Body); res.StatusCode != 200 || string(got) != "{}" {
			t.Errorf("got %d, %q, %v", res.StatusCode, got, err)
		}
	}
	s.engine.Close()
	l.Close()
	wg.Wait()
	if a, b, c := <-bodies, <-bodies, <-bodies; a != `{"a":1}` || b != "closed" || c != `{"a":2}` {
		t.Errorf("the engine got %q, %q, %q", a, b, c)
	}
}

// TestUpgrade has an engine that switches protocols, so that what would be the
// body is the connection, which stays open.
func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startRaw(t, engine.Config{}, func(c net.Conn, r *http.Request) {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, c)
		})
		start := time.Now()
		if _, err := s.engine.Models(t.Context()); !errors.Is(err, engine.ErrBadAnswer) {
			t.Errorf("models: %v", err)
		}
		checkError(t, s.post(t, chat, "{}"), 502, "engine_bad_answer")
		if d := time.Since(start); d > 0 {
			t.Errorf("it took %v", d)
		}
	})
}
