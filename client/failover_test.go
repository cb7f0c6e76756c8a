package client_test

import (
	"context"
	"errors"
	"io"
	stdnet "net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"token.place/client"
	"token.place/identity"
	"token.place/ohttp"
)

// once makes the first exchange that reaches a relay go wrong.
func once(wrong func(w http.ResponseWriter, r *http.Request, n *stubNode)) func(http.ResponseWriter, *http.Request, *stubNode) bool {
	var first sync.Once
	return func(w http.ResponseWriter, r *http.Request, n *stubNode) (done bool) {
		first.Do(func() { done = true; wrong(w, r, n) })
		return done
	}
}

// through has an engine answer the sealed request in place of the node's own.
func through(engine http.HandlerFunc) func(http.ResponseWriter, *http.Request, *stubNode) {
	return func(w http.ResponseWriter, r *http.Request, n *stubNode) {
		(&ohttp.Handler{Keys: n.keys, Next: engine}).ServeHTTP(w, r)
	}
}

func abort(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// Whatever goes wrong before the first byte of an answer, the next node answers.
func TestFailover(t *testing.T) {
	stranger, err := ohttp.NewKeys(ohttp.KeysConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for name, wrong := range map[string]func(w http.ResponseWriter, r *http.Request, n *stubNode){
		"node unavailable": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 503, "https://token.place/problems/node-unavailable")
		},
		"node busy": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 503, "https://token.place/problems/node-busy")
		},
		"node failed":     func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { problem(w, 502, "about:blank") },
		"timeout problem": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { problem(w, 504, "about:blank") },
		"replay": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 400, "https://token.place/problems/replay")
		},
		"unknown key": func(w http.ResponseWriter, r *http.Request, _ *stubNode) {
			(&ohttp.Handler{Keys: stranger, Next: http.NotFoundHandler()}).ServeHTTP(w, r)
		},
		"relay limits": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { problem(w, 429, "about:blank") },
		"relay broken": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { w.WriteHeader(500) },
		"HTML":         func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { io.WriteString(w, "<h1>LIES</h1>") },
		"plain answer": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"LIES":1}`)
		},
		"redirect of the relay": func(w http.ResponseWriter, r *http.Request, _ *stubNode) {
			http.Redirect(w, r, "https://evil.test/", 307)
		},
		"nothing": func(http.ResponseWriter, *http.Request, *stubNode) { panic(http.ErrAbortHandler) },
		"sealed garbage": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			w.Header().Set("Content-Type", "message/ohttp-chunked-res")
			io.WriteString(w, strings.Repeat("LIES", 1000))
		},
		"sealed and empty": func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			w.Header().Set("Content-Type", "message/ohttp-chunked-res")
		},
		"broken before the header": through(abort),
		"broken before the first byte": through(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}),
		"engine 429":         through(fails(429, "{}")),
		"engine 502":         through(fails(502, "{}")),
		"engine 503":         through(fails(503, "{}")),
		"engine 504":         through(fails(504, "{}")),
		"engine redirects":   through(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://evil.test/", 307) }),
		"engine not changed": through(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) }),
	} {
		t.Run(name, func(t *testing.T) {
			for _, nodes := range []int{1, 2} {
				if strings.HasPrefix(name, "engine") && nodes == 1 {
					continue // there is nobody else to ask
				}
				bubble(t, func(t *testing.T) {
					net := newNetwork(t)
					a, b := newNode(t, says("ok"), "m"), newNode(t, says("ok"), "m")
					r := net.relay("relay.test", []*stubNode{a, b}[:nodes]...)
					r.exchange = once(wrong)
					tr := net.client(client.Config{Trust: pins(a, b)}, r)
					if status, answer := ask(t, tr, chat); status != 200 || answer != "ok" {
						t.Errorf("%d nodes: got %d %s", nodes, status, answer)
					}
					if nodes == 2 && r.exchanges[0] == r.exchanges[1] && !strings.Contains(name, "relay") && name != "HTML" && name != "plain answer" && name != "nothing" {
						t.Errorf("the node that failed was asked again, out of %d", nodes)
					}
					if client.InFlight(tr, a.id)+client.InFlight(tr, b.id) != 0 {
						t.Error("exchanges are still counted")
					}
				})
			}
		})
	}
}

// A relay may say whatever it likes: the client asks again, seals to the key that
// it verified or to none, and ends.
func TestARelayCannotTalkTheClientDown(t *testing.T) {
	for name, c := range map[string]struct {
		wrong func(w http.ResponseWriter, r *http.Request, n *stubNode)
		code  string
	}{
		"no such key": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 400, "https://iana.org/assignments/http-problem-types#ohttp-key")
		}, "node_key"},
		"only plaintext": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 421, "https://token.place/problems/plaintext-refused")
		}, "relay_error"},
		"only the whole format": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 415, "https://token.place/problems/unsupported-media-type")
		}, "relay_error"},
		"too large": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 413, "https://token.place/problems/too-large")
		}, "request_too_large"},
		"too slow": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 408, "https://token.place/problems/slow-body")
		}, "slow_network"},
		"out of time": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 504, "https://token.place/problems/exchange-timeout")
		}, "node_timeout"},
		"busy": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) { // waited out, see TestFullNodes
			problem(w, 503, "https://token.place/problems/node-busy")
		}, "node_busy"},
		"a forged clock problem": {func(w http.ResponseWriter, _ *http.Request, _ *stubNode) {
			problem(w, 400, "https://iana.org/assignments/http-problem-types#date")
		}, "node_lost"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				net := newNetwork(t)
				n := newNode(t, says("ok"), "m")
				r := net.relay("relay.test", n)
				r.exchange = func(w http.ResponseWriter, r *http.Request, n *stubNode) bool {
					if got := r.Header.Get("Content-Type"); got != "message/ohttp-chunked-req" {
						t.Errorf("sent %s", got)
					}
					head := make([]byte, 3)
					if io.ReadFull(r.Body, head); head[1] != 0x64 || head[2] != 0x7a {
						t.Errorf("sealed with KEM %x", head[1:])
					}
					c.wrong(w, r, n)
					return true
				}
				tr := net.client(client.Config{Trust: pins(n)}, r)
				if e := refused(t, tr, chat); e.Code != c.code {
					t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
				}
				if fetches, exchanges := r.counts(); name != "busy" && fetches > 3 || name != "busy" && exchanges > client.MaxAttempts {
					t.Errorf("%d fetches, %d exchanges", fetches, exchanges)
				}
			})
		})
	}
}

func TestTheEnginesOwnWordsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		loading := `{"error":{"message":"Loading model","code":503}}`
		a, b := newNode(t, fails(503, loading), "m"), newNode(t, fails(503, loading), "m")
		r := net.relay("relay.test", a, b)
		tr := net.client(client.Config{Trust: pins(a, b)}, r)
		if status, answer := ask(t, tr, chat); status != 503 || answer != loading {
			t.Errorf("got %d %s", status, answer)
		}
		if _, exchanges := r.counts(); exchanges != 2 {
			t.Errorf("%d exchanges, want one for each node", exchanges)
		}
		// What is not the node's trouble is not another node's either.
		c := newNode(t, fails(400, "{}"), "m")
		r.with(func() { r.nodes = []*stubNode{c} })
		tr = net.client(client.Config{Trust: pins(a, c)}, r)
		if status, _ := ask(t, tr, chat); status != 400 {
			t.Errorf("got %d", status)
		}
		if _, exchanges := r.counts(); exchanges != 3 {
			t.Errorf("a bad request was sent %d times", exchanges-2)
		}
	})
}

func TestNodeClock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			problem(w, 400, "https://iana.org/assignments/http-problem-types#date")
		}, "m")
		tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
		if e := refused(t, tr, chat); e.Code != "clock" || !strings.Contains(e.Message, "ten minutes apart") {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
	})
}

func TestRotatedKeys(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("old"), "m")
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		ask(t, tr, chat)
		r.with(func() { n.rekey(t, says("new")) })
		if status, answer := ask(t, tr, chat); status != 200 || answer != "new" {
			t.Errorf("got %d %s", status, answer)
		}
		if fetches, exchanges := r.counts(); fetches != 2 || exchanges != 3 {
			t.Errorf("%d fetches, %d exchanges", fetches, exchanges)
		}
	})
}

func TestNodesComeAndGo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		ask(t, tr, chat)
		r.with(func() { r.nodes = nil })
		if e := refused(t, tr, chat); e.Code != "node_unavailable" || e.Status != 503 {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		if e := refused(t, tr, chat); e.Code != "no_node" || e.Status != 503 {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		r.with(func() { r.nodes = []*stubNode{n} })
		time.Sleep(3 * time.Second)
		if status, _ := ask(t, tr, chat); status != 200 {
			t.Errorf("status %d after the node came back", status)
		}
	})
}

func TestRelaysStandInForEachOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		a, b := net.relay("a.test", n), net.relay("b.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, a, b)
		for range 20 {
			ask(t, tr, chat)
		}
		_, viaA := a.counts()
		_, viaB := b.counts()
		if viaA+viaB != 20 {
			t.Errorf("%d + %d exchanges", viaA, viaB)
		}
		a.srv.Close()
		for range 10 {
			if status, _ := ask(t, tr, chat); status != 200 {
				t.Fatalf("status %d with one relay left", status)
			}
		}
		time.Sleep(10 * time.Second)
		ask(t, tr, chat)
		b.srv.Close()
		e := refused(t, tr, chat)
		if e.Code != "relay_unreachable" || e.Status != 502 || !strings.Contains(e.Message, "check") {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		fresh := net.client(client.Config{Trust: pins(n)}, a, b)
		if e := refused(t, fresh, chat); !strings.Contains(e.Message, "1 other relays fail as well") {
			t.Error(e.Message)
		}
	})
}

// A relay that restarted between two requests is noticed by nobody, though the
// connections to it are dead.
func TestARelayThatRestarts(t *testing.T) {
	for _, http1 := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			net := newNetwork(t)
			n := newNode(t, says("ok"), "m")
			r := net.relay("relay.test", n)
			tr := net.client(client.Config{Trust: pins(n)}, r)
			for range 3 {
				r.srv.Close()
				<-r.done
				r.http1 = http1
				net.serve(r)
				if status, answer := ask(t, tr, chat); status != 200 || answer != "ok" {
					t.Errorf("got %d %s", status, answer)
				}
			}
		})
	}
}

// A relay that vanishes without a word is found by pings, before and during an
// answer.
func TestARelayThatVanishes(t *testing.T) {
	for _, begun := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			net := newNetwork(t)
			n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
				if begun {
					io.WriteString(w, "a beginning")
					http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
			}, "m")
			r := net.relay("relay.test", n)
			dial := &stallingDialer{dial: net.net.Dial}
			tr, err := client.New(client.Config{Relays: []identity.Relay{r.relay}, Trust: pins(n), Dial: dial.Dial})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			time.AfterFunc(time.Minute, dial.stall)
			start := time.Now()
			resp, err := post(t.Context(), tr, chat)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if (err == nil) || begun == errors.As(err, new(*client.Error)) {
				t.Errorf("begun %v: error is %T %v", begun, err, err)
			}
			if d := time.Since(start); d < time.Minute || d > 105*time.Second {
				t.Errorf("begun %v: noticed after %v", begun, d)
			}
			dial.free()
		})
	}
}

// A relay that went silent costs one delay, not one for each request.
func TestASilentRelayIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		a, b := net.relay("a.test", n), net.relay("b.test", n)
		dial := &stallingDialer{dial: net.net.Dial}
		tr, err := client.New(client.Config{Relays: []identity.Relay{a.relay, b.relay}, Trust: pins(n), Dial: func(ctx context.Context, network, addr string) (stdnet.Conn, error) {
			if addr == "a.test:443" {
				return dial.Dial(ctx, network, addr)
			}
			return net.net.Dial(ctx, network, addr)
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		ask(t, tr, chat)
		synctest.Wait() // both directories are there
		for range 40 {
			ask(t, tr, chat)
		}
		if _, exchanges := a.counts(); exchanges == 0 {
			t.Error("the first relay got nothing")
		}
		dial.stall()
		slow := 0
		for range 60 {
			start := time.Now()
			if status, _ := ask(t, tr, chat); status != 200 {
				t.Fatalf("status %d", status)
			}
			if d := time.Since(start); d > 16*time.Second {
				t.Errorf("a request took %v", d)
			} else if d > time.Second {
				slow++
			}
			time.Sleep(7 * time.Second)
		}
		if slow > 1 {
			t.Errorf("%d requests were slow", slow)
		}
		start := time.Now()
		models, err := tr.Models(t.Context())
		if e := refused(t, tr, `{"model":"x"}`); err != nil || len(models) != 1 || e.Code != "model_not_found" {
			t.Errorf("models %v, %v; %s", models, err, e.Code)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the models took %v", d)
		}
		dial.free()
	})
}

func TestNothingIsRetriedAfterTheFirstByte(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half an ans")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "m")
		r := net.relay("relay.test", n)
		tr := net.client(client.Config{Trust: pins(n)}, r)
		resp, err := post(t.Context(), tr, chat)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if string(got) != "half an ans" || !errors.Is(err, ohttp.ErrTruncated) {
			t.Errorf("got %q, %v", got, err)
		}
		if _, exchanges := r.counts(); exchanges != 1 {
			t.Errorf("%d exchanges", exchanges)
		}
	})
}

func TestNothingIsRetriedAfterACancel(t *testing.T) {
	for _, begin := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			net := newNetwork(t)
			gone := make(chan time.Time, 1)
			engine := func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if begin {
					w.WriteHeader(200)
					http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
				gone <- time.Now()
			}
			a, b := newNode(t, engine, "m"), newNode(t, engine, "m")
			r := net.relay("relay.test", a, b)
			tr := net.client(client.Config{Trust: pins(a, b)}, r)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Hour, cancel)
			start := time.Now()
			_, err := post(ctx, tr, chat)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error is %v", err)
			}
			if d := (<-gone).Sub(start); d != time.Hour {
				t.Errorf("the engine stopped after %v", d)
			}
			if _, exchanges := r.counts(); exchanges != 1 {
				t.Errorf("%d exchanges", exchanges)
			}
			synctest.Wait()
			if client.InFlight(tr, a.id)+client.InFlight(tr, b.id) != 0 {
				t.Error("the exchange is still counted")
			}
		})
	}
}

func TestCancelWhileTheDirectoryIsFetched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		n := newNode(t, says("ok"), "m")
		r := net.relay("relay.test", n)
		r.directory = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		tr := net.client(client.Config{Trust: pins(n)}, r)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := post(ctx, tr, chat); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		if _, err := tr.Models(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	})
}
