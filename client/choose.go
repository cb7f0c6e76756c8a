package client

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"token.place/identity"
	"token.place/ohttp"
)

const (
	// avoidNode is how long a node that failed is chosen only if no other is left,
	// and avoidRelay the same for a relay: until the fetch that the failure began
	// has told whether it is gone.
	avoidNode  = 5 * time.Second
	avoidRelay = dialTime + 5*time.Second
	// maxAffinity is how many conversations are remembered, at most twice over.
	maxAffinity = 2048
)

// member is a node of the merged directory, with all ways to reach it.
// Transport.mu guards it.
type member struct {
	node   *node // of the newest descriptor that any relay has
	routes []*route
	load   offer // the highest that any relay says
	state  *state
}

// route is a node through one relay.
type route struct {
	member *member
	node   *node
	relay  *relay
	seal   *ohttp.Transport
}

// state is what we know of a node from our own exchanges. It outlives
// directories. Transport.mu guards it.
type state struct {
	inFlight int
	avoid    map[*relay]time.Time
}

// merge makes one directory of those of all relays. t.mu is held.
func (t *Transport) merge() {
	old := t.nodes
	t.nodes, t.models = map[identity.ID]*member{}, map[string][]*member{}
	for _, r := range t.relays {
		for _, o := range r.offers {
			m := t.nodes[o.node.id]
			if m == nil {
				m = &member{node: o.node, load: o, state: &state{}}
				if was := old[o.node.id]; was != nil {
					m.state = was.state
				}
				t.nodes[o.node.id] = m
			}
			if o.node.notBefore.After(m.node.notBefore) {
				m.node = o.node
			}
			if o.inFlight > m.load.inFlight {
				m.load = o
			}
			if !slices.ContainsFunc(m.routes, func(way *route) bool { return way.relay == r }) {
				m.routes = append(m.routes, &route{member: m, relay: r})
			}
		}
	}
	for id, m := range t.nodes {
		for _, way := range m.routes {
			way.node = m.node
			way.seal = &ohttp.Transport{URL: way.relay.URL.String() + "/v1/exchange/" + string(id), Key: m.node.key, Base: way.relay}
		}
		for _, model := range m.node.models {
			t.models[model.ID] = append(t.models[model.ID], m)
		}
	}
}

// trial is the search for a node for one request.
type trial struct {
	tried  []*route
	since  uint64 // Transport.failures: a directory from before is not good enough to give up by
	again  bool   // what failed may work with a newer directory
	second bool   // and has been given that chance
	err    *Error // the last failure of an attempt
}

func (tr *trial) has(way *route) bool {
	return slices.ContainsFunc(tr.tried, func(o *route) bool { return o.relay == way.relay && o.node == way.node })
}

// choose finds the next way to try, and counts the request in its node's load.
// It waits for a directory if it must. Having tried all nodes that it knows it
// asks the relays again, and goes through them once more.
func (t *Transport) choose(c *call, tr *trial) (*route, error) {
	for {
		if t.ctx.Err() != nil {
			return nil, errClosed
		}
		t.mu.Lock()
		now := time.Now()
		pending := t.refresh(now, tr.since)
		way := t.pick(c, tr, now)
		if way != nil {
			way.member.state.inFlight++
			t.mu.Unlock()
			return way, nil
		}
		changed := t.changed
		var err error
		if !pending {
			if tr.err != nil && !tr.second && t.answering() {
				// The directory is newer than the last failure: what it still
				// lists deserves another attempt.
				tr.tried, tr.second = nil, true
				t.mu.Unlock()
				continue
			}
			err = tr.failure()
			if err == nil {
				err = t.missing(c, now)
			}
		}
		t.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-changed:
		case <-c.req.Context().Done():
			return nil, c.req.Context().Err()
		case <-t.ctx.Done():
		}
	}
}

var errClosed = failf(http.StatusServiceUnavailable, "closed", "the client is shutting down: start it again")

func (tr *trial) failure() error {
	if tr.err == nil {
		return nil
	}
	return tr.err
}

// answering reports whether any relay gave its directory when last asked. t.mu is
// held.
func (t *Transport) answering() bool {
	return slices.ContainsFunc(t.relays, func(r *relay) bool { return r.err == nil })
}

// release takes a request out of its node's load.
func (t *Transport) release(way *route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	way.member.state.inFlight--
}

// pick chooses a node: the one that has the conversation in its cache, if it has
// room; else the less busy of two drawn at random. The order of a relay's list
// never counts. Ways that failed lately come last. t.mu is held.
func (t *Transport) pick(c *call, tr *trial, now time.Time) *route {
	if id, ok := t.affinity.get(c.key); ok {
		if m := t.nodes[id]; m != nil && m.offers(c.model) && m.busy() < 1 {
			if way, good := m.way(tr, now); good {
				return way
			}
		}
	}
	if a, b := t.draw(c, tr, now, true); a != nil {
		return better(a, b)
	}
	return better(t.draw(c, tr, now, false))
}

// draw takes two different nodes with equal chance from those that offer the
// model: only from good ones, or from all.
func (t *Transport) draw(c *call, tr *trial, now time.Time, good bool) (a, b *route) {
	n := 0
	for _, m := range t.models[c.model] {
		way, isGood := m.way(tr, now)
		if way == nil || good && !isGood {
			continue
		}
		// Reservoir sampling: one pass, nothing allocated.
		switch n++; {
		case n == 1:
			a = way
		case n == 2:
			b = way
		default:
			switch rand.IntN(n) {
			case 0:
				a = way
			case 1:
				b = way
			}
		}
	}
	if b != nil && rand.IntN(2) == 0 { // ties are the first's
		a, b = b, a
	}
	return a, b
}

func better(a, b *route) *route {
	if b != nil && b.member.score() < a.member.score() {
		return b
	}
	return a
}

func (m *member) offers(model string) bool {
	return slices.ContainsFunc(m.node.models, func(o identity.Model) bool { return o.ID == model })
}

// way returns a way to the node that this trial has not used yet, and whether it
// is a good one: its relay answers, and it did not fail lately.
func (m *member) way(tr *trial, now time.Time) (way *route, good bool) {
	if !now.Before(m.node.notAfter) {
		return nil, false
	}
	n := 0
	for _, r := range m.routes {
		if tr.has(r) || !r.relay.usable(now) {
			continue
		}
		ok := r.relay.err == nil && now.After(r.relay.avoid) && now.After(m.state.avoid[r.relay])
		if ok && !good {
			way, good, n = nil, true, 0
		}
		if ok != good {
			continue
		}
		if n++; rand.IntN(n) == 0 {
			way = r
		}
	}
	return way, good
}

// slots is how many exchanges the node takes at a time. What it signed counts,
// unless the relay knows of less.
func (m *member) slots() float64 {
	if c := m.load.capacity; c > 0 && c < m.node.capacity {
		return float64(c)
	}
	return float64(m.node.capacity)
}

// score orders nodes: others' load and our own since. The relay's number may
// have some of ours in it; that is the same mistake for every node.
func (m *member) score() float64 { return float64(m.load.inFlight+m.state.inFlight) / m.slots() }

// busy is the part of the node that is surely taken.
func (m *member) busy() float64 { return float64(max(m.load.inFlight, m.state.inFlight)) / m.slots() }

// blame makes a way come last for a while: for its node, or for all nodes of its
// relay. It returns the number of the failure.
func (t *Transport) blame(way *route, wholeRelay bool) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	now := time.Now()
	if wholeRelay {
		way.relay.avoid = now.Add(avoidRelay)
		return t.failures
	}
	if way.member.state.avoid == nil {
		way.member.state.avoid = map[*relay]time.Time{}
	}
	way.member.state.avoid[way.relay] = now.Add(avoidNode)
	return t.failures
}

// remember notes which node has the conversation.
func (t *Transport) remember(c *call, way *route) {
	if c.key == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(way.member.state.avoid, way.relay)
	t.affinity.put(c.key, way.node.id)
}

// affinity remembers the last node of recent conversations, in memory only. It
// is two maps: when the young one is full it becomes the old one, whose entries
// go with the next turn unless they are used.
type affinity struct {
	young, old map[string]identity.ID
}

func (a *affinity) get(key string) (identity.ID, bool) {
	if key == "" {
		return "", false
	}
	id, ok := a.young[key]
	if !ok {
		id, ok = a.old[key]
	}
	return id, ok
}

func (a *affinity) put(key string, id identity.ID) {
	if a.young == nil || len(a.young) >= maxAffinity {
		a.young, a.old = make(map[string]identity.ID), a.young
	}
	a.young[key] = id
}
