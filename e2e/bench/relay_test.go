package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"token.place/e2e/internal/testnet"
	"token.place/identity"
)

// places starts a relay with one node, and nginx in front of the same target.
func places(b *testing.B) (relay, nginx, direct place) {
	b.Helper()
	r := testnet.StartRelay(b, testnet.Command{})
	var line targetLine
	startPart(b, "target", &line, r.URL)
	at, err := identity.ParseRelay(r.URL)
	if err != nil {
		b.Fatal(err)
	}
	relay = place{"relay", at.Addr(), at.TLS("http/1.1"), "/v1/exchange/" + line.ID, []int{r.PID()}}
	addr, pid := startNginx(b, line.HTTPS)
	nginx = place{"nginx", addr, anyone(), "/", nil}
	direct = place{"direct", line.HTTPS, anyone(), "/", nil}
	relay.await(b)
	nginx.await(b)
	nginx.pids = family(b, pid)
	return relay, nginx, direct
}

// await waits until an exchange works.
func (p place) await(b *testing.B) {
	b.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := p.exchanges(1, 1)
		if err == nil {
			return
		}
		if time.Since(began) > testnet.Patience {
			b.Fatalf("%s: %v", p.name, err)
		}
	}
}

// request is the bytes of an HTTP/1.1 request with a body of size bytes.
func (p place) request(kind, seconds byte, size int) []byte {
	path := p.path
	if path == "/" {
		path = "/" + string(kind)
	}
	body := make([]byte, size)
	body[0], body[1] = kind, seconds
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: relay\r\nContent-Type: message/ohttp-chunked-req\r\nIncremental: ?1\r\nContent-Length: %d\r\n\r\n", path, size)
	return append([]byte(head), body...)
}

// exchanges sends count exchanges over as many connections as clients. The
// client is not net/http's: on two cores what it saves is room for the rest.
func (p place) exchanges(clients, count int) error {
	errs := make(chan error, clients)
	for range clients {
		go func() { errs <- p.client(count / clients) }()
	}
	var all error
	for range clients {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (p place) client(count int) error {
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	request, in := p.request('x', 0, exchangeUp), bufio.NewReader(conn)
	for range count {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK || n != exchangeDown {
			return fmt.Errorf("%s: status %d with %d bytes", p.name, res.StatusCode, n)
		}
	}
	return nil
}

// BenchmarkExchange is the relay's CPU for an exchange of 4 KB up and 2 KB
// down, at 64 clients, beside nginx's.
func BenchmarkExchange(b *testing.B) {
	const clients, count, rounds = 64, 12_800, 5
	relay, nginx, _ := places(b)
	cpu, rate := map[string][]float64{}, map[string][]float64{}
	for round := range rounds + 1 {
		for _, p := range []place{nginx, relay} {
			used, began := testnet.CPU(b, p.pids...), time.Now()
			if err := p.exchanges(clients, count); err != nil {
				b.Fatal(err)
			}
			took := time.Since(began)
			used = testnet.CPU(b, p.pids...) - used
			if round > 0 { // the first one warms up
				cpu[p.name] = append(cpu[p.name], micros(used)/count)
				rate[p.name] = append(rate[p.name], count/took.Seconds())
			}
		}
	}
	r, n := median(cpu["relay"]), median(cpu["nginx"])
	fmt.Fprintln(os.Stderr, "CPU µs per exchange", cpu, "per second", rate)
	report(b, map[string]float64{
		"relay-cpu-µs": r, "nginx-cpu-µs": n, "ratio": r / n,
		"relay/s": median(rate["relay"]), "nginx/s": median(rate["nginx"]),
	})
}

// streams opens n streams of some seconds and returns the delay of each chunk.
func (p place) streams(n int, seconds byte) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			delays, err := p.stream(seconds)
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, delays...), errors.Join(failed, err)
		})
		time.Sleep(chunkPeriod / 10) // so that the chunks of all do not come together
	}
	wg.Wait()
	return all, failed
}

func (p place) stream(seconds byte) ([]time.Duration, error) {
	conn, err := p.dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := io.Copy(conn, bytes.NewReader(p.request('s', seconds, exchangeUp))); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	want := int(seconds) * int(time.Second/chunkPeriod)
	delays, chunk := make([]time.Duration, 0, want), make([]byte, chunkSize)
	for {
		_, err := io.ReadFull(res.Body, chunk)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		delays = append(delays, time.Duration(time.Now().UnixNano()-int64(binary.BigEndian.Uint64(chunk))))
	}
	if len(delays) != want {
		return nil, fmt.Errorf("%s: %d chunks, want %d", p.name, len(delays), want)
	}
	return delays, nil
}

// BenchmarkStreams is the relay's CPU for chunks of 100 bytes in 256 streams of
// 50 a second, beside nginx's, and the delay that it adds to them.
func BenchmarkStreams(b *testing.B) {
	const n, seconds, rounds = 256, 6, 3
	relay, nginx, direct := places(b)
	all := []place{direct, nginx, relay}
	cpu, p50, p99 := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for range rounds {
		for _, p := range all {
			used := testnet.CPU(b, p.pids...)
			delays, err := p.streams(n, seconds)
			if err != nil {
				b.Fatal(err)
			}
			used = testnet.CPU(b, p.pids...) - used
			cpu[p.name] = append(cpu[p.name], used.Seconds()*1e6/float64(len(delays)))
			p50[p.name] = append(p50[p.name], micros(percentile(delays, 50)))
			p99[p.name] = append(p99[p.name], micros(percentile(slices.Clone(delays), 99)))
		}
	}
	fmt.Fprintln(os.Stderr, "chunk p50 µs", p50, "p99 µs", p99, "CPU s per 1M chunks", cpu)
	report(b, map[string]float64{
		"relay-cpu-s/Mchunk": median(cpu["relay"]), "nginx-cpu-s/Mchunk": median(cpu["nginx"]),
		"ratio":        median(cpu["relay"]) / median(cpu["nginx"]),
		"added-p50-µs": median(p50["relay"]) - median(p50["direct"]),
		"added-p99-µs": median(p99["relay"]) - median(p99["direct"]),
		"nginx-p50-µs": median(p50["nginx"]) - median(p50["direct"]),
		"nginx-p99-µs": median(p99["nginx"]) - median(p99["direct"]),
	})
}
