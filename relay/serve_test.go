package relay_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/internal/telemetry"
	"token.place/relay"
	"token.place/tunnel"
)

func TestNew(t *testing.T) {
	for name, cfg := range map[string]relay.Config{
		"no credential": {},
		"negative":      {Credential: credential(t), MaxBody: -1, IdleTimeout: -1},
		"bad node":      {Credential: credential(t), Nodes: []identity.ID{"me"}},
	} {
		if _, err := relay.New(cfg); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	_, err := relay.New(relay.Config{Credential: credential(t), MaxBody: -1, IdleTimeout: -1})
	if err == nil || !strings.Contains(err.Error(), "MaxBody") || !strings.Contains(err.Error(), "IdleTimeout") {
		t.Errorf("New does not name what is wrong: %v", err)
	}
}

// The body of a plaintext request is not read, and the answer arrives.
func TestPlaintextRefused(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			test(t, relay.Config{}, func(w *world) {
				c := w.client(proto)
				for _, path := range []string{
					"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/audio/speech",
					"/v1/images/generations", "/v1/moderations", "/chat/completions", "/v1/responses/resp_1/cancel",
				} {
					res, body := w.do(c, "POST", path, http.Header{"Content-Type": {"application/json"}}, strings.NewReader(`{"messages":[]}`))
					w.problem(res, body, 421, "plaintext-refused")
					if !strings.Contains(body, "tokenplace serve") || !strings.Contains(body, "http://127.0.0.1:") {
						w.Errorf("says not what to do: %s", body)
					}
				}
				c.CloseIdleConnections()
			})
		})
	}
}

func TestPlaintextIsNotRead(t *testing.T) {
	for _, framing := range []string{"Content-Length: 1073741824\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n40000000\r\n"} {
		test(t, relay.Config{}, func(w *world) {
			c := w.raw()
			before := w.read.Load()
			sent := make(chan int)
			go func() {
				io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\n"+framing)
				n := 0
				for piece := make([]byte, 8<<10); n < 1<<30; n += len(piece) {
					if _, err := c.Write(piece); err != nil {
						break
					}
				}
				sent <- n
			}()
			at := time.Now()
			res, body := w.answer(bufio.NewReader(c))
			w.problem(res, body, 421, "plaintext-refused")
			if time.Since(at) > 0 || !res.Close {
				w.Errorf("after %v, close %v", time.Since(at), res.Close)
			}
			// One read of TLS, which takes a record and what the kernel has with it.
			if n := w.read.Load() - before; n > 24<<10 {
				w.Errorf("the relay read %d bytes", n)
			}
			if n := <-sent; n > 1<<20 {
				w.Errorf("the client sent %d bytes", n)
			}
			c.Close()
		})
	}
}

func TestExpectContinue(t *testing.T) {
	test(t, relay.Config{MaxBody: 1 << 20}, func(w *world) {
		n := w.join(chunked("answer"))
		for path, status := range map[string]int{
			"/v1/chat/completions":                       421,
			"/v1/exchange/" + string(credential(w).ID()): 503,
			"/v1/exchange/" + string(n.ID()):             200,
		} {
			c := w.raw()
			br := bufio.NewReader(c)
			io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
			if status == 200 {
				if line, err := br.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") || err != nil {
					w.Errorf("%s: %q %v, want 100", path, line, err)
				}
				br.ReadString('\n')
				io.WriteString(c, "hello")
			}
			if res, body := w.answer(br); res.StatusCode != status {
				w.Errorf("%s: %d %s", path, res.StatusCode, body)
			}
			c.Close()
		}
		n.close()
	})
}

// A request of 1 GB is refused by what it says of itself.
func TestHugeBody(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(chunked("answer"))
		before := w.read.Load()
		res, body := w.talk("POST /v1/exchange/" + string(n.ID()) + " HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\nContent-Length: 1073741824\r\n\r\nbegin")
		w.problem(res, body, 413, "too-large")
		if n := w.read.Load() - before; n > 8<<10 {
			w.Errorf("the relay read %d bytes", n)
		}
		n.close()
	})
}

func TestStrictOnTheWire(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		n := w.join(chunked("answer"))
		res, body := w.talk("POST /v1/exchange/" + string(n.ID()) + " HTTP/1.1\r\nHost: relay\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		w.problem(res, body, 400, "malformed-request")
		if !res.Close || !strings.Contains(body, "exclude each other") {
			w.Errorf("%v %s", res.Header, body)
		}
		res, body = w.talk("GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n")
		w.problem(res, body, 431, "malformed-request")
		res, body = w.talk("POST /v1/exchange/" + string(n.ID()) + " HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n")
		w.problem(res, body, 400, "malformed-request")
		res, body = w.talk("POST /v1/exchange/" + string(n.ID()) + " HTTP/1.0\r\nHost: relay\r\nContent-Type: message/ohttp-req\r\nContent-Length: 5\r\n\r\nhello")
		w.problem(res, body, 505, "malformed-request")
		if res, _ := w.talk("GET /healthz HTTP/1.0\r\n\r\n"); res.StatusCode != 200 {
			w.Errorf("HTTP/1.0: %d", res.StatusCode)
		}
		n.close()
	})
}

// A header that does not come costs a connection no longer than HeaderTimeout,
// silence no longer than IdleTimeout.
func TestSilentClients(t *testing.T) {
	for begin, limit := range map[string]time.Duration{
		"":                          10 * time.Second,
		"GET /healthz HTTP/1.1\r\n": 10 * time.Second,
		"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n":      2 * time.Minute,
		"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\nGET /": 2 * time.Minute,
	} {
		test(t, relay.Config{}, func(w *world) {
			c := w.raw()
			at := time.Now()
			io.WriteString(c, begin)
			io.Copy(io.Discard, c)
			if took := time.Since(at); took != limit {
				w.Errorf("%q: closed after %v, want %v", begin, took, limit)
			}
			c.Close()
		})
	}
}

func TestTLS(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		dial := func(change func(*tls.Config)) (tls.ConnectionState, error) {
			nc, err := w.net.Dial(context.Background(), "tcp", address)
			if err != nil {
				w.Fatal(err)
			}
			cfg := w.at.TLS("h2")
			change(cfg)
			c := tls.Client(nc, cfg)
			defer c.Close()
			if err := c.Handshake(); err != nil {
				return tls.ConnectionState{}, err
			}
			_, err = c.Read(make([]byte, 1)) // alerts come late in TLS 1.3
			return c.ConnectionState(), err
		}
		asked := 0
		ask := func(cfg *tls.Config) {
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked++
				return &tls.Certificate{}, nil
			}
		}
		if cs, err := dial(ask); asked != 0 || cs.NegotiatedProtocol != "h2" || err != nil {
			w.Errorf("a client was asked for a certificate %d times; %v", asked, err)
		}
		if _, err := dial(func(cfg *tls.Config) { ask(cfg); cfg.NextProtos = []string{tunnel.Proto} }); asked != 1 || err == nil {
			w.Errorf("a node was asked for a certificate %d times; %v", asked, err)
		}
		if _, err := dial(func(cfg *tls.Config) { cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }); err == nil {
			w.Error("TLS 1.2 passed")
		}
		if _, err := dial(func(cfg *tls.Config) { cfg.NextProtos = []string{"spdy/3"} }); err == nil {
			w.Error("an unknown protocol passed")
		}
	})
}

// A relay with a certificate of the web's authorities still proves its own key
// to those who pin it.
func TestWebCertificate(t *testing.T) {
	web, err := credential(t).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	test(t, relay.Config{Certificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "web.example" {
			return &web, nil
		}
		return nil, nil
	}}, func(w *world) {
		nc, _ := w.net.Dial(context.Background(), "tcp", address)
		c := tls.Client(nc, &tls.Config{ServerName: "web.example", InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err := c.Handshake(); err != nil || !slices.Equal(c.ConnectionState().PeerCertificates[0].Raw, web.Certificate[0]) {
			w.Errorf("the web certificate was not shown: %v", err)
		}
		c.Close()
		if res, _ := w.get("/healthz"); res.StatusCode != 200 {
			w.Error("the pinned client was not served")
		}
	})
}

// Idle connections beyond MaxHandshakes wait; they do not keep others out.
func TestFlood(t *testing.T) {
	test(t, relay.Config{MaxHandshakes: 8}, func(w *world) {
		n := w.join(chunked("answer"))
		for range 40 {
			go func() {
				nc, err := w.net.Dial(context.Background(), "tcp", address)
				if err != nil {
					return
				}
				io.Copy(io.Discard, nc)
				nc.Close()
			}()
		}
		synctest.Wait()
		at := time.Now()
		c := w.client("h2")
		if _, got := w.exchange(c, n.ID(), repeat(10)); got != "answer" {
			w.Errorf("got %q", got)
		}
		if took := time.Since(at); took > 30*time.Second {
			w.Errorf("after %v", took)
		}
		time.Sleep(time.Minute)
		c.CloseIdleConnections()
		n.close()
	})
}

func TestDrain(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, relay.Config{})
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					for range 20 {
						io.WriteString(rw, "x")
						http.NewResponseController(rw).Flush()
						time.Sleep(time.Second)
					}
				})
				c := w.client(proto)
				res := w.open(context.Background(), c, n.ID(), repeat(10))
				idle := w.raw()
				w.stop()
				synctest.Wait()
				rec := httptest.NewRecorder()
				w.relay.ServeHTTP(rec, httptest.NewRequest("GET", "/readyz", nil))
				if rec.Code != 503 {
					t.Errorf("readyz: %d", rec.Code)
				}
				if _, err := w.dial(nil, "h2"); err == nil {
					t.Error("a connection was accepted")
				}
				if got, err := io.ReadAll(res.Body); err != nil || len(got) != 20 {
					t.Errorf("the running exchange: %q, %v", got, err)
				}
				c.CloseIdleConnections()
				if err := <-n.ended; err != tunnel.ErrDrained {
					t.Errorf("the node: %v", err)
				}
				if err := <-w.end; err != nil {
					t.Errorf("Serve: %v", err)
				}
				idle.Close()
			})
		})
	}
}

// Draining ends, whatever an exchange does.
func TestDrainTimeout(t *testing.T) {
	for _, proto := range both {
		t.Run(proto, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, relay.Config{DrainTimeout: 5 * time.Second})
				n := w.join(func(rw http.ResponseWriter, r *http.Request) {
					chunked("x")(rw, r)
					<-r.Context().Done()
				})
				c := w.client(proto)
				res := w.open(context.Background(), c, n.ID(), repeat(10))
				at := time.Now()
				w.close()
				if took := time.Since(at); took > 6*time.Second {
					t.Errorf("after %v", took)
				}
				if _, err := io.ReadAll(res.Body); err == nil {
					t.Error("a cut answer ended well")
				}
				c.CloseIdleConnections()
				n.close()
			})
		})
	}
}

func TestServeOnce(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		ln, err := w.net.Listen("other:1")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.relay.Serve(context.Background(), ln); err == nil {
			t.Error("served twice")
		}
	})
}

// What is logged says nothing of clients, and in production nothing of nodes.
func TestLogs(t *testing.T) {
	for _, env := range []telemetry.Environment{telemetry.Production, telemetry.Development} {
		out := &lockedBuffer{}
		cred := credential(t)
		var id identity.ID
		test(t, relay.Config{Credential: cred, Log: telemetry.New(env, out)}, func(w *world) {
			n := w.join(chunked("CANARY-ANSWER"))
			id = n.ID()
			c := w.client("http/1.1")
			h := canaries()
			maps.Copy(h, sealed())
			w.do(c, "POST", "/v1/exchange/"+string(n.ID())+"?CANARY", h, strings.NewReader("CANARY-PROMPT"))
			w.do(c, "POST", "/v1/chat/completions", h, strings.NewReader("CANARY-PROMPT"))
			w.do(c, "GET", "/CANARY", h, nil)
			w.talk("CANARY CANARY CANARY\r\n\r\n")
			raw := w.raw()
			io.WriteString(raw.NetConn(), "CANARY is not TLS")
			raw.NetConn().Close()
			bad := w.connect(credential(w), 1, chunked("CANARY"))
			bad.lines <- `{"CANARY":1}`
			<-bad.ended
			c.CloseIdleConnections()
			n.close()
		})
		log := out.String()
		if strings.Contains(log, "CANARY") || strings.Contains(log, "dialer") {
			t.Errorf("%s: canary in\n%s", env, log)
		}
		if got, want := strings.Contains(log, string(id)), env == telemetry.Development; got != want {
			t.Errorf("%s: a node's ID is logged: %v\n%s", env, got, log)
		}
		// Starting, draining, stopping: nothing of what happens in between.
		if n := strings.Count(log, "\n"); env == telemetry.Production && n > 3 {
			t.Errorf("an ordinary day is logged in production:\n%s", log)
		}
		for _, want := range []string{"relay starts", "relay drains", "relay stops", `listen="` + address + `"`, string(cred.ID())} {
			if env == telemetry.Development && !strings.Contains(log, want) {
				t.Errorf("%s: no %q in\n%s", env, want, log)
			}
		}
	}
}
