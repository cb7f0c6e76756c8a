package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"token.place/client"
	"token.place/identity"
)

// More requests than a node has room for wait their turn, for a time.
func TestFullNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		var mu sync.Mutex
		running, most := 0, 0
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			select {
			case <-time.After(2 * time.Second):
			case <-r.Context().Done():
			}
			io.WriteString(w, "ok")
		}, "m")
		r := net.relay("relay.test", n)
		room := 2
		r.exchange = func(w http.ResponseWriter, req *http.Request, n *stubNode) bool {
			mu.Lock()
			full := running >= room
			if !full {
				running++
				most = max(most, running)
			}
			mu.Unlock()
			if full {
				problem(w, 503, "https://token.place/problems/node-busy")
				return true
			}
			n.handler.ServeHTTP(w, req)
			mu.Lock()
			defer mu.Unlock()
			running--
			return true
		}
		tr := net.client(client.Config{Trust: pins(n)}, r)
		start := time.Now()
		var work sync.WaitGroup
		for range 12 {
			work.Go(func() {
				if status, answer := ask(t, tr, chat); status != 200 || answer != "ok" {
					t.Errorf("got %d %s", status, answer)
				}
			})
		}
		work.Wait()
		if d := time.Since(start); d > 20*time.Second || most != room {
			t.Errorf("12 requests took %v, %d at a time", d, most)
		}
		if fetches, exchanges := r.counts(); fetches > 8 || exchanges > 12*14 {
			t.Errorf("%d fetches, %d exchanges", fetches, exchanges)
		}
		room, start = 0, time.Now()
		if e := refused(t, tr, chat); e.Code != "node_busy" || e.Status != 503 {
			t.Errorf("%d %s %s", e.Status, e.Code, e.Message)
		}
		if d := time.Since(start); d < 30*time.Second || d > 32*time.Second {
			t.Errorf("gave up after %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := post(ctx, tr, chat); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
	})
}

// The end of an exchange wakes one that waits for room, at once.
func TestRoomIsTakenAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		hold := make(chan struct{})
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-hold }, "m")
		r := net.relay("relay.test", n)
		var running atomic.Int32
		r.exchange = func(w http.ResponseWriter, req *http.Request, n *stubNode) bool {
			defer running.Add(-1)
			if running.Add(1) > 1 {
				problem(w, 503, "https://token.place/problems/node-busy")
			} else {
				n.handler.ServeHTTP(w, req)
			}
			return true
		}
		tr := net.client(client.Config{Trust: pins(n)}, r)
		var work sync.WaitGroup
		for range 4 {
			work.Go(func() { ask(t, tr, chat) })
			synctest.Wait()
		}
		freed := time.Now()
		close(hold)
		work.Wait()
		if d := time.Since(freed); d > 0 {
			t.Errorf("the last of three that waited was done %v after there was room", d)
		}
	})
}

// A node that other relays have filled says so itself, under the seal. It is
// waited for like one that this relay knows to be full; an engine's own 429 is not.
func TestNodesThatOthersFilled(t *testing.T) {
	const ownBusy = `{"error":{"message":"Full.","type":"server_error","param":null,"code":"node_busy"}}`
	for _, test := range []struct {
		answer string
		full   time.Duration
		status int // 0 is our own error
		after  time.Duration
	}{
		{ownBusy, 3 * time.Second, 200, 5 * time.Second},
		{ownBusy, time.Hour, 0, 32 * time.Second},
		{`{"error":{"message":"Slow down.","code":"rate_limit_exceeded"}}`, time.Hour, 429, 0},
		{`{"error":"node_busy"}`, time.Hour, 429, 0},
		{"node_busy" + strings.Repeat(" ", 100_000), time.Hour, 429, 0},
	} {
		bubble(t, func(t *testing.T) {
			net, begin := newNetwork(t), time.Now()
			n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
				if time.Since(begin) < test.full {
					w.Header().Set("Retry-After", "7")
					fails(429, test.answer)(w, r)
				} else {
					says("ok")(w, r)
				}
			}, "m")
			tr := net.client(client.Config{Trust: pins(n)}, net.relay("relay.test", n))
			if test.status == 0 {
				if e := refused(t, tr, chat); e.Code != "node_busy" || e.Status != 503 || e.RetryAfter != 7*time.Second {
					t.Errorf("%d %s %v", e.Status, e.Code, e.RetryAfter)
				}
			} else if status, answer := ask(t, tr, chat); status != test.status || status == 429 && answer != test.answer {
				t.Errorf("got %d %.100s", status, answer)
			}
			if d := time.Since(begin); d < min(test.full, test.after*15/16) || d > test.after {
				t.Errorf("%.30s: it took %v", test.answer, d)
			}
			if k := client.InFlight(tr, n.id); k != 0 {
				t.Errorf("%d exchanges are still counted", k)
			}
		})
	}
}

func TestConversationsStayWithTheirNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		var nodes []*stubNode
		for i := range 8 {
			nodes = append(nodes, newNode(t, says(fmt.Sprint(i)), "m"))
		}
		r := net.relay("relay.test", nodes...)
		tr := net.client(client.Config{Trust: pins(nodes...)}, r)
		turn := func(who int, turns int) string {
			body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"I am %d"}`, who)
			for i := range turns {
				body += fmt.Sprintf(`,{"role":"assistant","content":"hi"},{"role":"user","content":"turn %d"}`, i)
			}
			_, answer := ask(t, tr, body+"]}")
			return answer
		}
		used := map[string]bool{}
		for who := range 20 {
			first := turn(who, 0)
			used[first] = true
			for turns := range 5 {
				if got := turn(who, turns); got != first {
					t.Errorf("conversation %d went from node %s to %s", who, first, got)
				}
			}
		}
		if len(used) < 4 {
			t.Errorf("20 conversations use only the nodes %v", used)
		}
		// A node that is full or gone loses its conversations, once.
		first := turn(1, 0)
		r.with(func() {
			for i, n := range nodes {
				if fmt.Sprint(i) == first {
					n.inFlight = n.capacity
				}
			}
		})
		time.Sleep(2 * time.Minute)
		next := turn(1, 1)
		if next == first || turn(1, 2) != next {
			t.Errorf("the conversation is at %s, then %s", first, next)
		}
		for who := range 5 * client.MaxAffinity {
			client.Remember(tr, fmt.Sprint(who), nodes[0].id)
		}
		if n := client.Remembered(tr); n > 2*client.MaxAffinity {
			t.Errorf("%d conversations are remembered", n)
		}
	})
}

func TestTheLessBusyNodeIsChosen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		served := map[identity.ID]int{}
		idle, small, busy := newNode(t, says("ok"), "m"), newNode(t, says("ok"), "m"), newNode(t, says("ok"), "m")
		idle.capacity, small.capacity, busy.capacity = 100, 10, 100
		idle.inFlight, small.inFlight, busy.inFlight = 2, 1, 90
		r := net.relay("relay.test", busy, small, idle)
		tr := net.client(client.Config{Trust: pins(idle, small, busy)}, r)
		for i := range 300 {
			ask(t, tr, fmt.Sprintf(`{"model":"m","prompt":"%d"}`, i))
		}
		for _, id := range r.exchanges {
			served[id]++
		}
		// Two of three at random: idle is in two pairs of three and wins both,
		// small wins the third, busy none.
		if n := served[idle.id]; n < 160 || n > 240 {
			t.Errorf("the idle node served %d of 300, want about 200", n)
		}
		if n := served[busy.id]; n != 0 {
			t.Errorf("the busy node served %d", n)
		}
	})
}

// Our own exchanges count before a relay's next word on them, so that a burst
// spreads.
func TestABurstSpreads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newNetwork(t)
		hold := make(chan struct{})
		engine := func(w http.ResponseWriter, r *http.Request) { <-hold }
		var nodes []*stubNode
		for range 4 {
			nodes = append(nodes, newNode(t, engine, "m"))
		}
		r := net.relay("relay.test", nodes...)
		tr := net.client(client.Config{Trust: pins(nodes...)}, r)
		var work sync.WaitGroup
		for i := range 32 {
			work.Go(func() { ask(t, tr, fmt.Sprintf(`{"model":"m","prompt":"%d"}`, i)) })
			synctest.Wait()
		}
		for _, n := range nodes {
			// 8 each but for chance: 100,000 simulated bursts stayed in 3 to 11.
			if k := client.InFlight(tr, n.id); k < 3 || k > 12 {
				t.Errorf("a node has %d of 32", k)
			}
		}
		close(hold)
		work.Wait()
	})
}

func TestConcurrentUse(t *testing.T) {
	net := newNetwork(t)
	var nodes []*stubNode
	for i := range 4 {
		nodes = append(nodes, newNode(t, says(fmt.Sprint(i)), "m", fmt.Sprintf("m%d", i)))
	}
	a, b := net.relay("a.test", nodes[:3]...), net.relay("b.test", nodes[1:]...)
	tr := net.client(client.Config{Trust: pins(nodes...)}, a, b)
	var work sync.WaitGroup
	for i := range 16 {
		work.Go(func() {
			for j := range 20 {
				model := "m"
				if j%2 == 0 {
					model = fmt.Sprintf("m%d", j%4)
				}
				status, answer := ask(t, tr, fmt.Sprintf(`{"model":%q,"prompt":"%d"}`, model, i))
				if status != 200 || model != "m" && "m"+answer != model {
					t.Errorf("%s: got %d %s", model, status, answer)
				}
				if j%7 == 0 {
					if _, err := tr.Models(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	work.Wait()
}
