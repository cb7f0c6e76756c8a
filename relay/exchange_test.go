package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/relay"
)

// canaries are headers of all kinds; none may pass in either direction.
func canaries() http.Header {
	h := http.Header{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Cookie", "Dnt", "Forwarded",
		"From", "If-Match", "If-None-Match", "Max-Forwards", "Origin", "Pragma", "Priority", "Proxy-Authorization", "Range", "Referer",
		"Sec-Ch-Ua", "Sec-Fetch-Site", "Sec-Gpc", "Traceparent", "Tracestate", "User-Agent", "Via", "X-Api-Key", "X-Forwarded-For", "X-Real-Ip",
		"X-Request-Id", "Openai-Organization", "Content-Encoding", "Content-Language", "Content-Location", "Content-Disposition",
		"Etag", "Last-Modified", "Link", "Location", "Nel", "Report-To", "Retry-After", "Server", "Server-Timing", "Set-Cookie",
		"Strict-Transport-Security", "Alt-Svc", "Access-Control-Allow-Origin", "Vary", "Www-Authenticate", "X-Powered-By", "Age", "Warning",
	} {
		h[name] = []string{"CANARY"}
	}
	return h
}

func names(h http.Header) []string { return slices.Sorted(maps.Keys(h)) }

func TestNoHeaderPasses(t *testing.T) {
	for _, proto := range both {
		for _, inc := range []bool{false, true} {
			for _, known := range []bool{false, true} {
				t.Run(fmt.Sprint(proto, inc, known), func(t *testing.T) {
					test(t, relay.Config{}, func(w *world) { headers(w, proto, inc, known) })
				})
			}
		}
	}
}

func headers(w *world, proto string, inc, known bool) {
	var got *http.Request
	n := w.join(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got = r
		maps.Copy(rw.Header(), canaries())
		rw.Header().Set("Content-Type", "message/OHTTP-chunked-res; CANARY=1")
		rw.Header().Set("Trailer", "X-Trailer")
		if known {
			rw.Header().Set("Content-Length", "6")
		}
		io.WriteString(rw, "answer")
		http.NewResponseController(rw).Flush()
		rw.Header().Set("X-Trailer", "CANARY")
	})
	req, _ := http.NewRequest("POST", "https://"+address+"/v1/exchange/"+string(n.ID())+"?CANARY=1", io.MultiReader(strings.NewReader("question")))
	req.Header = canaries()
	req.Header.Set("Content-Type", "Message/ohttp-chunked-req; CANARY=1")
	req.Trailer = http.Header{"X-Trailer": nil}
	if proto == "http/1.1" {
		req.Trailer = nil // refused: see TestStrictBodies
	}
	want := []string{"Content-Type"}
	if known {
		req.ContentLength = 8
		want = []string{"Content-Length", "Content-Type"}
	}
	if inc {
		req.Header.Set("Incremental", "?1")
	}
	c := w.client(proto)
	res, err := c.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if string(body) != "answer" || err != nil {
		w.Errorf("body %q, %v", body, err)
	}
	if !slices.Equal(names(got.Header), want) || got.Header.Get("Content-Type") != "message/ohttp-chunked-req" {
		w.Errorf("the node got %v, want %v", got.Header, want)
	}
	if all := fmt.Sprint(got.Header, got.URL, got.Host, got.RemoteAddr, got.Trailer); strings.Contains(all, "CANARY") ||
		got.Host != string(n.ID()) || got.URL.String() != "/exchange" {
		w.Errorf("the node got %s", all)
	}
	want = []string{"Cache-Control", "Content-Type", "Date"}
	if known {
		want = []string{"Cache-Control", "Content-Length", "Content-Type", "Date"}
	}
	if !slices.Equal(names(res.Header), want) || res.Header.Get("Content-Type") != "message/ohttp-chunked-res" || len(res.Trailer) > 0 {
		w.Errorf("the client got %v %v, want %v", res.Header, res.Trailer, want)
	}
	c.CloseIdleConnections()
	n.close()
}

func TestExchangeRefusals(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{MaxBody: 1 << 20}, func(w *world) {
				n := w.join(chunked("answer"))
				other := credential(w).ID()
				c := w.client(proto)
				for _, tc := range []struct {
					method, node, contentType string
					body                      io.Reader
					status                    int
					slug                      string
				}{
					{"POST", string(n.ID()), "application/json", repeat(10), 415, "unsupported-media-type"},
					{"POST", string(n.ID()), "message/ohttp-res", repeat(10), 415, "unsupported-media-type"},
					{"POST", string(n.ID()), "", repeat(10), 415, "unsupported-media-type"},
					{"POST", string(n.ID()), "message/ohttp-req", repeat(1<<20 + 1), 413, "too-large"},
					{"POST", string(n.ID()), "message/ohttp-req", io.MultiReader(repeat(1<<20 + 1)), 413, "too-large"},
					{"POST", string(n.ID()), "message/ohttp-req", io.MultiReader(repeat(30 << 20)), 413, "too-large"},
					{"POST", string(other), "message/ohttp-req", repeat(10), 503, "node-unavailable"},
					{"POST", string(other), "message/ohttp-req", repeat(1 << 20), 503, "node-unavailable"},
					{"POST", "nobody", "message/ohttp-req", repeat(10), 404, "not-found"},
					{"POST", "", "message/ohttp-req", repeat(10), 404, "not-found"},
					{"POST", string(n.ID()) + "/x", "message/ohttp-req", repeat(10), 404, "not-found"},
					{"POST", string(n.ID()[:25]) + "%61", "message/ohttp-req", repeat(10), 404, "not-found"},
					{"GET", string(n.ID()), "", nil, 405, "method-not-allowed"},
					{"PUT", string(n.ID()), "message/ohttp-req", repeat(10), 405, "method-not-allowed"},
				} {
					h := http.Header{"Content-Type": {tc.contentType}}
					if tc.contentType == "" {
						h = nil
					}
					node := tc.node
					if strings.Contains(node, "%61") && n.ID()[25] == 'a' {
						continue
					}
					res, body := w.do(c, tc.method, "/v1/exchange/"+node, h, tc.body)
					w.problem(res, body, tc.status, tc.slug)
					if retry := res.Header.Get("Retry-After"); (retry != "") != (tc.status == 503) {
						w.Errorf("%s: Retry-After %q", tc.slug, retry)
					}
					if tc.status == 405 && res.Header.Get("Allow") != "POST" {
						w.Errorf("Allow %q", res.Header.Get("Allow"))
					}
				}
				if res, got := w.exchange(c, n.ID(), repeat(1<<20)); res.StatusCode != 200 || got != "answer" {
					w.Errorf("the largest body: %d %s", res.StatusCode, got)
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

func TestBusyNode(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		go1 := make(chan bool)
		cred := credential(w)
		n := w.connect(cred, 1, func(rw http.ResponseWriter, r *http.Request) {
			<-go1
			chunked("answer")(rw, r)
		})
		n.lines <- bundleLine(w, cred, descriptor())
		synctest.Wait()
		c := w.client("h2")
		first := make(chan string)
		go func() {
			_, b := w.exchange(c, n.ID(), repeat(10))
			first <- b
		}()
		synctest.Wait()
		res, body := w.exchange(c, n.ID(), repeat(10))
		w.problem(res, body, 503, "node-busy")
		if res.Header.Get("Retry-After") != "1" {
			w.Errorf("Retry-After %q", res.Header.Get("Retry-After"))
		}
		go1 <- true
		if got := <-first; got != "answer" {
			w.Errorf("the first got %q", got)
		}
		c.CloseIdleConnections()
		n.close()
	})
}

// What a node says instead of a sealed answer.
func TestNodeAnswers(t *testing.T) {
	const problem = "application/problem+json"
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				var status int
				var contentType, text string
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					rw.Header()["Content-Type"] = []string{contentType}
					if contentType == "" {
						rw.Header()["Content-Type"] = nil
					}
					rw.Header().Set("Location", "https://evil.example/")
					if status < 200 {
						rw.WriteHeader(103)
						status = 200
					}
					rw.WriteHeader(status)
					io.WriteString(rw, text)
				})
				c := w.client(proto)
				for _, tc := range []struct {
					status            int
					contentType, text string
					want              int
				}{
					{200, "message/ohttp-res", "sealed", 200},
					{103, "message/ohttp-res", "sealed", 200},
					{401, problem, `{"type":"x"}`, 401},
					{422, problem + "; charset=utf-8", `{"type":"https://iana.org/assignments/http-problem-types#ohttp-key"}`, 422},
					{500, problem, strings.Repeat("x", 64<<10), 500},
					{500, problem, strings.Repeat("x", 64<<10+1), 502},
					{500, "text/html", "<h1>hello</h1>", 502},
					{200, "text/html", "<h1>hello</h1>", 502},
					{200, problem, "{}", 502},
					{200, "", "sealed", 502},
					{200, "message/ohttp-res", "", 502},
					{401, "message/ohttp-res", "sealed", 502},
					{201, "message/ohttp-res", "sealed", 502},
					{204, "", "", 502},
					{302, problem, "{}", 502},
					{999, problem, "{}", 502},
				} {
					status, contentType, text = tc.status, tc.contentType, tc.text
					res, body := w.exchange(c, n.ID(), repeat(10))
					if tc.want == 502 {
						w.problem(res, body, 502, "node-failed")
					} else if res.StatusCode != tc.want || body != text || strings.ContainsAny(res.Header.Get("Content-Type"), "; ") {
						w.Errorf("%v: got %d %v %q", tc, res.StatusCode, res.Header, body[:min(100, len(body))])
					}
					if res.Header.Get("Location") != "" {
						w.Errorf("%v: Location passed", tc)
					}
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

// Pieces arrive as they are sent, not when the buffer is full.
func TestAnswerStreams(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				next := make(chan string)
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					for s := range next {
						io.WriteString(rw, s)
						http.NewResponseController(rw).Flush()
					}
				})
				c := w.client(proto)
				go func() { next <- "first" }()
				res := w.open(context.Background(), c, n.ID(), repeat(10))
				buf := make([]byte, 100)
				for i := range 20 {
					if i > 0 {
						time.Sleep(time.Minute) // longer than any timeout but MaxExchange
						next <- "first"
					}
					if got, err := res.Body.Read(buf); string(buf[:got]) != "first" || err != nil {
						w.Fatalf("piece %d: %q, %v", i, buf[:got], err)
					}
				}
				close(next)
				if _, err := res.Body.Read(buf); err != io.EOF {
					w.Errorf("at the end: %v", err)
				}
				res.Body.Close()
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

// open posts a sealed message and returns when the answer begins.
func (w *world) open(ctx context.Context, c *http.Client, id identity.ID, body io.Reader) *http.Response {
	w.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", "https://"+address+"/v1/exchange/"+string(id), body)
	if err != nil {
		w.Fatal(err)
	}
	req.Header = sealed()
	res, err := c.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	return res
}

// A node that ends in the middle of an answer never looks like its end.
func TestNodeDies(t *testing.T) {
	for _, proto := range both {
		for _, how := range []string{"handler", "connection"} {
			for _, known := range []bool{false, true} {
				t.Run(fmt.Sprint(proto, " ", how, " ", known), func(t *testing.T) {
					test(t, relay.Config{}, func(w *world) {
						var n *node
						started := false
						n = w.join(func(rw http.ResponseWriter, r *http.Request) {
							io.Copy(io.Discard, r.Body)
							if started {
								rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
								if known {
									rw.Header().Set("Content-Length", "100")
								}
								io.WriteString(rw, "half")
								http.NewResponseController(rw).Flush()
								time.Sleep(time.Second)
							}
							if how == "connection" {
								n.conn.NetConn().Close()
							}
							panic(http.ErrAbortHandler)
						})
						c := w.client(proto)
						started = true
						res := w.open(context.Background(), c, n.ID(), repeat(10))
						got, err := io.ReadAll(res.Body)
						if err == nil || string(got) != "half" {
							w.Errorf("mid-answer: %q, %v", got, err)
						}
						if started = false; how == "handler" {
							res, body := w.exchange(c, n.ID(), repeat(10))
							w.problem(res, body, 502, "node-failed")
						} else {
							synctest.Wait()
							res, body := w.exchange(c, n.ID(), repeat(10))
							w.problem(res, body, 503, "node-unavailable")
						}
						c.CloseIdleConnections()
						n.close()
					})
				})
			}
		}
	}
}

// When a client goes the node hears of it without any time passing.
func TestCancelReachesTheNode(t *testing.T) {
	for _, proto := range both {
		for _, when := range []string{"uploading", "waiting", "streaming"} {
			t.Run(proto+" "+when, func(t *testing.T) {
				test(t, relay.Config{}, func(w *world) {
					ended := make(chan time.Time, 1)
					n := w.join(func(rw http.ResponseWriter, r *http.Request) {
						if when != "uploading" {
							io.Copy(io.Discard, r.Body)
						}
						if when == "streaming" {
							rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
							io.WriteString(rw, "piece")
							http.NewResponseController(rw).Flush()
						}
						<-r.Context().Done()
						ended <- time.Now()
					})
					c := w.client(proto)
					ctx, cancel := context.WithCancel(context.Background())
					body, upload := io.Pipe()
					go func() {
						io.WriteString(upload, "begin")
						if when != "uploading" {
							upload.Close()
						}
					}()
					req, _ := http.NewRequestWithContext(ctx, "POST", "https://"+address+"/v1/exchange/"+string(n.ID()), body)
					req.Header = sealed()
					failed := make(chan error)
					go func() {
						res, err := c.Do(req)
						if err == nil {
							_, err = io.ReadAll(res.Body)
							res.Body.Close()
						}
						failed <- err
					}()
					synctest.Wait()
					select {
					case <-ended:
						w.Fatal("ended too soon")
					default:
					}
					at := time.Now()
					cancel()
					if took := (<-ended).Sub(at); took > 0 {
						w.Errorf("the node heard of it after %v", took)
					}
					upload.CloseWithError(context.Canceled) // HTTP/1.1 clients wait for it
					// While it closes, an HTTP/1.1 client may still hear the relay.
					if err := <-failed; !errors.Is(err, context.Canceled) && (err != nil || when != "uploading") {
						w.Errorf("client: %v", err)
					}
					c.CloseIdleConnections()
					n.close()
				})
			})
		}
	}
}

func TestExchange(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					chunked("one ", "two ", string(b))(rw, r)
				})
				c := w.client(proto)
				for _, body := range []io.Reader{strings.NewReader("three"), io.MultiReader(strings.NewReader("three")), repeat(300_000)} {
					res, got := w.exchange(c, n.ID(), body)
					if res.StatusCode != http.StatusOK || !strings.HasPrefix(got, "one two three") && len(got) != 300_008 {
						t.Errorf("%d %q", res.StatusCode, got[:min(len(got), 100)])
					}
				}
				if got := w.listed("?model=pocket"); !slices.Equal(got, []string{string(n.ID())}) {
					t.Errorf("directory: %v", got)
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}
