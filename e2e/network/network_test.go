// Package network runs a network as it is run in earnest, every part a process
// of its own, and takes parts of it away.
package network

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"token.place/e2e/internal/stub"
	"token.place/e2e/internal/testnet"
)

const (
	question = "What is a river?"
	answer   = "River: a large natural stream of water."
)

// within is how soon a part that comes back must be in use again.
const within = 5 * time.Second

func TestFourProcesses(t *testing.T) {
	t.Parallel()
	relay := testnet.StartRelay(t, testnet.Command{})
	a := testnet.StartNode(t, testnet.Command{Name: "node-a"}, relay.URL, "pocket")
	b := testnet.StartNode(t, testnet.Command{Name: "node-b"}, relay.URL, "pocket")
	if a.ID == b.ID || a.Engine != "pocket" || !slices.Equal(a.Models, []string{"pocket"}) {
		t.Errorf("nodes say %+v and %+v", a, b)
	}
	server := testnet.StartServer(t, testnet.Command{}, relay.URL, []*testnet.Node{a, b})
	eventually(t, testnet.Question{Base: server.BaseURL, Model: "pocket", Prompt: question}, testnet.Patience)
	for _, stream := range []bool{true, false} {
		got := testnet.Question{Base: server.BaseURL, Model: "pocket", Prompt: question, Stream: stream}.Get(t.Context())
		if !got.Whole(stream) || strings.TrimSpace(got.Text) != answer {
			t.Errorf("stream %v: %+v", stream, got)
		}
		if stream && (got.Events < 3 || !strings.HasSuffix(strings.TrimSpace(got.Raw), "data: [DONE]")) {
			t.Errorf("the text came in %d events, and the stream ends: %q", got.Events, got.Raw[max(0, len(got.Raw)-80):])
		}
	}
}

// A lab is a network whose engines the test plays.
type lab struct {
	relay   *testnet.Relay
	engines []*stub.Engine
	nodes   []*testnet.Node // each with the engine of its place
	server  *testnet.Server
	ask     testnet.Question
}

func newLab(t *testing.T, nodes int) *lab {
	t.Helper()
	t.Parallel()
	l := &lab{relay: testnet.StartRelay(t, testnet.Command{})}
	for i := range nodes {
		engine := stub.New(t, nil)
		l.engines = append(l.engines, engine)
		l.nodes = append(l.nodes, testnet.StartNode(t, testnet.Command{Name: fmt.Sprintf("node-%d", i)}, l.relay.URL, engine.URL))
	}
	l.server = testnet.StartServer(t, testnet.Command{}, l.relay.URL, l.nodes)
	l.ask = testnet.Question{Base: l.server.BaseURL, Model: "stub", Prompt: question}
	l.ready(t)
	return l
}

// ready waits until the local server knows every node.
func (l *lab) ready(t *testing.T) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(l.server.BaseURL + "/models/stub")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Since(began) > testnet.Patience {
			t.Fatal("the network did not come up")
		}
	}
}

// next waits for a call at any of the engines and says at which.
func (l *lab) next(t *testing.T) (int, *stub.Call) {
	t.Helper()
	for began := time.Now(); time.Since(began) < testnet.Patience; time.Sleep(time.Millisecond) {
		for i, e := range l.engines {
			select {
			case c := <-e.Calls:
				return i, c
			default:
			}
		}
	}
	t.Fatal("no engine was asked")
	return 0, nil
}

// A node that dies in the middle of an answer leaves an error, not a short
// answer.
func TestNodeDiesInTheMiddle(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%v", stream), func(t *testing.T) {
			l := newLab(t, 2)
			l.ask.Stream = stream
			got := l.ask.Ask(t.Context())
			i, call := l.next(t)
			if stream {
				call.Say("one ")
				call.Say("two")
				if !got.Seen("two") {
					t.Fatalf("the stream did not begin: %+v", got)
				}
			} else {
				call.Half()
				time.Sleep(200 * time.Millisecond) // there is no seeing it arrive
			}
			l.nodes[i].Kill()
			<-got.Finished
			if got.Whole(stream) || got.Done {
				t.Errorf("half an answer looks whole: %+v", got)
			}
			t.Logf("the client got: status %d, error %q, transfer %v", got.Status, got.Failed, got.Err)
			select {
			case <-call.Gone:
			case <-time.After(testnet.Patience):
				t.Error("the engine was not stopped")
			}
			// The network goes on with the other node.
			again := l.ask.Ask(t.Context())
			j, call := l.next(t)
			if j == i {
				t.Fatal("the engine of the dead node was asked")
			}
			call.Say("whole")
			call.End()
			if <-again.Finished; !again.Whole(stream) || again.Text != "whole" {
				t.Errorf("afterwards: %+v", again)
			}
		})
	}
}

// Before the first byte of the answer nobody notices: another node answers.
func TestNodeDiesBeforeTheAnswer(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%v", stream), func(t *testing.T) {
			l := newLab(t, 2)
			l.ask.Stream = stream
			got := l.ask.Ask(t.Context())
			i, _ := l.next(t)
			l.nodes[i].Kill()
			died := time.Now()
			j, call := l.next(t)
			t.Logf("another node had the request %v after the first one died", time.Since(died).Round(time.Millisecond))
			if j == i {
				t.Fatal("the engine of the dead node was asked")
			}
			call.Say("whole")
			call.End()
			if <-got.Finished; !got.Whole(stream) || got.Text != "whole" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// eventually asks until there is an answer and returns how long that took.
func eventually(t *testing.T, q testnet.Question, limit time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		got := q.Get(t.Context())
		took := time.Since(began)
		if got.Whole(q.Stream) {
			return took
		}
		if took > limit {
			t.Fatalf("no answer after %v: %+v", took, got)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// What went away and comes back is found again, on its own.
func TestRestart(t *testing.T) {
	for _, role := range []string{"node", "relay"} {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
			t.Run(role+" after "+signal.String(), func(t *testing.T) {
				t.Parallel()
				relay := testnet.StartRelay(t, testnet.Command{})
				node := testnet.StartNode(t, testnet.Command{}, relay.URL, "pocket")
				server := testnet.StartServer(t, testnet.Command{}, relay.URL, []*testnet.Node{node})
				q := testnet.Question{Base: server.BaseURL, Model: "pocket", Prompt: question}
				eventually(t, q, testnet.Patience)
				p := node.Process
				if role == "relay" {
					p = relay.Process
				}
				syscall.Kill(p.PID(), signal)
				p.Wait()
				if got := q.Get(t.Context()); got.Status < 500 || got.Failed == "" {
					t.Errorf("while it is away: %+v", got)
				} else {
					t.Logf("while it is away: %d %s", got.Status, got.Failed)
				}
				began := time.Now()
				if role == "relay" {
					relay.Again()
				} else {
					node.Again()
				}
				eventually(t, q, testnet.Patience)
				took := time.Since(began)
				fmt.Fprintf(os.Stderr, "e2e: %s back in use %v after its restart (%v)\n", role, took.Round(time.Millisecond), signal)
				if took > within {
					t.Errorf("it took %v, want at most %v", took, within)
				}
			})
		}
	}
}

// A client that leaves stops the engine, in every phase of an exchange.
func TestCancel(t *testing.T) {
	for _, phase := range []struct {
		name        string
		stream, say bool
	}{{"before the answer", true, false}, {"mid-stream", true, true}, {"not streamed", false, false}} {
		t.Run(phase.name, func(t *testing.T) {
			l := newLab(t, 1)
			l.ask.Stream = phase.stream
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got := l.ask.Ask(ctx)
			_, call := l.next(t)
			if phase.say {
				call.Say("one")
				if !got.Seen("one") {
					t.Fatalf("the stream did not begin: %+v", got)
				}
			}
			cancel()
			select {
			case <-call.Gone:
			case <-time.After(testnet.Patience):
				t.Error("the engine was not stopped")
			}
		})
	}
}

// Ctrl-C lets running answers finish, and takes no new ones.
func TestDrain(t *testing.T) {
	for _, role := range []string{"node", "relay", "serve"} {
		t.Run(role, func(t *testing.T) {
			l := newLab(t, 1)
			l.ask.Stream = true
			got := l.ask.Ask(t.Context())
			_, call := l.next(t)
			call.Say("one ")
			if !got.Seen("one") {
				t.Fatalf("the stream did not begin: %+v", got)
			}
			p := map[string]*testnet.Process{"node": l.nodes[0].Process, "relay": l.relay.Process, "serve": l.server.Process}[role]
			p.Interrupt()
			time.Sleep(300 * time.Millisecond)
			select {
			case <-p.Done():
				t.Fatal("it ended before the answer did")
			case <-call.Gone:
				t.Fatal("the engine was stopped")
			default:
			}
			refused := l.ask
			refused.Client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			if late := refused.Get(t.Context()); late.Whole(true) {
				t.Errorf("a new request was answered: %+v", late)
			}
			call.Say("two")
			call.End()
			if <-got.Finished; !got.Whole(true) || got.Text != "one two" {
				t.Errorf("the running answer: %+v", got)
			}
			if status := p.Wait(); status != 0 {
				t.Errorf("exit status %d", status)
			}
		})
	}
}

// Who is not who it should be gets nothing.
func TestWrongPin(t *testing.T) {
	l := newLab(t, 1)
	other := testnet.StartNode(t, testnet.Command{Name: "other"}, l.relay.URL, "pocket") // a real one, not pinned
	relay := testnet.StartRelay(t, testnet.Command{Name: "stranger"})
	stranger := *l.relay
	stranger.ID = relay.ID // the other relay's id at this one's address

	for _, c := range []struct {
		name, relay string
		node        *testnet.Node
		want        string
	}{
		{"node", l.relay.URL, &testnet.Node{ID: relay.ID}, "no node that you trust"},
		{"relay", stranger.At("127.0.0.1"), l.nodes[0], "another identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := testnet.StartServer(t, testnet.Command{}, c.relay, []*testnet.Node{c.node})
			for _, model := range []string{"stub", "pocket"} {
				got := testnet.Question{Base: server.BaseURL, Model: model, Prompt: question}.Get(t.Context())
				if got.Whole(false) || !strings.Contains(got.Failed, c.want) {
					t.Errorf("%s: %+v", model, got)
				}
				t.Logf("%s: %d %s", model, got.Status, got.Failed)
			}
		})
	}
	got := testnet.Question{Base: l.server.BaseURL, Model: "pocket", Prompt: question}.Get(t.Context())
	if got.Status != http.StatusNotFound {
		t.Errorf("a node that is not pinned was used: %+v", got)
	}
	l.engines[0].Idle()
	other.Kill()
}

// A node that is given another relay's id does not talk to this one.
func TestNodeRefusesRelay(t *testing.T) {
	t.Parallel()
	a, b := testnet.StartRelay(t, testnet.Command{Name: "relay-a"}), testnet.StartRelay(t, testnet.Command{Name: "relay-b"})
	crossed := *a
	crossed.ID = b.ID
	node := testnet.StartNode(t, testnet.Command{Env: []string{"TOKENPLACE_ENV=development"}}, crossed.At("127.0.0.1"), "pocket")
	for began := time.Now(); !strings.Contains(node.Stderr(), "the relay is not the one in the URL"); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > testnet.Patience {
			t.Fatalf("the node does not say that the relay is another:\n%s", node.Stderr())
		}
	}
}
