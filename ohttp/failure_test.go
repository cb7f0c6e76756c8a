package ohttp_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"token.place/ohttp"
)

// Whatever keeps Next from finishing, the client sees an answer that broke off.
func TestBrokenAnswers(t *testing.T) {
	stacks := 0
	for name, next := range map[string]http.HandlerFunc{
		"abort":     func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"panic":     func(w http.ResponseWriter, r *http.Request) { panic("a prompt") },
		"too short": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "9"); w.Write(nil) },
		"too long": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1")
			w.Write(make([]byte, 2))
		},
		"large header": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X", strings.Repeat("x", 70_000)) },
	} {
		for _, flush := range []bool{false, true} {
			for _, whole := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/%v", name, flush, whole), func(t *testing.T) {
					bothVersions(t, func(t *testing.T, http2 bool) {
						n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
							if flush && name != "large header" {
								if l := r.Header.Get("X-Length"); l != "" {
									w.Header().Set("Content-Length", l)
								}
								w.WriteHeader(200)
								w.(http.Flusher).Flush()
							}
							next(w, r)
						})
						n.handler.OnPanic = func([]byte) { stacks++ }
						tr := n.transport(t)
						tr.Whole = whole
						req := newRequest(t, "POST", strings.NewReader("x"))
						req.Header.Set("X-Length", map[string]string{"too short": "9", "too long": "1"}[name])
						resp, err := tr.RoundTrip(req)
						if err != nil {
							return
						}
						defer resp.Body.Close()
						body, err := io.ReadAll(resp.Body)
						if !errors.Is(err, ohttp.ErrTruncated) {
							t.Errorf("%d %q, %v", resp.StatusCode, body, err)
						}
					})
				})
			}
		}
	}
	if stacks != 8 {
		t.Errorf("OnPanic called %d times, want 8", stacks)
	}
}

// A relay that cuts an answer anywhere, and ends it as if it were whole, gets the
// client no short answer.
func TestTruncatedAnywhere(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			io.WriteString(w, "some of the answer")
			w.(http.Flusher).Flush()
		}
	})
	n.handler.Padding = ohttp.Padding{ResponseFrame: 1}
	cut := -1
	tr := n.transport(t)
	length := 0
	tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := n.base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if length = len(b); cut >= 0 {
			b = b[:cut]
		}
		resp.Body = io.NopCloser(bytes.NewReader(b))
		return resp, err
	})
	if _, body := roundTrip(t, tr, newRequest(t, "GET", nil)); len(body) != 54 {
		t.Fatalf("answer is %q", body)
	}
	for cut = range length {
		resp, err := tr.RoundTrip(newRequest(t, "GET", nil))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if !errors.Is(err, ohttp.ErrTruncated) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d of %d octets: %v", cut, length, err)
		}
	}
}

func TestCancelReachesNext(t *testing.T) {
	bothVersions(t, func(t *testing.T, http2 bool) {
		for _, how := range []string{"context before the answer", "context", "close"} {
			t.Run(how, func(t *testing.T) {
				started, ended := make(chan struct{}), make(chan struct{})
				n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					if how != "context before the answer" {
						w.(http.Flusher).Flush()
					}
					close(started)
					<-r.Context().Done()
					close(ended)
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := newRequest(t, "POST", strings.NewReader("x")).WithContext(ctx)
				if how == "context before the answer" {
					go func() {
						<-started
						cancel()
					}()
					if _, err := n.transport(t).RoundTrip(req); !errors.Is(err, context.Canceled) {
						t.Errorf("RoundTrip: %v", err)
					}
					<-ended
					return
				}
				resp, err := n.transport(t).RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				if how == "close" {
					resp.Body.Close()
				} else {
					cancel()
					if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) || !errors.Is(err, ohttp.ErrTruncated) {
						t.Errorf("Read: %v", err)
					}
					resp.Body.Close()
				}
				<-ended
			})
		}
	})
}

func TestUnsealedAnswers(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {})
	answer := func(status int, header http.Header, body io.Reader) *ohttp.Transport {
		tr := n.transport(t)
		tr.Base = roundTripFunc(func(r *http.Request) (*http.Response, error) {
			r.Body.Close()
			return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(body)}, nil
		})
		return tr
	}
	problem := http.Header{"Content-Type": {"application/problem+json"}, "Retry-After": {"7"}}
	closed := make(chan struct{})
	req := newRequest(t, "POST", nil)
	req.Body, req.ContentLength = &closeRecorder{strings.NewReader("x"), closed}, 1
	_, err := answer(400, problem, strings.NewReader(`{"type":"`+ohttp.ProblemKey+`","title":"t"}`)).RoundTrip(req)
	if !errors.Is(err, ohttp.ErrKey) {
		t.Errorf("ohttp-key problem: %v", err)
	}
	<-closed
	var status *ohttp.StatusError
	_, err = answer(503, problem, strings.NewReader(`{"type":"about:blank"}`)).RoundTrip(newRequest(t, "GET", nil))
	if !errors.As(err, &status) || status.Status != 503 || status.RetryAfter != "7" || len(status.Body) != 22 {
		t.Errorf("problem: %#v", err)
	}
	// A success that is not sealed is no answer either.
	_, err = answer(200, http.Header{"Content-Type": {"application/json"}}, rand.Reader).RoundTrip(newRequest(t, "GET", nil))
	if !errors.As(err, &status) || status.Status != 200 || len(status.Body) != 64<<10 {
		t.Errorf("endless body: %T", err)
	}
	if strings.Contains(err.Error(), "node") {
		t.Errorf("error names the other side: %v", err)
	}
	// Nor is one in the other format, or with the wrong status.
	sealed := http.Header{"Content-Type": {"message/ohttp-res"}}
	if _, err = answer(200, sealed, strings.NewReader("x")).RoundTrip(newRequest(t, "GET", nil)); !errors.As(err, &status) {
		t.Errorf("other format: %v", err)
	}
	sealed = http.Header{"Content-Type": {"message/ohttp-chunked-res"}}
	if _, err = answer(500, sealed, strings.NewReader("x")).RoundTrip(newRequest(t, "GET", nil)); !errors.As(err, &status) {
		t.Errorf("sealed with status 500: %v", err)
	}
	if _, err = answer(200, sealed, rand.Reader).RoundTrip(newRequest(t, "GET", nil)); err == nil || errors.As(err, &status) {
		t.Errorf("noise: %v", err)
	}
}

func TestRefusesWhatCannotBeSealed(t *testing.T) {
	n := startNode(t, true, func(w http.ResponseWriter, r *http.Request) {})
	for name, change := range map[string]func(*http.Request, *ohttp.Transport){
		"field name":   func(r *http.Request, _ *ohttp.Transport) { r.Header["a b"] = []string{"x"} },
		"field value":  func(r *http.Request, _ *ohttp.Transport) { r.Header["X"] = []string{"secret\r\nY: 1"} },
		"large header": func(r *http.Request, _ *ohttp.Transport) { r.Header["X"] = []string{strings.Repeat("x", 70_000)} },
		"method":       func(r *http.Request, _ *ohttp.Transport) { r.Method = "CONNECT" },
		"scheme":       func(r *http.Request, _ *ohttp.Transport) { r.URL.Scheme = "ftp" },
		"no host":      func(r *http.Request, _ *ohttp.Transport) { r.Host, r.URL.Host = "", "" },
		"host":         func(r *http.Request, _ *ohttp.Transport) { r.Host = "a b" },
		"path":         func(r *http.Request, _ *ohttp.Transport) { r.URL.Path = "//evil/x" },
		"no URL":       func(r *http.Request, _ *ohttp.Transport) { r.URL = nil },
		"no key":       func(_ *http.Request, t *ohttp.Transport) { t.Key = nil },
		"bad URL":      func(_ *http.Request, t *ohttp.Transport) { t.URL = "http://[" },
	} {
		req := newRequest(t, "POST", nil)
		closed := make(chan struct{})
		req.Body = &closeRecorder{strings.NewReader("x"), closed}
		tr := n.transport(t)
		change(req, tr)
		_, err := tr.RoundTrip(req)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
		<-closed
	}
}

func TestRequestBodyFailures(t *testing.T) {
	broken := errors.New("broken")
	bothVersions(t, func(t *testing.T, http2 bool) {
		seen := make(chan error, 1)
		n := startNode(t, http2, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.ReadAll(r.Body)
			seen <- err
		})
		big := strings.Repeat("x", 40_000)
		for name, tc := range map[string]struct {
			body   io.Reader
			length int64
		}{
			"fails":            {io.MultiReader(strings.NewReader(big), errReader{broken}), -1},
			"fails at its end": {io.MultiReader(strings.NewReader(big), errReader{broken}), int64(len(big))},
			"too short":        {strings.NewReader(big), int64(len(big) + 1)},
			"too long":         {strings.NewReader(big), int64(len(big) - 1)},
		} {
			req := newRequest(t, "POST", tc.body)
			req.ContentLength = tc.length
			resp, err := n.transport(t).RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if nodeErr := <-seen; nodeErr == nil {
				t.Errorf("%s: the node took it for whole", name)
			}
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
