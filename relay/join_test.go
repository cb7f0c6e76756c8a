package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/relay"
	"token.place/tunnel"
)

// gone waits until the relay has closed a node's connection, and says when.
func (n *node) gone() time.Duration {
	at := time.Now()
	<-n.ended
	return time.Since(at)
}

// Nodes that do not say properly who they are do not get in.
func TestBadNodes(t *testing.T) {
	for name, say := range map[string]func(w *world, c *identity.Credential, lines chan<- string){
		"garbage":       func(w *world, c *identity.Credential, lines chan<- string) { lines <- "\x00\xff{]" },
		"not an object": func(w *world, c *identity.Credential, lines chan<- string) { lines <- `"bundle"` },
		"nothing":       func(w *world, c *identity.Credential, lines chan<- string) { lines <- `{}` },
		"null":          func(w *world, c *identity.Credential, lines chan<- string) { lines <- `null` },
		"no bundle": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- `{"load":{"in_flight":0,"capacity":1}}`
		},
		"draining":     func(w *world, c *identity.Credential, lines chan<- string) { lines <- `{"draining":true}` },
		"empty line":   func(w *world, c *identity.Credential, lines chan<- string) { lines <- "" },
		"endless line": func(w *world, c *identity.Credential, lines chan<- string) { lines <- strings.Repeat(" ", 70<<10) },
		"endless string": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- `{"bundle":{"key":"` + strings.Repeat("x", 10<<20)
		},
		"unknown field": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- strings.Replace(bundleLine(w, c, descriptor()), "{", `{"admin":true,`, 1)
		},
		"two objects": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- bundleLine(w, c, descriptor()) + "{}"
		},
		"another's bundle": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- bundleLine(w, credential(w), descriptor())
		},
		"another's descriptor": func(w *world, c *identity.Credential, lines chan<- string) {
			own, _ := c.Sign(descriptor())
			other, _ := credential(w).Sign(descriptor())
			line, _ := json.Marshal(map[string]any{"bundle": identity.Bundle{Key: own.Key, Descriptor: other.Descriptor}})
			lines <- string(line)
		},
		"expired": func(w *world, c *identity.Credential, lines chan<- string) {
			d := descriptor()
			d.NotBefore, d.NotAfter = d.NotBefore.Add(-2*time.Hour), d.NotBefore.Add(-time.Hour)
			lines <- bundleLine(w, c, d)
		},
		"from the future": func(w *world, c *identity.Credential, lines chan<- string) {
			d := descriptor()
			d.NotBefore = time.Now().Add(10 * time.Minute)
			lines <- bundleLine(w, c, d)
		},
		"impossible load": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- strings.Replace(bundleLine(w, c, descriptor()), "{", `{"load":{"in_flight":-1,"capacity":1},`, 1)
		},
		"bad line later": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- bundleLine(w, c, descriptor())
			lines <- "hello"
		},
		"nothing later": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- bundleLine(w, c, descriptor())
			lines <- "{}"
		},
		"bad bundle later": func(w *world, c *identity.Credential, lines chan<- string) {
			lines <- bundleLine(w, c, descriptor())
			lines <- bundleLine(w, credential(w), descriptor())
		},
		"silence": func(w *world, c *identity.Credential, lines chan<- string) {},
	} {
		t.Run(name, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				c := credential(w)
				n := w.connect(c, 8, chunked("answer"))
				say(w, c, n.lines)
				if took := n.gone(); took > 10*time.Second || name != "silence" && took > time.Second {
					w.Errorf("its connection ended after %v", took)
				}
				if got := w.listed(""); len(got) > 0 {
					w.Errorf("it is listed: %v", got)
				}
				if strings.Contains(w.log.String(), "internal error") {
					w.Error(w.log.String())
				}
			})
		})
	}
}

// A node's status may be anything HTTP can carry.
func TestBadStatus(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"404":     func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"empty":   func(w http.ResponseWriter, r *http.Request) {},
		"aborted": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"hangs":   func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"a line without its end": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"load":`)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				conn, err := w.dial(credential(w), tunnel.Proto)
				if err != nil {
					t.Fatal(err)
				}
				at := time.Now()
				tunnel.Serve(context.Background(), conn, h, tunnel.ServeConfig{Capacity: 1})
				if took := time.Since(at); took > 10*time.Second {
					t.Errorf("its connection ended after %v", took)
				}
			})
		})
	}
}

// A peer that speaks no HTTP/2 after asking for the tunnel, or nothing.
func TestNotATunnel(t *testing.T) {
	for _, say := range []string{"", "hello, I am a node\r\n\r\n", strings.Repeat("\x00", 1<<20)} {
		test(t, relay.Config{}, func(w *world) {
			conn, err := w.dial(credential(w), tunnel.Proto)
			if err != nil {
				t.Fatal(err)
			}
			at := time.Now()
			go io.WriteString(conn, say)
			io.Copy(io.Discard, conn)
			if took := time.Since(at); took > 11*time.Second {
				t.Errorf("%.10q: closed after %v", say, took)
			}
			conn.Close()
		})
	}
}

func TestExpiry(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(chunked("answer")) // for one hour
		time.Sleep(time.Hour - time.Second)
		if got := w.listed(""); len(got) != 1 {
			t.Errorf("before: %v", got)
		}
		time.Sleep(time.Second)
		if got := w.listed(""); len(got) != 0 {
			t.Errorf("expired: %v", got)
		}
		if got := w.listed("?id=" + string(n.ID())); len(got) != 0 {
			t.Errorf("expired, by ID: %v", got)
		}
		if res, body := w.get("/v1/nodes/" + string(n.ID()) + "/ohttp-keys"); res.StatusCode != 503 {
			t.Errorf("expired keys: %d %q", res.StatusCode, body)
		}
		if _, body := w.get("/v1/models"); strings.Contains(body, "pocket") {
			t.Errorf("expired models: %s", body)
		}
		n.lines <- bundleLine(t, n.Credential, descriptor())
		synctest.Wait()
		if got := w.listed(""); len(got) != 1 {
			t.Errorf("renewed: %v", got)
		}
		// A node that renews nothing is let go of in the end.
		if took := n.gone(); took != time.Hour+5*time.Minute {
			t.Errorf("gone after %v", took)
		}
	})
}

func TestNodeDrains(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		next := make(chan bool)
		n := w.join(func(rw http.ResponseWriter, r *http.Request) {
			<-next
			chunked("answer")(rw, r)
		})
		c := w.client("h2")
		got := make(chan string)
		go func() {
			_, b := w.exchange(c, n.ID(), repeat(10))
			got <- b
		}()
		synctest.Wait()
		n.lines <- `{"draining":true}`
		time.Sleep(time.Second)
		if ids := w.listed(""); len(ids) > 0 {
			t.Errorf("listed: %v", ids)
		}
		res, body := w.exchange(c, n.ID(), repeat(10))
		w.problem(res, body, 503, "node-unavailable")
		next <- true
		if b := <-got; b != "answer" {
			t.Errorf("the running exchange got %q", b)
		}
		c.CloseIdleConnections()
		n.close()
	})
}

// A newer connection of a node wins; what runs on the older one goes on.
func TestNewerConnectionWins(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		next := make(chan bool)
		old := w.join(func(rw http.ResponseWriter, r *http.Request) {
			<-next
			chunked("old")(rw, r)
		})
		c := w.client("h2")
		got := make(chan string)
		go func() {
			_, b := w.exchange(c, old.ID(), repeat(10))
			got <- b
		}()
		synctest.Wait()
		young := w.connect(old.Credential, 8, chunked("new"))
		young.lines <- bundleLine(t, old.Credential, descriptor())
		synctest.Wait()
		if _, b := w.exchange(c, old.ID(), repeat(10)); b != "new" {
			t.Errorf("after the newer: %q", b)
		}
		next <- true
		if b := <-got; b != "old" {
			t.Errorf("the running exchange got %q", b)
		}
		if err := <-old.ended; !errors.Is(err, tunnel.ErrReplaced) {
			t.Errorf("the older: %v", err)
		}
		synctest.Wait()
		if ids := w.listed(""); len(ids) != 1 {
			t.Errorf("the end of the older took the newer away: %v", ids)
		}
		if _, b := w.exchange(c, old.ID(), repeat(10)); b != "new" {
			t.Errorf("after the end of the older: %q", b)
		}
		c.CloseIdleConnections()
		young.close()
	})
}

// A replaced connection that goes on as if it were not takes nothing back.
func TestReplacedConnectionRenews(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		c := credential(w)
		conn, err := w.dial(c, tunnel.Proto)
		if err != nil {
			t.Fatal(err)
		}
		lines := make(chan string, 10)
		lines <- bundleLine(t, c, descriptor())
		mux := http.NewServeMux()
		mux.HandleFunc("GET /status", func(rw http.ResponseWriter, r *http.Request) {
			for {
				select {
				case line := <-lines:
					io.WriteString(rw, line+"\n")
					http.NewResponseController(rw).Flush()
				case <-r.Context().Done():
					return
				}
			}
		})
		mux.HandleFunc("POST /exchange", chunked("old"))
		go tunnel.Serve(context.Background(), conn, mux, tunnel.ServeConfig{Capacity: 8})
		synctest.Wait()
		young := w.connect(c, 8, chunked("new"))
		young.lines <- bundleLine(t, c, descriptor())
		synctest.Wait()
		lines <- bundleLine(t, c, descriptor())
		time.Sleep(time.Second)
		client := w.client("h2")
		if _, b := w.exchange(client, c.ID(), repeat(10)); b != "new" {
			t.Errorf("after the older renewed: %q", b)
		}
		conn.NetConn().Close()
		synctest.Wait()
		if ids := w.listed(""); len(ids) != 1 {
			t.Errorf("the end of the older took the newer away: %v", ids)
		}
		if _, b := w.exchange(client, c.ID(), repeat(10)); b != "new" {
			t.Errorf("after the end of the older: %q", b)
		}
		client.CloseIdleConnections()
		young.close()
	})
}

func TestOnlyListedNodes(t *testing.T) {
	friend := credential(t)
	test(t, relay.Config{Nodes: []identity.ID{friend.ID()}}, func(w *world) {
		n := w.connect(friend, 8, chunked("answer"))
		n.lines <- bundleLine(t, friend, descriptor())
		stranger := w.connect(credential(w), 8, chunked("answer"))
		stranger.lines <- bundleLine(t, stranger.Credential, descriptor())
		if took := stranger.gone(); took > 0 {
			t.Errorf("after %v", took)
		}
		synctest.Wait()
		if ids := w.listed(""); len(ids) != 1 || ids[0] != string(friend.ID()) {
			t.Errorf("listed: %v", ids)
		}
		n.close()
	})
}

func TestMaxNodes(t *testing.T) {
	test(t, relay.Config{MaxNodes: 2}, func(w *world) {
		a, b := w.join(chunked("a")), w.join(chunked("b"))
		c := w.join(chunked("c"))
		c.gone()
		if ids := w.listed(""); len(ids) != 2 {
			t.Errorf("listed: %v", ids)
		}
		a.lines <- bundleLine(t, a.Credential, descriptor()) // renewing needs no place
		a.close()
		synctest.Wait()
		d := w.join(chunked("d"))
		if ids := w.listed("?id=" + string(d.ID())); len(ids) != 1 {
			t.Errorf("no place when one has left: %v", ids)
		}
		b.close()
		d.close()
	})
}

// A node that talks all the time makes only itself wait.
func TestStatusFlood(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(chunked("answer"))
		go func() {
			for i := range 600 {
				n.lines <- fmt.Sprintf(`{"load":{"in_flight":%d,"capacity":1000}}`, i)
			}
		}()
		time.Sleep(30 * time.Second)
		_, body := w.get("/v1/nodes")
		if !strings.Contains(body, `"load":{"in_flight":299,`) && !strings.Contains(body, `"load":{"in_flight":300,`) {
			t.Errorf("after 30 s: %s", body[max(0, len(body)-100):])
		}
		time.Sleep(time.Minute)
		if _, body = w.get("/v1/nodes"); !strings.Contains(body, `"load":{"in_flight":599,`) {
			t.Errorf("after 90 s: %s", body[max(0, len(body)-100):])
		}
		n.close()
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"bundle":{"key":"k","descriptor":"d"},"load":{"in_flight":1,"capacity":2},"draining":true}`))
	f.Add([]byte(`{"load":{"in_flight":1,"capacity":2}}`))
	f.Add([]byte(`{"draining":true}`))
	f.Add([]byte(`{"load":{"in_flight":1e9,"capacity":-2}}{}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if relay.ParseStatus(line) == nil && !json.Valid(line) {
			t.Errorf("%q passed", line)
		}
	})
}
