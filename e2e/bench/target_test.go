package bench

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"token.place/identity"
	"token.place/ohttp"
	"token.place/tunnel"
)

const (
	exchangeUp, exchangeDown = 4 << 10, 2 << 10 // bytes of an exchange

	chunkSize   = 100 // bytes
	chunkPeriod = 20 * time.Millisecond
)

// target is what a request ends at: a node as far as the relay can tell, and
// an HTTPS server for nginx and for going there directly. The first byte of a
// request says what it wants: 'x' an exchange, 's' a stream, whose second byte
// is how many seconds long.
func target(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || len(body) < 2 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "message/ohttp-chunked-res")
	if body[0] == 'x' {
		w.Write(make([]byte, exchangeDown))
		return
	}
	rc := http.NewResponseController(w)
	chunk := make([]byte, chunkSize)
	tick := time.NewTicker(chunkPeriod)
	defer tick.Stop()
	for range int(body[1]) * int(time.Second/chunkPeriod) {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		binary.BigEndian.PutUint64(chunk, uint64(time.Now().UnixNano()))
		if _, err := w.Write(chunk); err != nil || rc.Flush() != nil {
			return
		}
	}
}

// join makes a node join a relay, and answers there until the connection ends.
// joined is called when the relay has asked who it is.
func join(ctx context.Context, relay identity.Relay, cred *identity.Credential, keys []byte, capacity int, joined func()) error {
	now := time.Now()
	bundle, err := cred.Sign(identity.Descriptor{
		NotBefore: now, NotAfter: now.Add(time.Hour), Keys: keys,
		Models: []identity.Model{{ID: "stub", ContextLength: 1024}}, Capacity: capacity,
	})
	if err != nil {
		return err
	}
	cert, err := cred.Certificate()
	if err != nil {
		return err
	}
	cfg := relay.TLS(tunnel.Proto)
	cfg.Certificates = []tls.Certificate{cert}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", relay.Addr())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /exchange", target)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		line, _ := json.Marshal(map[string]any{"bundle": bundle, "load": map[string]int{"in_flight": 0, "capacity": capacity}})
		for piece := range slices.Chunk(append(line, '\n'), 1<<10) { // as a node does
			w.Write(piece)
			http.NewResponseController(w).Flush()
		}
		joined()
		<-r.Context().Done()
	})
	return tunnel.Serve(ctx, conn, mux, tunnel.ServeConfig{Capacity: capacity})
}

func newKeys() ([]byte, error) {
	keys, err := ohttp.NewKeys(ohttp.KeysConfig{})
	if err != nil {
		return nil, err
	}
	return keys.Public(), nil
}

// targetLine is what a target process prints.
type targetLine struct {
	ID    string `json:"id"`    // as a node
	HTTPS string `json:"https"` // address
}

// runTarget is the process of one target. Its argument is the relay's URL.
func runTarget() error {
	relay, err := identity.ParseRelay(os.Args[1])
	if err != nil {
		return err
	}
	cred, err := identity.NewCredential()
	if err != nil {
		return err
	}
	keys, err := newKeys()
	if err != nil {
		return err
	}
	cert, err := cred.Certificate()
	if err != nil {
		return err
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(target), ErrorLog: log.New(io.Discard, "", 0)}
	go srv.Serve(ln)
	line := sync.OnceFunc(func() { printLine(targetLine{string(cred.ID()), ln.Addr().String()}) })
	return join(context.Background(), relay, cred, keys, 1000, line)
}

// fleetLine is what a fleet process prints when all its nodes are connected.
type fleetLine struct {
	Nodes int   `json:"nodes"`
	Took  int64 `json:"took_ms"`
}

// runFleet is the process of many idle nodes. Its arguments are the relay's
// URL and how many.
func runFleet() error {
	relay, err := identity.ParseRelay(os.Args[1])
	if err != nil {
		return err
	}
	var n int
	if err := json.Unmarshal([]byte(os.Args[2]), &n); err != nil {
		return err
	}
	keys, err := newKeys()
	if err != nil {
		return err
	}
	began := time.Now()
	connecting := make(chan struct{}, 32) // handshakes at one time
	failed := make(chan error, n)
	var all sync.WaitGroup
	all.Add(n)
	go func() {
		for range n {
			connecting <- struct{}{}
			go func() {
				cred, err := identity.NewCredential()
				if err == nil {
					err = join(context.Background(), relay, cred, keys, 4, sync.OnceFunc(func() { all.Done(); <-connecting }))
				}
				failed <- err
			}()
		}
	}()
	up := make(chan struct{})
	go func() { all.Wait(); close(up) }()
	select {
	case err := <-failed:
		return err
	case <-up:
	}
	if err := printLine(fleetLine{n, time.Since(began).Milliseconds()}); err != nil {
		return err
	}
	return <-failed
}

// anyone is a client's TLS to the yardsticks, whose certificates nobody signed.
func anyone() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
}

// A place is somewhere to send requests: through the relay, through nginx or
// directly to the target.
type place struct {
	name string
	addr string
	tls  *tls.Config
	path string
	pids []int // whose CPU counts
}

func (p place) dial() (net.Conn, error) { return tls.Dial("tcp", p.addr, p.tls) }
