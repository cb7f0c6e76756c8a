package relay_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"token.place/relay"
)

func TestMaxExchange(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{MaxExchange: 10 * time.Minute}, func(w *world) {
				stream := false
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					if stream {
						chunked("piece")(rw, r)
					}
					<-r.Context().Done()
				})
				c := w.client(proto)
				at := time.Now()
				res, body := w.exchange(c, n.ID(), repeat(10))
				w.problem(res, body, 504, "exchange-timeout")
				if took := time.Since(at); took != 10*time.Minute {
					w.Errorf("after %v", took)
				}
				stream, at = true, time.Now()
				res = w.open(context.Background(), c, n.ID(), repeat(10))
				if got, err := io.ReadAll(res.Body); err == nil || string(got) != "piece" {
					w.Errorf("mid-answer: %q, %v", got, err)
				}
				if took := time.Since(at); took != 10*time.Minute {
					w.Errorf("after %v", took)
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

// slow is a body that gives size bytes a time, every pause.
type slow struct {
	size, left int
	pause      time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	n := min(s.size, s.left, len(p))
	s.left -= n
	return n, nil
}

func TestSlowBody(t *testing.T) {
	for _, proto := range both {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprint(proto, known), func(t *testing.T) {
				test(t, relay.Config{}, func(w *world) {
					exchanges := 0
					n := w.join(func(rw http.ResponseWriter, r *http.Request) {
						exchanges++
						if _, err := io.Copy(io.Discard, r.Body); err == nil {
							chunked("answer")(rw, r)
						}
					})
					c := w.client(proto)
					post := func(s *slow) (*http.Response, string) {
						req, _ := http.NewRequest("POST", "https://"+address+"/v1/exchange/"+string(n.ID()), s)
						req.Header = sealed()
						if known {
							req.ContentLength = int64(s.left)
						}
						res, err := c.Do(req)
						if err != nil {
							w.Fatal(err)
						}
						b, _ := io.ReadAll(res.Body)
						return res, string(b)
					}
					at := time.Now()
					res, body := post(&slow{1, 10_000, 10 * time.Second})
					w.problem(res, body, 408, "slow-body")
					if took := time.Since(at); took < 30*time.Second || took > 50*time.Second {
						w.Errorf("after %v", took)
					}
					if res, body := post(&slow{1, 60_000, 10 * time.Second}); known {
						w.problem(res, body, 408, "slow-body")
					}
					if known && exchanges > 0 {
						w.Error("a small body that did not come held a place at the node")
					}
					// 4 KB a second is slow, but it gets there, and while nobody
					// waits for it so does 1 KB.
					if res, body := post(&slow{4 << 10, 400 << 10, time.Second}); body != "answer" {
						w.Errorf("slow but steady: %d %s", res.StatusCode, body)
					}
					if res, body := post(&slow{1 << 10, 60 << 10, time.Second}); known && body != "answer" {
						w.Errorf("small, slow but steady: %d %s", res.StatusCode, body)
					}
					res, body = post(&slow{1 << 10, 200 << 10, time.Second})
					w.problem(res, body, 408, "slow-body")
					time.Sleep(time.Minute) // the client notices
					c.CloseIdleConnections()
					n.close()
				})
			})
		}
	}
}

// A client that does not read is cut, and holds up nobody until then.
func TestSlowReader(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				stalled := make(chan time.Duration, 1)
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					if string(b) == "x" {
						chunked("quick")(rw, r)
						return
					}
					at := time.Now()
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					for r.Context().Err() == nil {
						if _, err := rw.Write(make([]byte, 32<<10)); err != nil {
							break
						}
					}
					stalled <- time.Since(at)
				})
				c := w.client(proto)
				res := w.open(context.Background(), c, n.ID(), repeat(10))
				synctest.Wait()
				if _, got := w.exchange(c, n.ID(), repeat(1)); got != "quick" {
					w.Errorf("beside a stalled reader: %q", got)
				}
				if took := <-stalled; took < 30*time.Second || took > 50*time.Second {
					w.Errorf("cut after %v", took)
				}
				if _, err := io.ReadAll(res.Body); err == nil {
					w.Error("a cut answer ended well")
				}
				res.Body.Close()
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

// A node may answer before it has read the request. HTTP/1.1 must neither lose
// that answer nor cut it.
func TestEarlyAnswers(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					if r.ContentLength == 3<<20 {
						rw.Header().Set("Content-Type", "application/problem+json")
						rw.WriteHeader(401)
						io.WriteString(rw, "{}")
						return
					}
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					rw.Write(make([]byte, 2<<20))
				})
				c := w.client(proto)
				if res, body := w.exchange(c, n.ID(), repeat(3<<20)); res.StatusCode != 401 || body != "{}" {
					w.Errorf("refused early: %d %q", res.StatusCode, body)
				}
				if res, body := w.exchange(c, n.ID(), io.MultiReader(repeat(4<<20))); res.StatusCode != 200 || len(body) != 2<<20 {
					w.Errorf("answered early: %d, %d bytes", res.StatusCode, len(body))
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

// An answer does not wait for a client that has stopped sending, once the node
// wants no more of the request.
func TestEarlyAnswerToAStalledUpload(t *testing.T) {
	for status, contentType := range map[int]string{200: "message/ohttp-res", 401: "application/problem+json"} {
		test(t, relay.Config{}, func(w *world) {
			n := w.join(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Type", contentType)
				rw.WriteHeader(status)
				io.WriteString(rw, "answer")
				http.NewResponseController(rw).Flush()
			})
			at := time.Now()
			res, body := w.talk("POST /v1/exchange/" + string(n.ID()) + " HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\n" +
				"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			if took := time.Since(at); res.StatusCode != status || body != "answer" || took > 0 || !res.Close {
				t.Errorf("%d %s after %v, close %v", res.StatusCode, body, took, res.Close)
			}
			n.close()
		})
	}
}

// Pipelined requests are answered in their order, also when one is refused.
func TestPipelining(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(func(rw http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			time.Sleep(time.Second)
			chunked(string(b))(rw, r)
		})
		c := w.raw()
		head := "POST /v1/exchange/" + string(n.ID()) + " HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\n"
		go io.WriteString(c, head+"Content-Length: 3\r\n\r\none"+head+"Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"+
			head+"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
		br := bufio.NewReader(c)
		for _, want := range []string{"one", "two"} {
			if res, got := w.answer(br); res.StatusCode != 200 || got != want {
				w.Errorf("got %d %q, want %q", res.StatusCode, got, want)
			}
		}
		res, body := w.answer(br)
		w.problem(res, body, 400, "malformed-request")
		if b, err := io.ReadAll(br); len(b) > 0 || err != nil {
			w.Errorf("after a refused request: %q, %v", b, err)
		}
		c.Close()
		n.close()
	})
}

// The relay's own share of a chunk allocates nothing, whatever their number.
func TestChunksAllocateNothing(t *testing.T) {
	r, err := relay.New(relay.Config{Credential: credential(t)})
	if err != nil {
		t.Fatal(err)
	}
	run := func(chunks int) float64 {
		return testing.AllocsPerRun(20, func() { r.Copy(httptest.NewRecorder(), &pieces{chunks}) })
	}
	few, many := run(10), run(10_000)
	// The recorder's buffer grows a few times.
	if many-few > 30 {
		t.Errorf("%v allocations for 10 chunks, %v for 10,000", few, many)
	}
}

// pieces is a body of so many pieces of 100 bytes.
type pieces struct{ left int }

func (p *pieces) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	p.left--
	return copy(b, make([]byte, 100)), nil
}

func (p *pieces) Close() error { return nil }

// A wait that ends while somebody asks for it is counted once.
func TestWaitsCountOnce(t *testing.T) {
	// What the clock shows may be one wait ahead.
	if got := relay.Progress(100_000); got > 3 {
		t.Errorf("waits of at most 2 count as %d", got)
	}
}
