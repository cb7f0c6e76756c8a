package node_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"token.place/engine"
	"token.place/identity"
	"token.place/internal/memnet"
	"token.place/node"
	"token.place/ohttp"
	"token.place/tunnel"
)

// stubRelay accepts tunnels as a relay does and keeps the newest.
type stubRelay struct {
	t    *testing.T
	cred *identity.Credential
	addr identity.Relay
	ln   net.Listener

	mu    sync.Mutex // guards the fields below
	conns []*tunnel.Conn
	peers []identity.ID
	came  chan *tunnel.Conn
}

func newRelay(t *testing.T, n *memnet.Net, addr string) *stubRelay {
	t.Helper()
	cred, err := identity.NewCredential()
	if err != nil {
		t.Fatal(err)
	}
	r := &stubRelay{t: t, cred: cred, came: make(chan *tunnel.Conn, 100)}
	if r.addr, err = identity.ParseRelay("https://" + addr + "/#" + string(cred.ID())); err != nil {
		t.Fatal(err)
	}
	if r.ln, err = n.Listen(addr); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *stubRelay) serve() { r.serveOn(r.ln) }

func (r *stubRelay) serveOn(ln net.Listener) {
	cert, err := r.cred.Certificate()
	if err != nil {
		r.t.Error(err)
		return
	}
	for {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		conn := tls.Server(raw, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{tunnel.Proto}})
		if conn.Handshake() != nil {
			raw.Close()
			continue
		}
		id, err := identity.PeerID(conn.ConnectionState())
		if err != nil {
			r.t.Error(err)
		}
		c, err := tunnel.Open(context.Background(), conn, tunnel.Config{})
		if err != nil {
			continue
		}
		r.mu.Lock()
		r.conns, r.peers = append(r.conns, c), append(r.peers, id)
		r.mu.Unlock()
		r.came <- c
	}
}

func (r *stubRelay) close() {
	r.ln.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}

type statusLine struct {
	Bundle   *identity.Bundle
	Load     *struct{ In_Flight, Capacity int }
	Draining bool
}

// status opens GET /status and returns a function that reads the next line.
func status(t *testing.T, c *tunnel.Conn) (next func() statusLine, stop func()) {
	t.Helper()
	req, _ := http.NewRequest(http.MethodGet, "http://node/status", nil)
	resp, err := c.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<16)
	return func() (l statusLine) {
		if !lines.Scan() {
			t.Errorf("status ended: %v", lines.Err())
			return
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Errorf("status line: %v", err)
		}
		return l
	}, func() { resp.Body.Close() }
}

// seal returns what a client would use to reach the node of this bundle.
func seal(t *testing.T, c *tunnel.Conn, b *identity.Bundle) http.RoundTripper {
	t.Helper()
	_, d, err := b.Open(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ohttp.ParsePublicKey(d.Keys, ohttp.XWing)
	if err != nil {
		t.Fatal(err)
	}
	return &ohttp.Transport{URL: "http://node/exchange", Key: key, Base: c}
}

// stubEngine answers chats with its text, when it may.
type stubEngine struct {
	models  atomic.Pointer[string]
	proceed chan struct{}
}

func newEngine(t *testing.T, models string) (*stubEngine, *engine.Engine) {
	t.Helper()
	s := &stubEngine{proceed: make(chan struct{}, 100)}
	s.models.Store(&models)
	e, err := engine.New(engine.Config{Handler: s})
	if err != nil {
		t.Fatal(err)
	}
	return s, e
}

func (s *stubEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/models" {
		w.Header().Set("Content-Type", "application/json")
		data := []string{}
		for _, m := range strings.Fields(*s.models.Load()) {
			data = append(data, fmt.Sprintf(`{"id":%q,"object":"model"}`, m))
		}
		fmt.Fprintf(w, `{"object":"list","data":[%s]}`, strings.Join(data, ","))
		return
	}
	io.Copy(io.Discard, r.Body)
	select {
	case <-s.proceed:
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[{"message":{"content":"river"}}]}`)
	case <-r.Context().Done():
	}
}

func start(t *testing.T, cfg node.Config) (n *node.Node, stop func()) {
	t.Helper()
	if cfg.Credential == nil {
		var err error
		if cfg.Credential, err = identity.NewCredential(); err != nil {
			t.Fatal(err)
		}
	}
	n, err := node.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	return n, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func chat(rt http.RoundTripper) (int, string, error) {
	req, _ := http.NewRequest(http.MethodPost, "https://node/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[]}`))
	req.Header.Set("Content-Type", "application/json")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestAnExchangeThroughTwoRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r1, r2 := newRelay(t, net, "one:443"), newRelay(t, net, "two:443")
		go r1.serve()
		go r2.serve()
		stub, eng := newEngine(t, "m other")
		n, stop := start(t, node.Config{Relays: []identity.Relay{r1.addr, r2.addr}, Engine: eng, Capacity: 2, Dial: net.Dial})
		for _, r := range []*stubRelay{r1, r2} {
			c := <-r.came
			next, end := status(t, c)
			first := next()
			if first.Bundle == nil || first.Load == nil || first.Load.Capacity != 2 {
				t.Fatalf("first line: %+v", first)
			}
			id, d, err := identity.Verify(*first.Bundle, identity.Trust{Nodes: []identity.ID{n.ID()}}, time.Now())
			if err != nil || id != r.peers[0] || len(d.Models) != 2 {
				t.Errorf("bundle of %s (peer %s), models %v: %v", id, r.peers[0], d.Models, err)
			}
			stub.proceed <- struct{}{}
			if status, body, err := chat(seal(t, c, first.Bundle)); status != 200 || !strings.Contains(body, "river") || err != nil {
				t.Errorf("answer %d %q, %v", status, body, err)
			}
			end()
		}
		stop()
		r1.close()
		r2.close()
	})
}

// Two relays do not know of each other's exchanges: the node does.
func TestCapacityHoldsOverAllRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r1, r2 := newRelay(t, net, "one:443"), newRelay(t, net, "two:443")
		go r1.serve()
		go r2.serve()
		stub, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{r1.addr, r2.addr}, Engine: eng, Capacity: 1, Dial: net.Dial})
		c1, c2 := <-r1.came, <-r2.came
		next, end := status(t, c1)
		first := next()
		answers := make(chan int)
		go func() {
			status, _, _ := chat(seal(t, c1, first.Bundle))
			answers <- status
		}()
		synctest.Wait()
		if l := next(); l.Load == nil || l.Load.In_Flight != 1 {
			t.Errorf("load while one runs: %+v", l)
		}
		if status, body, _ := chat(seal(t, c2, first.Bundle)); status != http.StatusTooManyRequests || !strings.Contains(body, "node_busy") {
			t.Errorf("second exchange: %d %s", status, body)
		}
		stub.proceed <- struct{}{}
		if status := <-answers; status != 200 {
			t.Errorf("first exchange: %d", status)
		}
		if l := next(); l.Load == nil || l.Load.In_Flight != 0 {
			t.Errorf("load afterwards: %+v", l)
		}
		end()
		stop()
		r1.close()
		r2.close()
	})
}

func TestKeysAndModelsAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r := newRelay(t, net, "one:443")
		go r.serve()
		stub, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{r.addr}, Engine: eng, Dial: net.Dial})
		c := <-r.came
		next, end := status(t, c)
		first := next()
		begun := time.Now()

		more := "m new"
		stub.models.Store(&more)
		second := next()
		if _, d, err := second.Bundle.Open(time.Now()); err != nil || len(d.Models) != 2 || time.Since(begun) > 16*time.Second {
			t.Errorf("a new model is told after %v: %v, %v", time.Since(begun), d.Models, err)
		}
		third := next()
		if at := time.Since(begun); at < 29*time.Minute || at > 31*time.Minute {
			t.Errorf("keys rotate after %v", at)
		}
		// The keys of the first descriptor open until it ends, and not after.
		old := seal(t, c, first.Bundle)
		stub.proceed <- struct{}{}
		if status, _, err := chat(old); status != 200 {
			t.Errorf("with the last keys: %d, %v", status, err)
		}
		_, d, _ := third.Bundle.Open(time.Now())
		if left := time.Until(d.NotAfter); left < 59*time.Minute || left > time.Hour {
			t.Errorf("the new descriptor holds for %v", left)
		}
		time.Sleep(31 * time.Minute)
		if _, _, err := chat(old); err != ohttp.ErrKey {
			t.Errorf("with keys that should be destroyed: %v", err)
		}
		end()
		stop()
		r.close()
	})
}

func TestDrainFinishesRunningExchanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r := newRelay(t, net, "one:443")
		go r.serve()
		stub, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{r.addr}, Engine: eng, Dial: net.Dial})
		c := <-r.came
		next, end := status(t, c)
		first := next()
		type answer struct {
			status int
			err    error
		}
		answers := make(chan answer)
		go func() {
			status, _, err := chat(seal(t, c, first.Bundle))
			answers <- answer{status, err}
		}()
		synctest.Wait()
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		for !next().Draining {
		}
		synctest.Wait()
		if _, _, err := chat(seal(t, c, first.Bundle)); err != tunnel.ErrUnavailable {
			t.Errorf("a new exchange during the drain: %v", err)
		}
		stub.proceed <- struct{}{}
		if a := <-answers; a.status != 200 || a.err != nil {
			t.Errorf("the running exchange: %+v", a)
		}
		end()
		<-stopped
		r.close()
	})
}

func TestReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r := newRelay(t, net, "one:443")
		go r.serve()
		_, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{r.addr}, Engine: eng, Dial: net.Dial})
		(<-r.came).Close()
		lost := time.Now()
		<-r.came
		if d := time.Since(lost); d > time.Second {
			t.Errorf("came back after %v", d)
		}
		// The relay is gone for a minute: the node keeps trying, and is there
		// within 5 s of its return.
		r.close()
		time.Sleep(time.Minute)
		ln, err := net.Listen("one:443")
		if err != nil {
			t.Fatal(err)
		}
		go r.serveOn(ln)
		back := time.Now()
		<-r.came
		if d := time.Since(back); d > 5*time.Second {
			t.Errorf("found the relay again after %v", d)
		}
		stop()
		ln.Close()
		r.close()
	})
}

// A relay that is not the one in the URL gets no tunnel, and the operator gets
// the reason.
func TestWrongRelayGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r := newRelay(t, net, "one:443")
		go r.serve()
		other, _ := identity.NewCredential()
		pinned := r.addr
		pinned.ID = other.ID()
		var log syncBuffer
		_, eng := newEngine(t, "m")
		_, stop := start(t, node.Config{Relays: []identity.Relay{pinned}, Engine: eng, Dial: net.Dial, Log: log.logger()})
		time.Sleep(time.Minute)
		if len(r.came) != 0 {
			t.Error("the wrong relay got a tunnel")
		}
		if !strings.Contains(log.String(), "compare the ID after #") {
			t.Errorf("log:\n%s", log.String())
		}
		stop()
		r.close()
	})
}

func TestEngineThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		r := newRelay(t, net, "one:443")
		go r.serve()
		stub, _ := newEngine(t, "m")
		eng, err := engine.New(engine.Config{URL: "http://engine:8080", Dial: net.Dial})
		if err != nil {
			t.Fatal(err)
		}
		var log syncBuffer
		_, stop := start(t, node.Config{Relays: []identity.Relay{r.addr}, Engine: eng, Dial: net.Dial, Log: log.logger()})
		next, end := status(t, <-r.came)
		if _, d, err := next().Bundle.Open(time.Now()); err != nil || len(d.Models) != 0 {
			t.Errorf("offers %v, %v", d.Models, err)
		}
		ln, _ := net.Listen("engine:8080")
		srv := &http.Server{Handler: stub}
		go srv.Serve(ln)
		if _, d, err := next().Bundle.Open(time.Now()); err != nil || len(d.Models) != 1 {
			t.Errorf("once it is up, offers %v, %v", d.Models, err)
		}
		end()
		stop()
		eng.Close()
		srv.Close()
		r.close()
	})
}

func TestNewRefuses(t *testing.T) {
	cred, _ := identity.NewCredential()
	_, eng := newEngine(t, "m")
	relay := []identity.Relay{{}}
	for name, cfg := range map[string]node.Config{
		"no credential": {Engine: eng, Relays: relay},
		"no engine":     {Credential: cred, Relays: relay},
		"no relay":      {Credential: cred, Engine: eng},
		"capacity":      {Credential: cred, Engine: eng, Relays: relay, Capacity: 1001},
	} {
		if _, err := node.New(cfg); err == nil {
			t.Errorf("%s: New passed", name)
		}
	}
}
