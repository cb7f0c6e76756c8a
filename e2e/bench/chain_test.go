package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"token.place/e2e/internal/stub"
	"token.place/e2e/internal/testnet"
)

// A chain is local server, relay and node as processes, and an engine in this
// one.
type chain struct {
	base   string // of the local server
	engine string
	pids   []int // serve, relay, node
	client *http.Client
}

func startChain(tb testing.TB, engine string) *chain {
	tb.Helper()
	relay := testnet.StartRelay(tb, testnet.Command{})
	node := testnet.StartNode(tb, testnet.Command{}, relay.URL, engine, "--capacity", "64")
	server := testnet.StartServer(tb, testnet.Command{}, relay.URL, []*testnet.Node{node})
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	tb.Cleanup(transport.CloseIdleConnections)
	c := &chain{server.BaseURL, engine, []int{server.PID(), relay.PID(), node.PID()}, &http.Client{Transport: transport}}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		res, err := c.client.Get(c.base + "/models/stub")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return c
			}
		}
		if time.Since(began) > testnet.Patience {
			tb.Fatal("the network did not come up")
		}
	}
}

// instant is an engine that answers every request at once, before it has read
// the request if early, and the same every time. net/http's server reads before
// it answers, so it is not that.
func instant(tb testing.TB, answer []byte, early bool) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go serveInstant(conn, answer, early)
		}
	}()
	return "http://" + ln.Addr().String()
}

const models = `{"object":"list","data":[{"id":"stub","object":"model"}]}`

func serveInstant(conn net.Conn, answer []byte, early bool) {
	defer conn.Close()
	for in := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body := answer
		if req.Method == http.MethodGet {
			body = []byte(models)
		}
		if !early {
			io.Copy(io.Discard, req.Body)
		}
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
		if _, err := conn.Write(append([]byte(head), body...)); err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
	}
}

// completion is an answer of about size bytes.
func completion(size int) []byte {
	return []byte(`{"id":"1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("river ", size/6) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`)
}

// prompt is a request of about size bytes.
func prompt(size int) []byte {
	body, _ := json.Marshal(map[string]any{
		"model": "stub", "messages": []map[string]string{{"role": "user", "content": strings.Repeat("river ", size/6)}},
	})
	return body
}

var errTruncated = errors.New("the answer is short and looks whole")

// post sends one request and compares the answer.
func (c *chain) post(base string, body, want []byte) error {
	res, err := c.client.Post(base+"/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d: %s", res.StatusCode, got)
	case !bytes.Equal(got, want):
		return errTruncated
	}
	return nil
}

// BenchmarkChain is the time and the CPU of an exchange of 4 KB up and 2 KB
// down through local server, relay and node, one client, one at a time.
func BenchmarkChain(b *testing.B) {
	const count, rounds = 1000, 5
	answer, body := completion(exchangeDown), prompt(exchangeUp)
	c := startChain(b, instant(b, answer, false))
	var whole, direct []float64
	var each [3][]float64 // CPU of serve, relay, node
	var total []float64
	for round := range rounds + 1 {
		var used [3]time.Duration
		for i, pid := range c.pids {
			used[i] = testnet.CPU(b, pid)
		}
		times := c.times(b, c.base, body, answer, count)
		sum := 0.0
		for i, pid := range c.pids {
			cpu := micros(testnet.CPU(b, pid)-used[i]) / count
			sum += cpu
			if round > 0 {
				each[i] = append(each[i], cpu)
			}
		}
		straight := c.times(b, c.engine+"/v1", body, answer, count)
		if round > 0 { // the first one warms up
			whole, direct = append(whole, millis(median(times))), append(direct, millis(median(straight)))
			total = append(total, sum)
		}
	}
	fmt.Fprintln(os.Stderr, "p50 ms", whole, "without the network", direct, "CPU µs", total)
	report(b, map[string]float64{
		"p50-ms": median(whole), "direct-p50-ms": median(direct), "cpu-µs": median(total),
		"serve-cpu-µs": median(each[0]), "relay-cpu-µs": median(each[1]), "node-cpu-µs": median(each[2]),
	})
}

func (c *chain) times(b *testing.B, base string, body, want []byte, count int) []time.Duration {
	b.Helper()
	times := make([]time.Duration, count)
	for i := range times {
		began := time.Now()
		if err := c.post(base, body, want); err != nil {
			b.Fatal(err)
		}
		times[i] = time.Since(began)
	}
	return times
}

// BenchmarkTruncation counts answers that are short and look whole, among
// 10,000 of an engine that answers before it has read the request.
func BenchmarkTruncation(b *testing.B) {
	short, failed := truncation(b, 10_000)
	report(b, map[string]float64{"truncated": float64(short), "failed": float64(failed)})
}

func TestTruncation(t *testing.T) {
	if short, failed := truncation(t, 500); short+failed > 0 {
		t.Errorf("of 500 answers %d are short and look whole, %d failed", short, failed)
	}
}

func truncation(tb testing.TB, count int) (short, failed int) {
	const clients = 16
	answer := completion(exchangeDown)
	c := startChain(tb, instant(tb, answer, true))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range count / clients {
				err := c.post(c.base, prompt([]int{1 << 10, 64 << 10}[i%2]), answer)
				mu.Lock()
				if err == errTruncated {
					short++
				} else if err != nil {
					failed++
					tb.Log(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return short, failed
}

// BenchmarkCancel is the time from a client's leaving to the engine's noticing,
// in each phase of an exchange.
func BenchmarkCancel(b *testing.B) {
	const count = 200
	engine := stub.New(b, nil)
	c := startChain(b, engine.URL)
	figures := map[string]float64{}
	for _, phase := range []struct {
		name        string
		stream, say bool
	}{{"prefill", true, false}, {"mid-stream", true, true}, {"whole", false, false}} {
		var times []time.Duration
		for range count {
			times = append(times, c.cancel(b, engine, phase.stream, phase.say))
		}
		figures[phase.name+"-p50-ms"] = millis(percentile(times, 50))
		figures[phase.name+"-p99-ms"] = millis(percentile(times, 99))
	}
	report(b, figures)
}

func (c *chain) cancel(b *testing.B, engine *stub.Engine, stream, say bool) time.Duration {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	got := testnet.Question{Client: c.client, Base: c.base, Model: "stub", Prompt: "count", Stream: stream}.Ask(ctx)
	call := engine.Next()
	if say {
		call.Say("one")
		if !got.Seen("one") {
			b.Fatalf("no answer: %+v", got)
		}
	}
	gone := make(chan time.Time, 1)
	go func() { <-call.Gone; gone <- time.Now() }()
	left := time.Now()
	cancel()
	select {
	case at := <-gone:
		<-got.Finished
		return at.Sub(left)
	case <-time.After(testnet.Patience):
		b.Fatal("the engine was not stopped")
		return 0
	}
}
