package engine_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"token.place/engine"
	"token.place/internal/memnet"
	"token.place/openai"
)

// stub is an engine that a test wrote, an Engine in front of it and a server in
// front of that, on a network of their own.
type stub struct {
	net    *memnet.Net
	engine *engine.Engine
	client *http.Client // of the server, whatever the host is called
}

// start serves h as an engine.
func start(t testing.TB, cfg engine.Config, h http.Handler) *stub {
	t.Helper()
	s := &stub{net: memnet.New()}
	s.serve(t, "engine:80", h)
	s.front(t, cfg)
	return s
}

// startRaw serves an engine that writes what it likes. The request has been read
// when answer is called, and the connection is closed when it returns.
func startRaw(t testing.TB, cfg engine.Config, answer func(c net.Conn, r *http.Request)) *stub {
	t.Helper()
	s := &stub{net: memnet.New()}
	l, err := s.net.Listen("engine:80")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				io.Copy(io.Discard, r.Body)
				answer(c, r)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	s.front(t, cfg)
	return s
}

// front puts an Engine and a server before what listens on engine:80.
func (s *stub) front(t testing.TB, cfg engine.Config) {
	t.Helper()
	if cfg.Handler == nil {
		if cfg.URL == "" {
			cfg.URL = "http://engine"
		}
		cfg.Dial = s.net.Dial
	}
	var err error
	if s.engine, err = engine.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.engine.Close)
	s.serve(t, "node:80", s.engine)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.net.Dial(ctx, network, "node:80")
	}}
	s.client = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
}

func (s *stub) serve(t testing.TB, addr string, h http.Handler) {
	t.Helper()
	l, err := s.net.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// post sends a body and returns the answer; the test fails if there is none.
func (s *stub) post(t testing.TB, path, body string) *http.Response {
	t.Helper()
	res, err := s.client.Post("http://node"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

const chat = "/v1/chat/completions"

// checkError fails the test unless res is an OpenAI error with this code, which
// says nothing about where the engine is.
func checkError(t testing.TB, res *http.Response, status int, code string) {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := openai.ReadError(strings.NewReader(string(body)))
	if res.StatusCode != status || !ok || e.Code != code {
		t.Errorf("got %d, %s; want %d, %s", res.StatusCode, body, status, code)
	}
	if text := string(body); strings.Contains(text, "engine:80") || strings.Contains(text, "http://") || strings.Contains(text, "secret") {
		t.Errorf("the error tells too much: %s", text)
	}
	if got := res.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("the error has type %q", got)
	}
}

// overHTTP2 puts a server with HTTP/2 before the engine, as the tunnel has it.
func (s *stub) overHTTP2(t testing.TB) {
	t.Helper()
	l, err := s.net.Listen("node:2")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: s.engine, Protocols: &protocols}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	transport := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.net.Dial(ctx, network, "node:2")
	}}
	s.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
		<-done
	})
}
