package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"token.place/client"
)

// While nothing comes a comment does, every ten seconds, and only where one
// can stand.
func TestKeepAlive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const comment = ": waiting for the node\n\n"
		l, _ := serve(t, streams(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(25 * time.Second)
			event(w, "one")
			time.Sleep(9 * time.Second)
			event(w, "two")
			time.Sleep(15 * time.Second)
			io.WriteString(w, "data: thr")
			http.NewResponseController(w).Flush()
			time.Sleep(25 * time.Second)
			io.WriteString(w, "ee\r\n\r\n")
			http.NewResponseController(w).Flush()
			time.Sleep(15 * time.Second)
			event(w, "[DONE]")
		}), client.ServerConfig{})
		start := time.Now()
		resp, err := l.do("POST", completions, chatStream)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if d := time.Since(start); d != 10*time.Second || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("status %d %v after %v", resp.StatusCode, resp.Header, d)
		}
		var got []string
		buf := make([]byte, 1000)
		for err == nil {
			var n int
			if n, err = resp.Body.Read(buf); n > 0 {
				got = append(got, fmt.Sprintf("%v %s", time.Since(start), buf[:n]))
			}
		}
		want := []string{"10s " + comment, "20s " + comment, "25s data: one\n\n", "34s data: two\n\n", "44s " + comment, "49s data: thr",
			"1m14s ee\r\n\r\n", "1m24s " + comment, "1m29s data: [DONE]\n\n"}
		if err != io.EOF || strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("got %q, %v\nwant %q", got, err, want)
		}
	})
}

// An answer to a request that asked for no stream is not touched.
func TestNoCommentsWithoutAStream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(time.Hour)
			says("{}")(w, r)
		}, client.ServerConfig{})
		if resp, body := l.get("POST", completions, chat); body != "{}" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got %s %v", body, resp.Header)
		}
		// Nor one that is no stream although it was asked for, with time to spare.
		l2, _ := serve(t, says("{}"), client.ServerConfig{KeepAlive: -1})
		if resp, body := l2.get("POST", completions, chatStream); body != "{}" || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got %s %v", body, resp.Header)
		}
	})
}

// After the first comment the status is out: an error is an event, and the
// connection breaks.
func TestErrorsAfterComments(t *testing.T) {
	late := func(then http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(15 * time.Second)
			then(w, r)
		}
	}
	for want, engine := range map[string]http.HandlerFunc{
		`{"error":{"message":"too long for me","type":"invalid_request_error","param":null,"code":"context"}}`: late(fails(400, `{"error":{"message":"too long for me","code":"context"}}`)),
		`"code":"bad_answer"`: late(says("{}")),
		`"code":"node_lost"`: late(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			abort(w, r)
		}),
	} {
		bubble(t, func(t *testing.T) {
			l, _ := serve(t, engine, client.ServerConfig{})
			resp, err := l.do("POST", completions, chatStream)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(string(body), want) || strings.Contains(string(body), "[DONE]") ||
				!strings.HasPrefix(string(body), ": waiting for the node\n\n") || !strings.HasSuffix(string(body), "}}\n\n") {
				t.Errorf("got %q, %v; want %s", body, err, want)
			}
		})
	}
}

// An answer that breaks off never looks whole, whatever its form.
func TestBrokenAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		engine http.HandlerFunc
		want   string
		event  bool
	}{
		"between events": {streams(func(w http.ResponseWriter, _ *http.Request) { event(w, "one"); panic(http.ErrAbortHandler) }), "data: one\n\n", true},
		"in an event": {streams(func(w http.ResponseWriter, _ *http.Request) {
			event(w, "one")
			io.WriteString(w, "data: tw")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}), "data: one\n\ndata: tw", false},
		"in JSON": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"a":`)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, `{"a":`, false},
		"with a length": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, strings.Repeat("x", 900))
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, strings.Repeat("x", 900), false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, r := serve(t, c.engine, client.ServerConfig{})
				resp, err := l.do("POST", completions, chatStream)
				var body []byte
				if err == nil {
					defer resp.Body.Close()
					body, err = io.ReadAll(resp.Body)
				}
				if err == nil || !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
					t.Errorf("error %v after %q", err, body)
				}
				rest, ok := strings.CutPrefix(string(body), c.want)
				if c.event && (!ok || !strings.Contains(rest, `"code":"broken_answer"`) || !strings.HasSuffix(rest, "}}\n\n")) {
					t.Errorf("got %q", body)
				}
				if !c.event && len(body) > 0 && (!ok || rest != "") {
					t.Errorf("got %q", body)
				}
				if _, exchanges := r.counts(); exchanges != 1 {
					t.Errorf("%d exchanges", exchanges)
				}
			})
		})
	}
}

// The app's end is the engine's end, in every phase.
func TestServerCancel(t *testing.T) {
	for name, engine := range map[string]func(w http.ResponseWriter){
		"before the answer": func(http.ResponseWriter) {},
		"after the header":  func(w http.ResponseWriter) { w.WriteHeader(200); http.NewResponseController(w).Flush() },
		"in a stream":       func(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/event-stream"); event(w, "one") },
		"in a plain answer": func(w http.ResponseWriter) {
			io.WriteString(w, strings.Repeat("x", 5000))
			http.NewResponseController(w).Flush()
		},
	} {
		for _, body := range []string{chat, chatStream} {
			bubble(t, func(t *testing.T) {
				gone := make(chan time.Time, 1)
				l, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					engine(w)
					<-r.Context().Done()
					gone <- time.Now()
				}, client.ServerConfig{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(33*time.Second, cancel)
				start := time.Now()
				resp, err := l.send(ctx, "POST", completions, body)
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", name, err)
				}
				if d := (<-gone).Sub(start); d != 33*time.Second {
					t.Errorf("%s: the engine went on until %v", name, d)
				}
			})
		}
	}
}

// A comment must not stand in for what is missing of a stream that said how long
// it is.
func TestStreamsHaveNoLength(t *testing.T) {
	for media, want := range map[string]string{"text/event-stream": "", "text/event-stream; charset=utf-8": "", "application/json": "11", "audio/mpeg": "11"} {
		w := httptest.NewRecorder()
		client.PassOn(w, httptest.NewRequest("POST", "/", nil), &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {media}}, ContentLength: 11, Body: io.NopCloser(strings.NewReader("data: 123\n\n")),
		})
		if got := w.Header().Get("Content-Length"); got != want || w.Body.Len() != 11 {
			t.Errorf("%s: Content-Length %q, want %q", media, got, want)
		}
	}
}
