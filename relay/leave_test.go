package relay_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"token.place/identity"
	"token.place/relay"
)

// open counts the connections that have not ended.
func open(nodes []*node) (n int) {
	for _, node := range nodes {
		select {
		case err := <-node.ended:
			node.ended <- err
		default:
			n++
		}
	}
	return n
}

// lingerer joins, starts an exchange that does not end and says that it drains,
// but not in the words of HTTP/2.
func lingerer(w *world, cl *http.Client, c *identity.Credential, running bool) *node {
	n := w.connect(c, 8, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
		io.WriteString(rw, "begun")
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	n.lines <- bundleLine(w, c, descriptor())
	synctest.Wait()
	if running && open([]*node{n}) == 1 {
		res := w.open(context.Background(), cl, c.ID(), repeat(10))
		w.Cleanup(func() { res.Body.Close() })
	}
	n.lines <- `{"draining":true}`
	time.Sleep(time.Second)
	synctest.Wait()
	return n
}

// Nodes that drain and stay count: without exchanges they are closed, with some
// there is one for each node and MaxNodes of them all.
func TestLeavingNodesAreBounded(t *testing.T) {
	for _, running := range []bool{false, true} {
		for _, same := range []bool{false, true} {
			test(t, relay.Config{MaxNodes: 3}, func(w *world) {
				cl := w.client("h2")
				c := credential(w)
				var all []*node
				for range 12 {
					if !same {
						c = credential(w)
					}
					all = append(all, lingerer(w, cl, c, running))
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				want := 0
				switch {
				case running && same:
					want = 1
				case running:
					want = 3
				}
				if got := open(all); got != want {
					t.Errorf("exchanges %v, one node %v: %d connections stay, want %d", running, same, got, want)
				}
				if !same && running {
					// The time to leave ends as well.
					time.Sleep(10 * time.Minute)
					synctest.Wait()
					if got := open(all); got != 0 {
						t.Errorf("%d connections stay after 11 minutes", got)
					}
					w.join(chunked("answer")).close()
				}
				cl.CloseIdleConnections()
				w.stop()
				for _, n := range all {
					n.close()
				}
			})
		}
	}
}

// A connection that was replaced and stays does not let its node's place go to
// others, one after the other.
func TestReplacedNodesAreBounded(t *testing.T) {
	test(t, relay.Config{MaxNodes: 3}, func(w *world) {
		cl := w.client("h2")
		var all []*node
		for range 12 {
			c := credential(w)
			for range 2 {
				n := w.connect(c, 8, func(rw http.ResponseWriter, r *http.Request) {
					rw.Header().Set("Content-Type", "message/ohttp-chunked-res")
					io.WriteString(rw, "begun")
					http.NewResponseController(rw).Flush()
					<-r.Context().Done()
				})
				n.lines <- bundleLine(w, c, descriptor())
				synctest.Wait()
				if open([]*node{n}) == 1 {
					res := w.open(context.Background(), cl, c.ID(), repeat(10))
					w.Cleanup(func() { res.Body.Close() })
				}
				all = append(all, n)
			}
			all[len(all)-1].close()
		}
		if got := open(all); got > 3 {
			t.Errorf("%d connections stay", got)
		}
		cl.CloseIdleConnections()
		w.stop()
		for _, n := range all {
			n.close()
		}
	})
}

// Nodes that leave do not outlive the relay.
func TestShutdownEndsLeavingNodes(t *testing.T) {
	test(t, relay.Config{}, func(w *world) {
		cl := w.client("h2")
		n := lingerer(w, cl, credential(w), true)
		at := time.Now()
		w.stop()
		n.ended <- <-n.ended
		if took := time.Since(at); took > 35*time.Second {
			t.Errorf("gone %v after the relay was told to stop", took)
		}
		cl.CloseIdleConnections()
		n.close()
	})
}
